"""Color augmentation: hue shift and gamma."""

from __future__ import annotations

import numpy as np

_HUES = 180.0  # OpenCV's units of the full circle


def change_colors(pixels_HWC: np.ndarray, hue: float, gamma: float) -> np.ndarray:
    """pixels float32 [H, W, 3], 0..255 -> the same with hue shifted and gamma applied."""
    if hue:
        pixels_HWC = shift_hue(pixels_HWC, hue)
    if gamma != 1:
        pixels_HWC = raise_values(pixels_HWC, gamma)
    return pixels_HWC


def raise_values(pixels: np.ndarray, gamma: float) -> np.ndarray:
    """v ** gamma of the 0..255 values, then clipped to them: brighter above 1, darker below. Reference: section 3.4.

    (On 0..255, not 0..1, so 128 becomes 163 at 1.05, as in sd-scripts.)
    """
    result: np.ndarray = np.power(pixels, np.float32(gamma), dtype=np.float32).clip(0, 255)
    return result


def shift_hue(pixels_HWC: np.ndarray, hue: float) -> np.ndarray:
    """HSV hue shifted by `hue` (units of 180); saturation and value unchanged. float32 [H, W, 3], 0..255.

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
