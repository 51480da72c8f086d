"""Image resizing by named filters, among them OpenCV's INTER_AREA as sd-scripts uses it."""

import math

import numpy as np
from PIL import Image

# Pillow's filters antialias when downscaling; OpenCV's bilinear and bicubic, which
# sd-scripts uses under these names, do not. When upscaling, bilinear is the same; bicubic has a = -0.5 here and -0.75 there.
_PILLOW = {
    "lanczos": Image.Resampling.LANCZOS,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "box": Image.Resampling.BOX,
    "nearest": Image.Resampling.NEAREST,  # the same as OpenCV's INTER_NEAREST_EXACT
}


def resize(image: Image.Image, size: tuple[int, int], interpolation: str = "auto") -> Image.Image:
    """Resize an image (RGB or L) to exactly `size` (width, height).

    interpolation   a filter of settings/images.py. "auto": area averaging if no side grows, else Lanczos, as sd-scripts does
                    (INTER_AREA or Pillow's LANCZOS)
    """
    if image.size == size:
        return image
    if interpolation == "auto":
        interpolation = "area" if size[0] <= image.width and size[1] <= image.height else "lanczos"
    if interpolation == "area":
        shrinks = size[0] <= image.width and size[1] <= image.height
        return Image.fromarray((area_average if shrinks else area_enlarged)(np.asarray(image), size))
    return image.resize(size, _PILLOW[interpolation])


def area_average(pixels: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Reduce an image; each new pixel is the mean of the area that it covers, with fractional pixels (OpenCV's INTER_AREA).

    Pillow's BOX uses whole pixels only, which shifts edges by up to half a pixel at odd ratios.

    pixels    uint8 [H, W, C] or [H, W]
    size      (width, height)
    returns   uint8 of that size
    """
    width, height = size
    gray = pixels.ndim == 2
    rows = _average_rows(pixels[..., None] if gray else pixels, height)
    columns = _average_rows(np.ascontiguousarray(rows.transpose(1, 0, 2)), width)
    result: np.ndarray = np.rint(columns.transpose(1, 0, 2)).clip(0, 255).astype(np.uint8)
    return result[..., 0] if gray else result


def _average_rows(pixels: np.ndarray, count: int) -> np.ndarray:
    """Average rows of [N, W, C] to float32 [count, W, C]: each new row is the mean of N / count rows.

    The first and last of these are weighted by their fraction. One new row at a time stays in the CPU's cache: five times as
    fast as all at once.
    """
    n = pixels.shape[0]
    if count == n:
        return pixels.astype(np.float32)
    flat, step = pixels.reshape(n, -1), n / count
    low = np.arange(count)[:, None] * step
    high = np.minimum(low + step, n)
    first = np.floor(low + 1e-9).astype(np.intp)
    row = first + np.arange(math.ceil(step - 1e-9) + 1)
    shares = ((np.minimum(row + 1, high) - np.maximum(row, low)).clip(0) / step).astype(np.float32)
    result: np.ndarray = np.empty((count, flat.shape[1]), np.float32)
    for line, start, share in zip(result, first[:, 0], shares):
        np.multiply(flat[start], share[0], out=line)
        for k in range(1, len(share)):
            if share[k]:
                line += flat[start + k] * share[k]
    return result.reshape(count, *pixels.shape[1:])


BITS = 11  # of the weights of OpenCV's linear filters (INTER_RESIZE_COEF_BITS)
# The two source pixels of each new pixel, and their weights, int32 [2, size].
Taps = tuple[np.ndarray, np.ndarray, np.ndarray]


def area_enlarged(pixels: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Resize uint8 [H, W, C] or [H, W] to `size` (width, height) as OpenCV's INTER_AREA does if a side grows.

    Linear interpolation, with each source pixel's color at the center of its area.
    """
    return linear(pixels, _area_taps(pixels.shape[0], size[1]), _area_taps(pixels.shape[1], size[0]))


def _area_taps(length: int, size: int) -> Taps:
    """Return the taps that enlarge a side of `length` pixels to `size` pixels as OpenCV's INTER_AREA."""
    scale = length / size
    first = np.floor(np.arange(size) * scale).astype(np.int64)
    distance = (np.arange(1, size + 1) - (first + 1) / scale).astype(np.float32)
    distance = np.where(distance <= 0, np.float32(0), distance - np.floor(distance))
    return taps(first, distance, length)


def taps(first: np.ndarray, distance: np.ndarray, length: int) -> Taps:
    """Return the taps of linear interpolation along a side of `length` pixels: first and second source pixel, and their weights.

    first      for each new pixel, the source pixel before its position
    distance   float32, the distance of the position from that pixel
    """
    distance = np.where((first < 0) | (first >= length - 1), np.float32(0), distance)
    first = first.clip(0, length - 1)
    weights = np.rint(np.stack([1 - distance, distance]) * np.float32(1 << BITS)).astype(np.int32)
    return first, np.minimum(first + 1, length - 1), weights


def linear(pixels: np.ndarray, down: Taps, across: Taps) -> np.ndarray:
    """Interpolate uint8 [H, W, C] or [H, W] linearly; return uint8. down, across: the taps along H and along W

    As in OpenCV, weights are integers of 11 bits, and rows are shifted before they are weighted and rounded once.
    """
    values = pixels[..., None] if pixels.ndim == 2 else pixels
    left, right, (near, far) = across
    above, below = (
        rows[:, left] * near[:, None] + rows[:, right] * far[:, None] >> 4
        for rows in (values[down[0]], values[down[1]])
    )
    upper, lower = down[2]
    sums = (upper[:, None, None] * above >> 16) + (lower[:, None, None] * below >> 16)
    result: np.ndarray = ((sums + 2) >> 2).astype(np.uint8)
    return result[..., 0] if pixels.ndim == 2 else result
