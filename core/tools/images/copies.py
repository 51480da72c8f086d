"""Resized, cropped and converted copies of one image: what is made, not where it is written."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from core.dataset.images.opening import Opened, open_decoded
from core.dataset.images.resize import resize
from core.settings.tools.images import ConvertSettings, CropSettings, ResizeSettings

Box = tuple[int, int, int, int]


class Skip(Exception):
    """An image that a tool leaves out. Its text says why, to be put after the image's name."""


@dataclass(frozen=True)
class Made:
    """One copy. image: what is saved as `format`, or the file whose bytes are copied; stem: its name."""

    stem: str
    image: Opened | Path
    format: str


def resized_copies(path: Path, asked: ResizeSettings) -> tuple[list[Made], list[str]]:
    """A copy for each largest size, each made from the image itself, named `<name>+<W>x<H>`; and what was left out.

    sd-scripts' resize_images_to_resolution in its names and sizes; there the second copy is made from the first.
    """
    opened = open_decoded(path)
    width, height = opened.colors.size
    made: list[Made] = []
    left_out: list[str] = []
    seen: dict[tuple[int, int], str] = {}
    for limit in asked.max_resolution:
        most_width, most_height = (limit, limit) if isinstance(limit, int) else limit
        name = f"{most_width}x{most_height}"
        size = size_within(width, height, most_width * most_height)
        step = asked.divisible_by
        kept = (size[0] // step * step, size[1] // step * step)
        if 0 in kept:
            left_out.append(f"would be {size[0]} x {size[1]} at {name}, too small to be divisible by {step}")
            continue
        if kept in seen:
            left_out.append(f"has the same size at {name} as at {seen[kept]}")
            continue
        seen[kept] = name
        copy = cut(scaled(opened, size, asked.interpolation), middle(size, kept))
        made.append(Made(f"{path.stem}+{name}", copy, asked.format))
    return made, left_out


def size_within(width: int, height: int, most_pixels: int) -> tuple[int, int]:
    """The size of the same shape with at most so many pixels; unchanged when it has no more. At least 1 x 1."""
    if width * height <= most_pixels:
        return width, height
    scale = math.sqrt(most_pixels / (width * height))
    return max(1, int(width * scale)), max(1, int(height * scale))


def cropped_copy(path: Path, asked: CropSettings) -> Made:
    """Exactly the asked size, from the middle."""
    opened = open_decoded(path)
    width, height = opened.colors.size
    wanted = asked.crop_size
    if asked.crop_scaled:
        scale = max(wanted[0] / width, wanted[1] / height)
        size = (max(wanted[0], round(width * scale)), max(wanted[1], round(height * scale)))
        opened = scaled(opened, size, asked.interpolation)
    elif width < wanted[0] or height < wanted[1]:
        raise Skip(f"is {width} x {height}, smaller than {wanted[0]} x {wanted[1]}")
    return Made(path.stem, cut(opened, middle(opened.colors.size, wanted)), asked.format)


_PILLOW_NAMES = {"png": "PNG", "jpg": "JPEG", "webp": "WEBP"}


def converted_copy(path: Path, asked: ConvertSettings) -> Made:
    """In the asked format; a file that has it already is copied as it is, so that it loses nothing."""
    opened = open_decoded(path)  # also for a copy: a broken image is named, not copied
    with Image.open(path) as image:
        same = image.format == _PILLOW_NAMES[asked.format] and not getattr(image, "is_animated", False)
    return Made(path.stem, path if same else opened, asked.format)


def middle(size: tuple[int, int], kept: tuple[int, int]) -> Box:
    """The box of size `kept` in the middle."""
    left, top = (size[0] - kept[0]) // 2, (size[1] - kept[1]) // 2
    return left, top, left + kept[0], top + kept[1]


def cut(opened: Opened, box: Box) -> Opened:
    return Opened(opened.colors.crop(box), opened.alpha.crop(box) if opened.alpha else None)


def scaled(opened: Opened, size: tuple[int, int], interpolation: str) -> Opened:
    """Colors and transparency at that size. Transparent pixels do not bleed into their neighbors."""
    if opened.alpha is None or opened.colors.size == size:
        alpha = resize(opened.alpha, size, interpolation) if opened.alpha else None
        return Opened(resize(opened.colors, size, interpolation), alpha)
    # Pillow multiplies colors by their transparency while it resizes RGBA. It has no exact area filter; box is the nearest.
    shrinks = size[0] <= opened.colors.width and size[1] <= opened.colors.height
    name = ("area" if shrinks else "lanczos") if interpolation == "auto" else interpolation
    filters = {
        "area": Image.Resampling.BOX,
        "lanczos": Image.Resampling.LANCZOS,
        "bicubic": Image.Resampling.BICUBIC,
        "bilinear": Image.Resampling.BILINEAR,
        "nearest": Image.Resampling.NEAREST,
    }
    both = opened.colors.convert("RGBA")
    both.putalpha(opened.alpha)
    both = both.resize(size, filters[name])
    return Opened(both.convert("RGB"), both.getchannel("A"))
