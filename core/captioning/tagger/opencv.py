"""Pixels as OpenCV's `resize` computes them, to the last bit."""

from __future__ import annotations

import numpy as np

BITS = 11  # of its weights (INTER_RESIZE_COEF_BITS)


def bilinear(pixels: np.ndarray, size: int) -> np.ndarray:
    """INTER_LINEAR of a square image to a smaller one: uint8 [N, N, C] -> [size, size, C].

    Weights are integers of 11 bits; rows are shifted before they are weighed and rounded once. To exactly half the size
    OpenCV takes the mean of 2 x 2 pixels instead.
    """
    if len(pixels) == 2 * size:
        blocks = pixels.reshape(size, 2, size, 2, -1).sum((1, 3), dtype=np.int32)
        return ((blocks + 2) >> 2).astype(np.uint8)
    first, second, (near, far) = _weights(len(pixels), size)
    above, below = (
        rows[:, first] * near[:, None] + rows[:, second] * far[:, None] >> 4 for rows in (pixels[first], pixels[second])
    )
    sums = (near[:, None, None] * above >> 16) + (far[:, None, None] * below >> 16)
    return ((sums + 2) >> 2).astype(np.uint8)


def _weights(length: int, size: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The two source pixels of each target pixel and their weights, int32 [2, size]."""
    place = ((np.arange(size) + 0.5) * (length / size) - 0.5).astype(np.float32)
    first = np.floor(place).astype(np.int64)
    beyond = place - first.astype(np.float32)
    beyond[(first < 0) | (first >= length - 1)] = 0
    first = first.clip(0, length - 1)
    weights = np.rint(np.stack([1 - beyond, beyond]) * np.float32(1 << BITS)).astype(np.int32)
    return first, np.minimum(first + 1, length - 1), weights
