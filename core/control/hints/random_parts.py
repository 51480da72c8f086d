"""Preprocessors with random numbers: shuffled images, and images with a masked part for inpainting."""

import numpy as np
from PIL import Image

from core.control.hints.plain import to_levels
from core.record.draws import address
from core.settings.hints import HintSettings

GRID = 256  # pixels between two random numbers of the shuffle
SIDES = (0.1, 0.5)  # of a masked part, as a share of the image's


def shuffled(image: np.ndarray, settings: HintSettings) -> np.ndarray:
    """ControlNet 1.1's content shuffle: sample the image along a smooth random field, which keeps colors but not shapes."""
    height, width = image.shape[:2]
    rng = np.random.default_rng(address(settings.hint_seed, "hint.shuffle"))
    x = _smooth_field(height, width, rng) * (width - 1)
    y = _smooth_field(height, width, rng) * (height - 1)
    return _sampled_at(image, x, y)


def masked(image: np.ndarray, settings: HintSettings) -> np.ndarray:
    """Return the image with random boxes and ellipses, at least `mask_share` of the area, painted black."""
    hint = image.copy()
    hint[random_mask(image.shape[0], image.shape[1], settings.mask_share, settings.hint_seed)] = 0
    return hint


def random_mask(height: int, width: int, share: float, seed: int) -> np.ndarray:
    """Return a mask, bool [H, W]: True in random rectangles and ellipses that cover at least `share` (0 to 1) of the area."""
    rng = np.random.default_rng(address(seed, "hint.mask"))
    rows, columns = np.mgrid[0:height, 0:width]
    mask: np.ndarray = np.zeros((height, width), bool)
    while mask.mean() < share:
        half_height, half_width = rng.uniform(*SIDES, 2) * (height, width) / 2
        down, right = np.abs(rows - rng.uniform(0, height)), np.abs(columns - rng.uniform(0, width))
        if rng.random() < 0.5:
            mask |= (down <= half_height) & (right <= half_width)
        else:
            mask |= (down / half_height) ** 2 + (right / half_width) ** 2 <= 1
    return mask


def _smooth_field(height: int, width: int, rng: np.random.Generator) -> np.ndarray:
    """Return float32 [H, W] from 0 to 1: random numbers on a coarse grid with bicubic interpolation."""
    step = min(GRID, max(2, max(height, width) // 2))
    coarse = rng.random((height // step + 2, width // step + 2), np.float32)
    field = np.asarray(Image.fromarray(coarse).resize((width + 2 * step, height + 2 * step), Image.Resampling.BICUBIC))
    field = field[step : step + height, step : step + width]
    span = float(np.ptp(field))
    result: np.ndarray = (field - field.min()) / span if span > 0 else np.zeros_like(field)
    return result


def _sampled_at(image: np.ndarray, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Sample an image, uint8 [H, W, 3], bilinearly at pixel positions x and y, each [H, W] and inside the image."""
    left, top = np.floor(x).astype(np.intp), np.floor(y).astype(np.intp)
    right, below = np.minimum(left + 1, image.shape[1] - 1), np.minimum(top + 1, image.shape[0] - 1)
    across, down = (x - left)[..., None], (y - top)[..., None]
    upper = image[top, left] * (1 - across) + image[top, right] * across
    lower = image[below, left] * (1 - across) + image[below, right] * across
    return to_levels(upper * (1 - down) + lower * down)
