"""Preprocessors without edges or models: grayscale, inverted, blurred, and tile resample."""

import math

import numpy as np
from PIL import Image

from core.dataset.images.resize import resize
from core.settings.hints import HintSettings

DEVIATIONS = 4  # of a Gaussian, to either side; the rest is 6e-5 of it


def grayscale(image: np.ndarray, settings: HintSettings) -> np.ndarray:
    """Return the image's gray levels as in Pillow's mode L (0.299, 0.587, 0.114), repeated in three channels."""
    return as_rgb(gray_levels(image))


def inverted(image: np.ndarray, settings: HintSettings) -> np.ndarray:
    """Return 255 minus each value: black lines on white become white lines on black."""
    return 255 - image


def blurred(image: np.ndarray, settings: HintSettings) -> np.ndarray:
    """Return the image after a Gaussian blur with a standard deviation of `blur_radius` pixels."""
    smooth = [gaussian(image[..., channel].astype(np.float32), settings.blur_radius) for channel in range(3)]
    return to_levels(np.stack(smooth, axis=2))


def tiled(image: np.ndarray, settings: HintSettings) -> np.ndarray:
    """Reduce the image by `tile_factor` (area) and enlarge it to its size again (bicubic), as ControlNet 1.1's tile resample."""
    height, width = image.shape[:2]
    small = (max(1, round(width / settings.tile_factor)), max(1, round(height / settings.tile_factor)))
    coarse = resize(Image.fromarray(image), small, "area")
    return np.asarray(resize(coarse, (width, height), "bicubic"))


def gray_levels(image: np.ndarray) -> np.ndarray:
    """Convert RGB uint8 [H, W, 3] to Pillow's gray levels, uint8 [H, W]."""
    return np.asarray(Image.fromarray(image).convert("L"))


def as_rgb(levels: np.ndarray) -> np.ndarray:
    """Repeat gray levels, uint8 [H, W], in three channels: uint8 [H, W, 3]."""
    return np.repeat(levels[..., None], 3, axis=2)


def to_levels(values: np.ndarray) -> np.ndarray:
    """Round floats to uint8, clipped to 0..255."""
    result: np.ndarray = np.rint(values).clip(0, 255).astype(np.uint8)
    return result


def gaussian(values: np.ndarray, deviation: float) -> np.ndarray:
    """Blur float32 [H, W] with a Gaussian of standard deviation `deviation` pixels, cut off at 4 deviations.

    The border is mirrored without repeating the edge (OpenCV's BORDER_REFLECT_101).
    """
    reach = max(1, math.ceil(DEVIATIONS * deviation))
    weights = np.exp(-0.5 * (np.arange(-reach, reach + 1) / deviation) ** 2)
    weights = (weights / weights.sum()).astype(np.float32)
    down = _rows_smoothed(values, weights, reach)
    return np.ascontiguousarray(_rows_smoothed(np.ascontiguousarray(down.T), weights, reach).T)


def _rows_smoothed(values: np.ndarray, weights: np.ndarray, reach: int) -> np.ndarray:
    """Convolve `values` [H, W] along the first axis with symmetric `weights` [2 * reach + 1]; the border is mirrored."""
    padded = np.pad(values, ((reach, reach), (0, 0)), mode="reflect")
    result: np.ndarray = padded[reach : reach + len(values)] * weights[reach]
    for step in range(1, reach + 1):
        pair = padded[reach - step : reach - step + len(values)] + padded[reach + step : reach + step + len(values)]
        pair *= weights[reach + step]
        result += pair
    return result
