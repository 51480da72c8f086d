"""Edges of an image after Canny (1986), as OpenCV draws them: white lines of one pixel on black, for ControlNet sets."""

from __future__ import annotations

import numpy as np
from PIL import Image

_TAN_22 = 0.4142135623730951


def edge_image(image: Image.Image, low: float = 32, high: float = 224) -> Image.Image:
    """L image of the same size: 255 on edges, 0 elsewhere."""
    gray = np.asarray(image.convert("L"), dtype=np.float32)  # weights .299 .587 .114, as OpenCV's gray
    return Image.fromarray(np.where(canny(gray, low, high), np.uint8(255), np.uint8(0)))


def canny(gray_HW: np.ndarray, low: float, high: float) -> np.ndarray:
    """bool [H, W]. The steps of cv2.Canny: Sobel 3 x 3, |dx| + |dy|, the ridge across the gradient, hysteresis.

    gray_HW   float32, levels 0 to 255      low, high   steps of brightness times the kernel's sum of 4
    """
    low, high = min(low, high), max(low, high)
    dx, dy = _sobel(gray_HW)
    size = np.abs(dx) + np.abs(dy)
    ridge = _ridge(size, dx, dy)
    return _connected(ridge & (size > high), ridge & (size > low))


def _sobel(gray: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Gradients to the right and down; edge pixels are repeated outside."""
    p = np.pad(gray, 1, mode="edge")
    smooth_down = p[:-2] + 2 * p[1:-1] + p[2:]
    smooth_right = p[:, :-2] + 2 * p[:, 1:-1] + p[:, 2:]
    return smooth_down[:, 2:] - smooth_down[:, :-2], smooth_right[2:] - smooth_right[:-2]


def _ridge(size: np.ndarray, dx: np.ndarray, dy: np.ndarray) -> np.ndarray:
    """Pixels that no neighbor along the gradient's direction (of four) surpasses; of two equal ones the later stays out."""
    around = np.pad(size, 1)
    height, width = size.shape

    def at(down: int, right: int) -> np.ndarray:
        return around[1 + down : 1 + down + height, 1 + right : 1 + right + width]

    x, y = np.abs(dx), np.abs(dy)
    level = y < x * _TAN_22
    steep = y > x * (_TAN_22 + 2)
    falling = (dx >= 0) == (dy >= 0)  # the gradient points to the lower right or the upper left
    rest = ~level & ~steep
    across = level & (size > at(0, -1)) & (size >= at(0, 1))
    along = steep & (size > at(-1, 0)) & (size >= at(1, 0))
    down = rest & falling & (size > at(-1, -1)) & (size > at(1, 1))
    up = rest & ~falling & (size > at(-1, 1)) & (size > at(1, -1))
    return across | along | down | up


def _connected(strong: np.ndarray, weak: np.ndarray) -> np.ndarray:
    """The strong pixels and every weak one that a chain of weak ones (of eight neighbors) joins to them."""
    height, width = strong.shape
    found = np.zeros((height + 2, width + 2), bool)
    open_ones = np.pad(weak, 1)
    flat, waiting = found.ravel(), open_ones.ravel()
    front = np.flatnonzero(np.pad(strong, 1))
    flat[front], waiting[front] = True, False
    step = width + 2
    neighbors = np.array([-step - 1, -step, -step + 1, -1, 1, step - 1, step, step + 1])
    while len(front):
        front = np.unique(front[:, None] + neighbors)
        front = front[waiting[front]]
        flat[front], waiting[front] = True, False
    return found[1:-1, 1:-1]
