"""Grayscale, inverted, blurred and coarse images."""

import math

import numpy as np
from PIL import Image

from core.dataset.images.resize import resize
from core.settings.hints import HintSettings

DEVIATIONS = 4  # of a Gaussian, to either side; the rest is 6e-5 of it


def grayscale(image: np.ndarray, settings: HintSettings) -> np.ndarray:
    """Gray levels as Pillow's L (0.299, 0.587, 0.114), in all three channels."""
    return as_rgb(gray_levels(image))


def inverted(image: np.ndarray, settings: HintSettings) -> np.ndarray:
    """Black lines on white become white lines on black."""
    return 255 - image


def blurred(image: np.ndarray, settings: HintSettings) -> np.ndarray:
    """The image after a Gaussian blur of `blur_radius` on each channel."""
    smooth = [gaussian(image[..., channel].astype(np.float32), settings.blur_radius) for channel in range(3)]
    return to_levels(np.stack(smooth, axis=2))


def tiled(image: np.ndarray, settings: HintSettings) -> np.ndarray:
    """The image reduced by `tile_factor` (area) and enlarged again (bicubic): ControlNet 1.1's tile resample, at the
    image's size."""
    height, width = image.shape[:2]
    small = (max(1, round(width / settings.tile_factor)), max(1, round(height / settings.tile_factor)))
    coarse = resize(Image.fromarray(image), small, "area")
    return np.asarray(resize(coarse, (width, height), "bicubic"))


def gray_levels(image: np.ndarray) -> np.ndarray:
    """uint8 [H, W, 3] -> uint8 [H, W]."""
    return np.asarray(Image.fromarray(image).convert("L"))


def as_rgb(levels: np.ndarray) -> np.ndarray:
    """uint8 [H, W] -> uint8 [H, W, 3]."""
    return np.repeat(levels[..., None], 3, axis=2)


def to_levels(values: np.ndarray) -> np.ndarray:
    """uint8 of floats in 0..255, rounded."""
    result: np.ndarray = np.rint(values).clip(0, 255).astype(np.uint8)
    return result


def gaussian(values: np.ndarray, deviation: float) -> np.ndarray:
    """float32 [H, W] after a Gaussian blur cut off at 4 deviations; the border is mirrored without repeating the edge
    (OpenCV's BORDER_REFLECT_101)."""
    reach = max(1, math.ceil(DEVIATIONS * deviation))
    weights = np.exp(-0.5 * (np.arange(-reach, reach + 1) / deviation) ** 2)
    weights = (weights / weights.sum()).astype(np.float32)
    down = _rows_smoothed(values, weights, reach)
    return np.ascontiguousarray(_rows_smoothed(np.ascontiguousarray(down.T), weights, reach).T)


def _rows_smoothed(values: np.ndarray, weights: np.ndarray, reach: int) -> np.ndarray:
    """The values convolved along the first axis."""
    padded = np.pad(values, ((reach, reach), (0, 0)), mode="reflect")
    result: np.ndarray = padded[reach : reach + len(values)] * weights[reach]
    for step in range(1, reach + 1):
        pair = padded[reach - step : reach - step + len(values)] + padded[reach + step : reach + step + len(values)]
        pair *= weights[reach + step]
        result += pair
    return result
