"""Advice about decoded control images: blank ones, copies of their training images, exchanged folders."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from core.dataset.buckets.batches import Placed
from core.dataset.images.colors import BLACK
from core.dataset.images.look import Look, known_looks, laplacian_variance
from core.dataset.images.opening import BrokenImage, open_decoded
from core.dataset.sources.files import printable
from core.dataset.sources.image_info import ImageInfo, about
from core.dataset.sources.memo import Memo
from core.dataset.sources.walk import file_at
from core.record.problems import Problem
from core.record.stamps import cached_until_changed

SIDE = 16  # pixels of the small copies that are compared
MAX_COMPARED = 200  # pairs that look alike and are compared
MAX_SAMPLED = 12  # pairs whose colors or details are compared
DETAIL = 512  # pixels of the middle of an image whose sharpness is compared
SOFT = 0.5  # share of an image's sharpness below which a control image is blurred or tiled, not the image itself
SAME = 3.0  # mean difference in levels up to which two images are the same, encoded differently
GRAY, COLORED = 6.0, 20.0  # mean difference between the highest and the lowest channel


def control_advice(placed: Sequence[Placed], looks: Mapping[tuple[str, str], Look], memo: Path | str) -> list[Problem]:
    """Return advice about the control images decoded so far.

    looks   image key -> measurements of the training image
    memo    where measurements of the control images are stored
    """
    pairs = {each.image.key: (each.image, path) for each in placed if (path := each.image.control)}
    if not pairs:
        return []
    files = {path: file_at(path, "") for _, path in pairs.values()}
    measured = known_looks(Memo(memo), list(files.values()))
    decoded = [(image, path) for image, path in pairs.values() if path in measured and image.key in looks]
    blank = [image for image, path in decoded if _one_color(path, measured[path])]
    same_hash = [(image, path) for image, path in decoded if looks[image.key].dhash == measured[path].dhash][
        :MAX_COMPARED
    ]
    copies = [image for image, path in same_hash if image not in blank and _is_copy(image, path)]
    copies = [] if _mostly_softer(copies) else copies
    what = f"{{n}} {'shows' if len(blank) == 1 else 'show'} nothing but one color, such as black: {{names}}"
    fix = "make them again, with lower thresholds for edges, or remove these images"
    if any(image.control and measured[image.control].transparent for image in blank):
        fix = "save them without transparency: transparent parts are black"
    problems = _control_problem(blank, len(decoded), what, fix, "control.blank")
    what = f"{{n}} {'is the image itself' if len(copies) == 1 else 'are the images themselves'}: {{names}}"
    fix = "make control images of them (Control images on Tools), or choose another folder"
    return [*problems, *_control_problem(copies, len(decoded), what, fix, "control.is-the-image"), *_exchanged(decoded)]


def _control_problem(images: Sequence[ImageInfo], total: int, what: str, fix: str, code: str) -> list[Problem]:
    """Return a problem that names these images, or [] for none: a warning if they are over half of `total`, else advice.
    what: template with {n} and {names}"""
    level = "warning" if 2 * len(images) > total else "advice"
    where = _location(images[0]) if images else ""
    return about(images, what, fix, code, level, where=where, noun="control image")


def _one_color(path: Path, look: Look) -> bool:
    """Return whether a control image was decoded and shows a single color, where transparent parts are black.
    look: its measurements, of which those of lines are on white"""
    if look.transparent and not look.reason:
        return look.brightest == 0 and (small := _small_or_none(path)) is not None and not np.ptp(small)
    return not look.reason and look.blur == 0 and look.border == 1


def _exchanged(decoded: Sequence[tuple[ImageInfo, Path]]) -> list[Problem]:
    """Return a warning that the folders are exchanged, if images are gray and their control images (the paths) colored; else []."""
    step = max(1, len(decoded) // MAX_SAMPLED)
    colors = [(_chroma(image.path), _chroma(path)) for image, path in decoded[::step]]
    if len(colors) < 2 or not all(of_image < GRAY and of_control > COLORED for of_image, of_control in colors):
        return []
    what = "The images are gray and their control images colored: the folders seem to be exchanged"
    fix = "choose the folder of the colored images as the image folder, and the other one for the control images"
    return [Problem(what, _location(decoded[0][0]), fix, "warning", code="control.exchanged")]


def _location(image: ImageInfo) -> str:
    """Return the folder of the image's control image, or the image itself without one, as text."""
    return printable(image.control.parent if image.control else image.path)


def _is_copy(image: ImageInfo, control: Path) -> bool:
    """Return whether a control image is the same file as the image, or looks the same at 16 x 16 pixels."""
    if os.path.realpath(image.path) == os.path.realpath(control):
        return True
    first, second = _small_or_none(image.path), _small_or_none(control)
    return first is not None and second is not None and float(np.abs(first - second).mean()) <= SAME


def _mostly_softer(images: Sequence[ImageInfo]) -> bool:
    """Return whether most control images are blurrier than their images (blur and tile preprocessors), so not copies of them."""
    sampled = images[:: max(1, len(images) // MAX_SAMPLED)][:MAX_SAMPLED]
    soft = [each for each in sampled if each.control and _sharpness(each.control) < SOFT * _sharpness(each.path)]
    return 2 * len(soft) > len(sampled)


def _sharpness(path: Path) -> float:
    """Return the Laplacian variance of an image's center at full resolution; 0 for an unreadable image."""
    try:
        return _center_sharpness(path)
    except (OSError, BrokenImage):
        return 0.0


@cached_until_changed(512, missing=0.0)
def _center_sharpness(path: Path) -> float:
    """Return the Laplacian variance of the central 512 x 512 pixels, cached until the file changes."""
    image = open_decoded(path).on(BLACK).convert("L")
    left, top = (max(0, (side - DETAIL) // 2) for side in image.size)
    middle = image.crop((left, top, min(left + DETAIL, image.width), min(top + DETAIL, image.height)))
    return laplacian_variance(np.asarray(middle, dtype=np.float32))


def _chroma(path: Path) -> float:
    """Return the mean difference between the highest and the lowest channel (0 to 255): 0 for gray or unreadable images."""
    small = _small_or_none(path)
    return 0.0 if small is None else float(np.ptp(small, axis=2).mean())


def _small_or_none(path: Path) -> np.ndarray | None:
    """Return the image at 16 x 16 pixels, float32 [16, 16, 3]; None if it cannot be read."""
    try:
        return _small(path)
    except (OSError, BrokenImage):
        return None


@cached_until_changed(512, missing=None)
def _small(path: Path) -> np.ndarray | None:
    """Return the image at 16 x 16 pixels, float32 [16, 16, 3], levels 0 to 255."""
    image = open_decoded(path, enough=(4 * SIDE, 4 * SIDE)).on(BLACK)
    return np.asarray(image.resize((SIDE, SIDE), Image.Resampling.BOX), dtype=np.float32)
