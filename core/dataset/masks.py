"""What counts of an image (masks) and what belongs to it (conditioning images), cropped and mirrored with it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from core.dataset.colors import BLACK
from core.dataset.files import printable
from core.dataset.images import as_training, enough_for, in_view
from core.dataset.opening import BrokenImage, Opened, open_decoded

if TYPE_CHECKING:
    from core.dataset.batches import Placed
    from core.dataset.views import View


def load_mask(placed: Placed, view: View) -> np.ndarray | None:
    """float32 [1, H, W], 0 does not count to 1 counts, at the bucket's size; None where all of the image counts.

    From the file of the mask folder where masked_loss uses it (its red channel, transparent parts black), else from
    the image's transparency where alpha_mask says so. A mask of another size than its image is taken to show the
    same frame (`conditioning.py` lists it): it is resized as the image is, by the same filter, so both stay aligned.
    """
    images = placed.concept.images
    if images.masked_loss and placed.image.conditioning is not None:
        opened = _beside(placed.image.conditioning, "mask", view)
        mask = opened.on(BLACK).getchannel("R")
    elif images.alpha_mask:
        opened = open_decoded(placed.image.path, enough=enough_for(view.placement))
        if opened.alpha is None:
            return None
        mask = opened.alpha
    else:
        return None
    return np.asarray(_fitted(mask, placed, view), dtype=np.float32)[None] / np.float32(255)


def load_conditioning(placed: Placed, view: View) -> np.ndarray:
    """float32 [3, H, W] in [-1, 1]: the conditioning image, on black, cropped and mirrored with its image.

    Its colors are never changed by chance. BrokenImage when there is none.
    """
    path = placed.image.conditioning
    if path is None:
        raise BrokenImage("has no conditioning image of the same name")
    image = _beside(path, "conditioning image", view).on(BLACK)
    return as_training(np.asarray(_fitted(image, placed, view), dtype=np.float32))


def _beside(path: Path, kind: str, view: View) -> Opened:
    """An image that belongs to another one; what is wrong with it is said of that other one. Its numbers are data,
    so no color profile is applied."""
    try:
        return open_decoded(path, managed=False, enough=enough_for(view.placement))
    except BrokenImage as error:
        raise BrokenImage(f"has a {kind}, {os.path.basename(printable(path))}, that {error}") from error


def _fitted(image: Image.Image, placed: Placed, view: View) -> Image.Image:
    return in_view(image, view.placement, view.flip, placed.concept.images.resize_interpolation)
