"""Loss masks and control images, cropped and flipped with their image."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from core.dataset.buckets.aspect_ratio import Size, fit_to_bucket
from core.dataset.images.colors import BLACK
from core.dataset.images.opening import BrokenImage, DecodedImage, open_decoded
from core.dataset.images.pixels import in_view, reduced_size
from core.dataset.images.resize import resize
from core.dataset.images.views import View
from core.dataset.sources.files import printable
from core.settings.dataset.concepts import Concept

if TYPE_CHECKING:
    from core.dataset.buckets.batches import Placed


def load_mask(placed: Placed, view: View) -> np.ndarray | None:
    """Return the loss mask, float32 [1, H, W] in 0..1 at the bucket's size; None for an image without one.

    Read from the mask folder with masked_loss (red channel, transparent parts black), else from the image's alpha channel
    with alpha_mask. A mask of another size than its image is resized with it by the same filter, so both stay aligned
    (`conditioning.py` reports it). Raises BrokenImage.
    """
    images = placed.concept.images
    if images.masked_loss and placed.image.conditioning is not None:
        opened = _open_partner(placed.image.conditioning, "mask", view)
        mask = opened.on(BLACK).getchannel("R")
    elif images.alpha_mask:
        opened = open_decoded(placed.image.path, enough=reduced_size(view.placement))
        if opened.alpha is None:
            return None
        mask = opened.alpha
    else:
        return None
    fitted = in_view(mask, view.placement, view.flip, images.resize_interpolation)
    return np.asarray(fitted, dtype=np.float32)[None] / np.float32(255)


def load_control(placed: Placed, view: View) -> np.ndarray | None:
    """Return the control image, float32 [3, H, W] in 0..1 at the bucket's size; None for an image without one.

    Transparent parts are black (with sd-scripts' compatibility, their color is used). A control image of another size than its
    image is resized to the same size. Raises BrokenImage.
    """
    pixels = control_pixels(placed, view)
    return None if pixels is None else as_control(pixels)


def control_pixels(placed: Placed, view: View) -> np.ndarray | None:
    """Return the control image like `load_control`, but as uint8, 0 to 255."""
    if placed.image.control is None:
        return None
    opened = _open_partner(placed.image.control, "control image", view)
    hint = opened.on(BLACK) if placed.concept.control_fit == "aligned" else opened.colors
    return _channels(control_in_view(hint, view, placed.concept))


def control_filter(concept: Concept) -> str:
    """Return the name of the resampling method for a folder's control images."""
    method = concept.images.control_interpolation
    if concept.control_fit == "area":  # sd-scripts 0.9
        return method or "area"
    return method or concept.images.resize_interpolation


def is_resized(size: Size, placed: Placed) -> bool:
    """Return whether a control image of `size` (width, height) must be resized, not only cropped."""
    stretched = placed.concept.control_fit == "stretched"
    return size != (placed.placement.bucket if stretched else placed.placement.resized)


def control_in_view(hint: Image.Image, view: View, concept: Concept) -> Image.Image:
    """Resize, crop and flip a control image like its image.

    With sd-scripts' compatibility, as sd-scripts does (reference: section 1.3).
    """
    method = control_filter(concept)
    if concept.control_fit != "stretched":
        return in_view(hint, view.placement, view.flip, method)
    bucket = view.placement.bucket
    if method == "auto":  # without buckets 0.10 compares each side with the other one of the hint
        width, height = hint.size if concept.images.enable_bucket else hint.size[::-1]
        method = "area" if bucket[0] <= width and bucket[1] <= height else "lanczos"
    if method == "lanczos" and hint.width * bucket[1] < bucket[0] * hint.height:
        hint = resize(hint, (hint.width, bucket[1]), method)  # the cheaper side first, as from Pillow 13 on
    hint = resize(hint, bucket, method)
    return hint.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if view.flip else hint


def control_for(path: Path, size: Size, stretched: bool = False) -> np.ndarray:
    """Return the control image for a sample of `size` (width, height), float32 [3, H, W] in 0..1. Raises BrokenImage.

    Resized to cover `size` and center-cropped; with `stretched`, resized to it by Lanczos and transparency ignored.
    """
    opened = open_decoded(path, managed=False)
    if stretched:
        return as_control(_channels(resize(opened.colors, size, "lanczos")))
    return as_control(_channels(in_view(opened.on(BLACK), fit_to_bucket(opened.size, size), flip=False)))


def as_control(pixels: np.ndarray) -> np.ndarray:
    """Convert uint8 [3, H, W], or [1, H, W] of a gray image, to float32 [3, H, W] in 0..1."""
    values: np.ndarray = np.ascontiguousarray(pixels).astype(np.float32) / np.float32(255)
    return values if len(values) == 3 else np.repeat(values, 3, axis=0)


def _channels(image: Image.Image) -> np.ndarray:
    """Convert an RGB image to uint8 [3, H, W]."""
    return np.ascontiguousarray(np.asarray(image).transpose(2, 0, 1))


def _open_partner(path: Path, kind: str, view: View) -> DecodedImage:
    """Decode a mask or control image without its color profile, since its values are data.

    kind   noun for messages
    Raises BrokenImage with a message that continues a sentence about the training image.
    """
    try:
        return open_decoded(path, managed=False, enough=reduced_size(view.placement))
    except BrokenImage as error:
        raise BrokenImage(f"has a {kind}, {os.path.basename(printable(path))}, that {error}") from error
