"""Training images: composited on the background color, resized, cropped to their bucket, augmented."""

from pathlib import Path

import numpy as np
from PIL import Image

from core.dataset.buckets.aspect_ratio import Placement
from core.dataset.images.colors import WHITE, color_of
from core.dataset.images.opening import BrokenImage, open_decoded
from core.dataset.images.resize import resize
from core.dataset.images.views import View
from core.settings.dataset.images import ImageSettings


def load_bucketed(
    path: Path | str, placement: Placement, flip: bool = False, images: ImageSettings | None = None
) -> Image.Image:
    """Return the training image: RGB at the bucket's size. Raises BrokenImage if it is unreadable or its size has changed.
    images: settings of the folder: background color and resize filter; None for white and the filter "auto"."""
    background = color_of(images.alpha_color) if images else WHITE
    opened = open_decoded(path, enough=reduced_size(placement))
    if opened.size != placement.image:
        was, now = "{} x {}".format(*placement.image), "{} x {}".format(*opened.size)
        raise BrokenImage(f"was {was} pixels when the folder was scanned and is {now} now")
    return in_view(opened.on(background), placement, flip, images.resize_interpolation if images else "auto")


def reduced_size(placement: Placement) -> tuple[int, int]:
    """Return the (width, height) that a very large image is first reduced to: twice its size before the crop."""
    return (2 * placement.resized[0], 2 * placement.resized[1])


def load_pixels(path: Path | str, view: View, images: ImageSettings | None = None) -> np.ndarray:
    """Return an image's view for the VAE: float32 [3, H, W] in [-1, 1] at the bucket's size. Raises BrokenImage.
    images: as in `load_bucketed`"""
    pixels = np.asarray(load_bucketed(path, view.placement, view.flip, images), dtype=np.float32)
    return as_training(change_colors(pixels, view.hue, view.gamma))


def in_view(image: Image.Image, placement: Placement, flip: bool, interpolation: str = "auto") -> Image.Image:
    """Resize, crop and flip an image, its mask or its control image, all in the same way."""
    image = resize(image, placement.resized, interpolation)
    left, top = placement.crop
    image = image.crop((left, top, left + placement.bucket[0], top + placement.bucket[1]))
    return image.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if flip else image


def as_training(pixels_HWC: np.ndarray) -> np.ndarray:
    """Convert float32 [H, W, 3] in 0..255 to contiguous float32 [3, H, W] in -1..1."""
    return np.ascontiguousarray(pixels_HWC.transpose(2, 0, 1)) / np.float32(127.5) - np.float32(1)


_HUES = 180.0  # OpenCV's units of the full circle


def change_colors(pixels_HWC: np.ndarray, hue: float, gamma: float) -> np.ndarray:
    """Shift the hue (see `shift_hue`) and apply gamma (see `apply_gamma`) to pixels, float32 [H, W, 3] in 0..255."""
    if hue:
        pixels_HWC = shift_hue(pixels_HWC, hue)
    if gamma != 1:
        pixels_HWC = apply_gamma(pixels_HWC, gamma)
    return pixels_HWC


def apply_gamma(pixels: np.ndarray, gamma: float) -> np.ndarray:
    """Raise values in 0..255 to the power `gamma`, clipped to 255: brighter above 1, darker below. Reference: section 3.4.

    (On 0..255, not 0..1, so 128 becomes 163 at 1.05, as in sd-scripts.)
    """
    result: np.ndarray = np.power(pixels, np.float32(gamma), dtype=np.float32).clip(0, 255)
    return result


def shift_hue(pixels_HWC: np.ndarray, hue: float) -> np.ndarray:
    """Shift the HSV hue of float32 [H, W, 3] in 0..255; saturation and value stay.

    hue   180 are a full circle (OpenCV's unit)

    HSV -> RGB in the form c(n) = V - V S max(0, min(k, 4 - k, 1)), k = (n + H / 60 degrees) mod 6, n = 5, 3, 1.
    sd-scripts rounds the hue to OpenCV's 2 degrees; nothing is rounded here.
    """
    value, low = pixels_HWC.max(axis=2), pixels_HWC.min(axis=2)
    span = value - low  # V S
    red, green, blue = pixels_HWC[..., 0], pixels_HWC[..., 1], pixels_HWC[..., 2]
    with np.errstate(divide="ignore", invalid="ignore"):
        sextant = np.where(
            value == red,
            (green - blue) / span,
            np.where(value == green, 2 + (blue - red) / span, 4 + (red - green) / span),
        )
    sextant = np.where(span > 0, sextant, 0) + hue * 6 / _HUES  # gray has no hue and keeps its value
    parts = []
    for n in (5, 3, 1):
        k = (n + sextant) % 6
        parts.append(value - span * np.minimum(k, 4 - k).clip(0, 1))
    result: np.ndarray = np.stack(parts, axis=2).astype(np.float32)
    return result
