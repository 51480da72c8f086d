"""The image tools, each made of what it does to one image."""

from __future__ import annotations

import os
from pathlib import Path

from core.dataset.sources.files import split_label
from core.record.context import JobContext, Outcome
from core.settings.tools.images import (
    ConvertSettings,
    CropSettings,
    FaceSettings,
    NumberSettings,
    ResizeSettings,
    UndoNumberSettings,
)
from core.tools.images.copies import Made, Skip, converted_copy, cropped_copy, resized_copies
from core.tools.images.face_detector import FaceDetector
from core.tools.images.faces import Detector, face_copies
from core.tools.images.folders import check_images, images_to_use, make_copies
from core.tools.images.number import numbered_stems, rename_back, rename_in_place


def resize(asked: ResizeSettings, context: JobContext) -> Outcome:
    return make_copies(asked, context, lambda path: resized_copies(path, asked))


def crop(asked: CropSettings, context: JobContext) -> Outcome:
    return make_copies(asked, context, lambda path: ([cropped_copy(path, asked)], []))


def convert(asked: ConvertSettings, context: JobContext) -> Outcome:
    return make_copies(asked, context, lambda path: ([converted_copy(path, asked)], []))


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
