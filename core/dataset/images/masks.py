"""Loss masks and control images, cropped and flipped with their image."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from core.dataset.buckets.sizes import Size, cover
from core.dataset.images.colors import BLACK
from core.dataset.images.opening import BrokenImage, Opened, open_decoded
from core.dataset.images.pixels import enough_for, in_view
from core.dataset.images.resize import resize
from core.dataset.images.views import View
from core.dataset.sources.files import printable
from core.settings.dataset.concepts import Concept

if TYPE_CHECKING:
    from core.dataset.buckets.batches import Placed


def load_mask(placed: Placed, view: View) -> np.ndarray | None:
    """The loss mask, float32 [1, H, W] in 0..1 at the bucket's size; None for an image without one.

    From the mask folder with masked_loss (red channel, transparent parts black), else from the image's alpha channel
    with alpha_mask. A mask of another size than its image is resized with it by the same filter, so both stay aligned
    (`conditioning.py` reports it).
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


def load_control(placed: Placed, view: View) -> np.ndarray | None:
    """The control image, float32 [3, H, W] in 0..1 at the bucket's size, transparent parts black, with the compatibility of sd-scripts
    in their own color; None for an image without one. One of another size than its image is resized with it."""
    if placed.image.control is None:
        return None
    opened = _beside(placed.image.control, "control image", view)
    hint = opened.on(BLACK) if placed.concept.control_fit == "aligned" else opened.colors
    return _as_control(control_in_view(hint, view, placed.concept))


def control_in_view(hint: Image.Image, view: View, concept: Concept) -> Image.Image:
    """Resized, cropped and flipped as its image; with the compatibility of sd-scripts as that does it (reference: section 1.3)."""
    images = concept.images
    chosen = images.control_interpolation or images.resize_interpolation
    if concept.control_fit == "area":  # sd-scripts 0.9
        return in_view(hint, view.placement, view.flip, images.control_interpolation or "area")
    if concept.control_fit == "aligned":
        return in_view(hint, view.placement, view.flip, chosen)
    bucket = view.placement.bucket
    if chosen == "auto":  # without buckets 0.10 compares each side with the other one of the hint
        width, height = hint.size if images.enable_bucket else hint.size[::-1]
        chosen = "area" if bucket[0] <= width and bucket[1] <= height else "lanczos"
    if chosen == "lanczos" and hint.width * bucket[1] < bucket[0] * hint.height:
        hint = resize(hint, (hint.width, bucket[1]), chosen)  # the cheaper side first, as from Pillow 13 on
    hint = resize(hint, bucket, chosen)
    return hint.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if view.flip else hint


def control_for(path: Path, size: Size, stretched: bool = False) -> np.ndarray:
    """The control image of a sample of this size, as `load_control` gives it: fitted to cover it, cropped around its center;
    or stretched by Lanczos resampling, without its transparency."""
    opened = open_decoded(path, managed=False)
    if stretched:
        return _as_control(resize(opened.colors, size, "lanczos"))
    return _as_control(in_view(opened.on(BLACK), cover(opened.size, size), flip=False))


def _as_control(image: Image.Image) -> np.ndarray:
    pixels = np.asarray(image, dtype=np.float32).transpose(2, 0, 1)
    return np.ascontiguousarray(pixels) / np.float32(255)


def _beside(path: Path, kind: str, view: View) -> Opened:
    """A mask or control image. Errors are worded to follow the name of the image it belongs to. Its values are data,
    so no color profile is applied."""
    try:
        return open_decoded(path, managed=False, enough=enough_for(view.placement))
    except BrokenImage as error:
        raise BrokenImage(f"has a {kind}, {os.path.basename(printable(path))}, that {error}") from error


def _fitted(image: Image.Image, placed: Placed, view: View) -> Image.Image:
    return in_view(image, view.placement, view.flip, placed.concept.images.resize_interpolation)
