"""Edge preprocessors: Canny edges, soft edges and scribbles, white on black."""

import math

import numpy as np

from core.control.hints.plain import as_rgb, gaussian, gray_levels, to_levels
from core.settings.hints import HintSettings

_TAN_22 = 0.4142135623730951


def canny_lines(image: np.ndarray, settings: HintSettings) -> np.ndarray:
    """Return Canny edges (as cv2.Canny, on Pillow's gray levels): RGB uint8 [H, W, 3], 255 on edges, else 0."""
    return as_rgb(_white(canny(gray_levels(image).astype(np.float32), settings.edge_low, settings.edge_high)))


def has_lines(image: np.ndarray) -> bool:
    """Return whether an image, uint8 [H, W, 3], already shows white lines on black: over 95% black or white, over 50% black."""
    dark, light = (image < 32).all(axis=-1), (image > 223).all(axis=-1)
    return bool((dark | light).mean() > 0.95 and dark.mean() > 0.5 and light.any())


def soft_edges(image: np.ndarray, settings: HintSettings) -> np.ndarray:
    """Return the gradient magnitude of the blurred gray image: RGB uint8 [H, W, 3].

    The middle of an edge of 255 / `edge_gain` levels becomes white: an edge of h levels, smoothed by a Gaussian of deviation s,
    rises by at most h / (s sqrt(2 pi)) per pixel.
    """
    dx, dy = _sobel(gaussian(gray_levels(image).astype(np.float32), settings.edge_blur))
    rise = np.hypot(dx, dy) / 8  # the kernel's sum times the two pixels that it spans
    return as_rgb(to_levels(rise * (settings.edge_gain * settings.edge_blur * math.sqrt(2 * math.pi))))


def scribble(image: np.ndarray, settings: HintSettings) -> np.ndarray:
    """Return Canny edges of the blurred gray image, `line_width` pixels thick: RGB uint8 [H, W, 3]."""
    gray = np.rint(gaussian(gray_levels(image).astype(np.float32), settings.edge_blur))
    return as_rgb(_white(_thick(canny(gray, settings.edge_low, settings.edge_high), settings.line_width)))


def _white(mask: np.ndarray) -> np.ndarray:
    """Return uint8 [H, W]: 255 where `mask` is True, else 0."""
    return np.where(mask, np.uint8(255), np.uint8(0))


def _thick(lines: np.ndarray, width: int) -> np.ndarray:
    """Widen lines of one pixel, bool [H, W], to `width` pixels with a round brush."""
    height, columns = lines.shape
    reach = width // 2
    padded = np.pad(lines, reach)
    thick = np.zeros_like(lines)
    for down in range(-reach, reach + 1):
        for right in range(-reach, reach + 1):
            if down * down + right * right <= width * width / 4:
                thick |= padded[reach + down : reach + down + height, reach + right : reach + right + columns]
    return thick


def canny(gray_HW: np.ndarray, low: float, high: float) -> np.ndarray:
    """Return edges, bool [H, W], by the steps of cv2.Canny: Sobel 3 x 3, |dx| + |dy|, non-maximum suppression, hysteresis.

    gray_HW     float32, levels 0 to 255
    low, high   thresholds of |dx| + |dy|: a brightness step times the kernel's sum of 4
    """
    low, high = min(low, high), max(low, high)
    dx, dy = _sobel(gray_HW)
    size = np.abs(dx) + np.abs(dy)
    ridge = _ridge(size, dx, dy)
    return _connected(ridge & (size > high), ridge & (size > low))


def _sobel(gray: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the Sobel gradients (to the right, down) of a gray image [H, W], each [H, W]; border pixels are repeated outside."""
    p = np.pad(gray, 1, mode="edge")
    smooth_down = p[:-2] + 2 * p[1:-1] + p[2:]
    smooth_right = p[:, :-2] + 2 * p[:, 1:-1] + p[:, 2:]
    return smooth_down[:, 2:] - smooth_down[:, :-2], smooth_right[2:] - smooth_right[:-2]


def _ridge(size: np.ndarray, dx: np.ndarray, dy: np.ndarray) -> np.ndarray:
    """Non-maximum suppression: bool [H, W], whether the gradient magnitude `size` is a maximum along the gradient.

    The gradient (dx, dy) is rounded to one of four directions. Of two equal neighbors in a row or column the first is the
    maximum; of two on a diagonal neither is.
    """
    padded = np.pad(size, 1)
    height, width = size.shape

    def at(down: int, right: int) -> np.ndarray:
        return padded[1 + down : 1 + down + height, 1 + right : 1 + right + width]

    x, y = np.abs(dx), np.abs(dy)
    level = y < x * _TAN_22
    steep = y > x * (_TAN_22 + 2)
    falling = (dx >= 0) == (dy >= 0)  # the gradient points to the lower right or the upper left
    diagonal = ~level & ~steep
    across = level & (size > at(0, -1)) & (size >= at(0, 1))
    along = steep & (size > at(-1, 0)) & (size >= at(1, 0))
    down = diagonal & falling & (size > at(-1, -1)) & (size > at(1, 1))
    up = diagonal & ~falling & (size > at(-1, 1)) & (size > at(1, -1))
    return across | along | down | up


def _connected(strong: np.ndarray, weak: np.ndarray) -> np.ndarray:
    """Hysteresis: return the strong pixels and the weak ones connected to them through weak ones (8 neighbors), bool [H, W]."""
    height, width = strong.shape
    edges, waiting = np.pad(strong, 1).ravel(), np.pad(weak & ~strong, 1).ravel()
    step = width + 2
    neighbors = np.array([-step - 1, -step, -step + 1, -1, 1, step - 1, step, step + 1])
    latest = np.zeros(edges.size, np.intp)
    front = np.flatnonzero(edges)
    while len(front):
        front = (front[:, None] + neighbors).ravel()
        front = front[waiting[front]]
        latest[front] = np.arange(len(front))  # of pixels that several lead to, one stays
        front = front[latest[front] == np.arange(len(front))]
        edges[front], waiting[front] = True, False
    return edges.reshape(height + 2, step)[1:-1, 1:-1]
