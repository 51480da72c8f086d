"""Prepares images as input of a tagger, by its profile or as sd-scripts 0.9.0 does."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image

from core.captioning.tagger.profile import Profile
from core.dataset.images.colors import WHITE
from core.dataset.images.opening import BrokenImage, open_decoded, open_image
from core.dataset.images.resize import linear, taps

Prepare = Callable[[Path], np.ndarray]  # -> float32 [H, W, 3] or [3, H, W]; raises BrokenImage
RESAMPLE = {
    "bicubic": Image.Resampling.BICUBIC,
    "bilinear": Image.Resampling.BILINEAR,
    "lanczos": Image.Resampling.LANCZOS,
    "area": Image.Resampling.BOX,
}


def make_prepare(profile: Profile, size: tuple[int, int], compatibility: str) -> Prepare:
    """Return the function that opens an image and converts it to the model's input.

    size            (width, height) of the model's input
    compatibility   "sd-scripts-0.9" for its preprocessing
    """
    if compatibility == "sd-scripts-0.9":
        return partial(_prepare_as_sd_scripts, profile=profile, size=size)
    return partial(_prepare, profile=profile, size=size)


def _prepare(path: Path, profile: Profile, size: tuple[int, int]) -> np.ndarray:
    """Open an image on white, fit it to `size` (width, height) by the profile's padding, and return the model's input.

    float32 [H, W, 3] or [3, H, W]. Raises BrokenImage.
    """
    image = open_decoded(path, enough=(2 * size[0], 2 * size[1])).on(WHITE)
    resample = RESAMPLE[profile.resample]
    if profile.pad == "square":
        image = _padded_to_square(image, profile.pad_color).resize(size, resample)
    elif profile.pad == "edge":
        image = _edge_padded(_fitted(image, size, resample), size)
    else:
        image = image.resize(size, resample)
    return to_input(image, profile)


def _padded_to_square(image: Image.Image, color: tuple[int, int, int]) -> Image.Image:
    """Return the image centered on a square; an odd pixel of padding goes to the right or the bottom."""
    side = max(image.size)
    square = Image.new("RGB", (side, side), color)
    square.paste(image, ((side - image.width) // 2, (side - image.height) // 2))
    return square


def _fitted(image: Image.Image, size: tuple[int, int], resample: Image.Resampling) -> Image.Image:
    """Return the image resized to fit into `size` (width, height), keeping its aspect ratio."""
    scale = min(size[0] / image.width, size[1] / image.height)
    return image.resize((max(1, int(image.width * scale)), max(1, int(image.height * scale))), resample)


def _edge_padded(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    """Return the image centered on `size` (width, height), padded by repeating its border pixels."""
    left, top = (size[0] - image.width) // 2, (size[1] - image.height) // 2
    around = ((top, size[1] - image.height - top), (left, size[0] - image.width - left), (0, 0))
    return Image.fromarray(np.pad(np.asarray(image), around, mode="edge"))


def _prepare_as_sd_scripts(path: Path, profile: Profile, size: tuple[int, int]) -> np.ndarray:
    """Prepare an image as sd-scripts does: no EXIF rotation, no alpha, bilinear downscaling without antialiasing, Lanczos upscaling.

    Returns float32 [H, W, 3] or [3, H, W]. Raises BrokenImage.
    """
    with open_image(path) as opened:
        try:
            image = opened.convert("RGB")
        except Exception as error:  # decoders raise anything
            raise BrokenImage(f"is damaged ({str(error)[:100] or type(error).__name__})") from error
    square = _padded_to_square(image, WHITE)
    if square.width > size[0]:
        square = Image.fromarray(bilinear(np.asarray(square), size[0]))
    else:
        square = square.resize(size, Image.Resampling.LANCZOS)
    return to_input(square, profile)


def to_input(image: Image.Image, profile: Profile) -> np.ndarray:
    """Convert an image of the model's input size to float32 [H, W, 3] or [3, H, W], with the profile's channel order and scale."""
    values = np.asarray(image, dtype=np.float32)
    if profile.channels == "BGR":
        values = values[:, :, ::-1]
    if profile.scale == "1":
        values = (values / 255 - np.float32(profile.mean)) / np.float32(profile.std)
    if profile.layout == "NCHW":
        values = values.transpose(2, 0, 1)
    return np.ascontiguousarray(values, dtype=np.float32)


def bilinear(pixels: np.ndarray, size: int) -> np.ndarray:
    """Downscale a square image as OpenCV's INTER_LINEAR does: uint8 [N, N, C] -> [size, size, C].

    To exactly half the size, OpenCV takes the mean of 2 x 2 pixels instead.
    """
    length = len(pixels)
    if length == 2 * size:
        blocks = pixels.reshape(size, 2, size, 2, -1).sum((1, 3), dtype=np.int32)
        return ((blocks + 2) >> 2).astype(np.uint8)
    source = ((np.arange(size) + 0.5) * (length / size) - 0.5).astype(np.float32)
    first = np.floor(source).astype(np.int64)
    both = taps(first, source - first.astype(np.float32), length)
    return linear(pixels, both, both)
