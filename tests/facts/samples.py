"""Small files that producers read: images whose bytes are the same on every machine, and texts in short form."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from PIL import Image


def noise(width: int, height: int, seed: int = 0, channels: int = 3) -> Image.Image:
    shape = (height, width, channels) if channels > 1 else (height, width)
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8))


def smooth(width: int, height: int, seed: int = 0) -> Image.Image:
    """Waves of three colors, computed in whole numbers: an image with edges and even areas."""
    x, y = np.meshgrid(np.arange(width) * 256 // width, np.arange(height) * 256 // height)
    waves = [(x * (3 + seed + each) + y * (2 + each) * 2 + 90 * each) % 510 - 255 for each in range(3)]
    return Image.fromarray(np.abs(np.stack(waves, 2)).astype(np.uint8))


def write(path: Path, image: Image.Image, text: str | bytes | None = None, ending: str = ".txt", **options) -> Path:
    """Save the image, with a caption file next to it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path, **options)
    if text is not None:
        beside(path.with_suffix(ending), text)
    return path


def beside(path: Path, text: str | bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


def quarters(image: Image.Image) -> list[int]:
    """The sum of all values in each quarter of an image."""
    pixels = np.asarray(image).astype(np.int64)
    height, width = pixels.shape[0] // 2, pixels.shape[1] // 2
    return [
        int(half.sum()) for rows in (pixels[:height], pixels[height:]) for half in (rows[:, :width], rows[:, width:])
    ]


_OF_THE_MOMENT = re.compile(r"\d{4}-\d\d-\d\d.*|\d\d:\d\d:\d\d.*|\d{8}-\d{6}.*|\d{19}|[0-9a-f]{8,64},?")


def figures(text: str) -> str:
    """The words of a message that are numbers, names or values, without times; its wording may change."""
    words = [word for word in text.split() if any(sign.isdigit() or sign in "/_=<>'\"" for sign in word)]
    return " ".join(word for word in words if not _OF_THE_MOMENT.fullmatch(word))


def all_figures(texts: Iterable[str]) -> list[str]:
    return [found for text in texts if (found := figures(text))]
