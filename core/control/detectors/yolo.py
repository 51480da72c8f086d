"""Object detection by an ONNX model: YOLOX (arXiv:2107.08430) or Ultralytics' YOLOv8 to YOLO26, as their exporters write it."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from core.control.detectors import Box
from core.control.hints.models import ABOUT, Profile
from core.control.hints.one_image import OneImageModel, letterboxed, normalized
from core.control.hints.pose.detector import (
    MAX_BOXES,
    MAX_NUMBERS,
    PAD_LEVEL,
    USUAL_SIZE,
    YOLOX_PROFILE,
    corners_of,
    grid,
    non_max_suppression,
)
from core.formats.onnx.file import onnx_property
from core.formats.onnx.providers import CPU
from core.record.cancel import CancelToken
from core.record.problems import ProblemsError

if TYPE_CHECKING:
    from PIL.Image import Image

ULTRALYTICS = Profile()  # RGB from 0 to 1
NAME = re.compile(r"(\d{1,5}): *['\"]([^'\"]*)")  # of a class, in the file's metadata
NUMBER = re.compile(r"\d{1,5}")
MASK_NUMBERS = 32  # of each box of a segmentation model, whose second output has as many masks


class YoloDetector(OneImageModel):
    """Detects objects with an ONNX model on the CPU.

    The first output is one of: [N, 4 + classes, M] with centers, sizes and class scores (YOLOv8, YOLO11; mask coefficients
    are ignored); [N, M, 6] with corners, score and class (YOLOv10, YOLO26); YOLOX's raw head, of which only people are read.
    """

    def __init__(self, file: Path, where: str, cancel: CancelToken, classes: str = ""):
        """Load the model. Raises ProblemsError.

        where     the setting that names the model, for problems
        classes   names or numbers of the classes to detect, separated by commas; "" for all
        """
        self._classes = class_numbers(file, classes)
        super().__init__(file, file.name, where, [CPU], "cpu", cancel, USUAL_SIZE)
        self._profile = ULTRALYTICS

    def find(self, image: Image, lowest: float) -> list[Box]:
        """Return the boxes in an RGB image with a confidence of at least `lowest` (0 to 1), highest first. Raises ProblemsError."""
        size = self.fixed or USUAL_SIZE
        pixels, scale = letterboxed(np.asarray(image.convert("RGB")), size, PAD_LEVEL)
        values = self._values(pixels)
        if is_yolox(values, size) and self._profile != YOLOX_PROFILE:  # known by its output alone
            self._profile = YOLOX_PROFILE
            values = self._values(pixels)
        corners, scores = corners_of(values, size) if is_yolox(values, size) else self._decoded(values)
        corners = (corners / scale).clip(0, [image.width, image.height] * 2)
        valid = (scores >= lowest) & (corners[:, 2:] - corners[:, :2] >= 1).all(axis=1)
        boxes = non_max_suppression(corners[valid], scores[valid])
        return [(float(left), float(top), float(right), float(bottom)) for left, top, right, bottom in boxes]

    def _values(self, pixels: np.ndarray) -> np.ndarray:
        """Run the model on an RGB image, uint8 [H, W, 3], and return its first output without the batch dimension."""
        return self.run(normalized(pixels, self._profile), self.outputs, self._boxes)[0]

    def _boxes(self, shapes: Sequence[Sequence[int]]) -> list[int]:
        """Select the first output (a `Pick` function). Raises ProblemsError if its shape is not that of YOLO boxes."""
        shape = shapes[0]
        if (
            len(shape) != 3
            or shape[0] != self.batch
            or max(shape[1:]) > MAX_BOXES
            or not 5 <= min(shape[1:]) <= MAX_NUMBERS
        ):
            raise self.refused(f"returns {[*shape]}, no boxes of YOLO")
        return [0]

    def _decoded(self, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Decode one image's Ultralytics output.

        Returns corners [M, 4] in pixels of the model's input, and scores [M], 0 for classes that are not wanted. Raises
        ProblemsError for an output of another shape.
        """
        if values.shape[1] == 6:
            return values[:, :4], np.where(_wanted(values[:, 5], self._classes), values[:, 4], 0)
        by_class = values[4 : len(values) - (MASK_NUMBERS if len(self.outputs) > 1 else 0)].T
        if values.shape[0] >= values.shape[1] or not by_class.size:
            raise self.refused(f"returns {[*values.shape]}, no boxes of YOLO")
        scores = np.where(_wanted(np.arange(by_class.shape[1]), self._classes), by_class, 0).max(axis=1)
        centers, halves = values[:2].T, values[2:4].T / 2
        return np.concatenate([centers - halves, centers + halves], axis=1), scores


def class_numbers(file: Path, classes: str) -> list[int]:
    """Return the numbers of the classes in `classes`, names or numbers separated by commas; [] for "", which means all.

    Raises ProblemsError for a class that the model file does not name.
    """
    numbers = {name.casefold(): number for number, name in NAME.findall(onnx_property(file, "names"))}
    requested = [each.strip().casefold() for each in classes.split(",") if each.strip()]
    numbered = [numbers.get(each, each) for each in requested]
    for each in numbered:
        if not (each in numbers.values() if numbers else NUMBER.fullmatch(each)):
            what, choices = f"The model {file.name} has no class '{each}'", ", ".join(numbers)[:200]
            fix = f"choose from {choices}" if choices else "write numbers: it names no classes"
            raise ProblemsError.one(what, "detailer.ad_model_classes", fix, f"{ABOUT}.class")
    return [int(each) for each in numbered]


def is_yolox(values: np.ndarray, size: tuple[int, int]) -> bool:
    """Return whether an output [M, C] is YOLOX's raw head for a model input of (width, height)."""
    return values.shape[1] > 5 and len(values) == len(grid(size)[0])


def _wanted(classes: np.ndarray, chosen: Collection[int]) -> np.ndarray:
    """Return which of the classes are in `chosen`, a bool array; all of them if `chosen` is empty."""
    return np.isin(classes.round(), list(chosen)) if chosen else np.ones(classes.shape, bool)
