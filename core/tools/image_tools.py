"""The image tools, each made of what it does to one image."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
from PIL import Image

from core.dataset.doctor.trash import split_label
from core.dataset.images.colors import WHITE
from core.dataset.images.opening import Opened, open_decoded
from core.record.context import JobContext, Outcome
from core.settings.tools.images import (
    ConvertSettings,
    CropSettings,
    EdgeSettings,
    FaceSettings,
    NumberSettings,
    ResizeSettings,
    UndoNumberSettings,
)
from core.tools.faces import FaceDetector
from core.tools.image_copies import Made, Skip, converted_copy, cropped_copy, resized_copies
from core.tools.image_faces import Detector, face_copies
from core.tools.image_numbers import numbered_stems, rename_back, rename_in_place
from core.tools.images import check_images, images_to_use, make_copies


def resize(asked: ResizeSettings, context: JobContext) -> Outcome:
    return make_copies(asked, context, lambda path: resized_copies(path, asked))


def crop(asked: CropSettings, context: JobContext) -> Outcome:
    return make_copies(asked, context, lambda path: ([cropped_copy(path, asked)], []))


def convert(asked: ConvertSettings, context: JobContext) -> Outcome:
    return make_copies(asked, context, lambda path: ([converted_copy(path, asked)], []))


def edges(asked: EdgeSettings, context: JobContext) -> Outcome:
    def edges_of(path: Path) -> tuple[list[Made], list[str]]:
        image = open_decoded(_no_label(path)).on(WHITE)
        return [Made(path.stem, Opened(edge_image(image, asked.edge_low, asked.edge_high), None), "png")], []

    return make_copies(asked, context, edges_of)


def faces(asked: FaceSettings, context: JobContext, detector: Detector | None = None) -> Outcome:
    """detector: finds faces; by default the one that is installed."""
    check_images(asked, context.workspace)
    finder = detector or FaceDetector()
    return make_copies(asked, context, lambda path: face_copies(_no_label(path), asked, finder))


def number(asked: NumberSettings, context: JobContext) -> Outcome:
    """Copies under numbers, or the files themselves renamed."""
    folder, _ = check_images(asked, context.workspace)
    images, others = images_to_use(folder, asked.recursive)
    own = [path for path in images if not split_label(path.stem)[1]]
    if asked.number_in_place:
        record, count = rename_in_place(own, asked, folder)
        line = f"{count} files renamed; 'Undo numbering' reverts it" if record else "All files already have these names"
        return Outcome(lines=[line], facts={"output": str(folder), "renamed": count, "others": others, "undo": record})
    stems = {(path.parent, path.stem): stem for path, stem in numbered_stems(own, asked).items()}
    return make_copies(asked, context, lambda path: ([_numbered(path, stems)], []))


def undo_number(asked: UndoNumberSettings, context: JobContext) -> Outcome:
    folder, _ = check_images(asked, context.workspace)
    count = rename_back(folder)
    return Outcome(lines=[f"{count} files have their original names again"], facts={"renamed": count})


def _no_label(path: Path) -> Path:
    if split_label(path.stem)[1]:
        raise Skip("is a mask or control image")
    return path


def _numbered(path: Path, stems: dict[tuple[Path, str], str]) -> Made:
    """A copy, byte for byte, under its number; a mask gets the number of its image, and its label again when it is saved."""
    base, label = split_label(path.stem)
    stem = stems.get((path.parent, base if label else path.stem))
    if stem is None:
        raise Skip("is a mask or control image without its image")
    if not os.access(path, os.R_OK):
        raise Skip("cannot be read, or is a broken link")
    return Made(stem, path, path.suffix[1:])


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
