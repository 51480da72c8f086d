"""Person detection by an ONNX model: YOLOX's raw head (arXiv:2107.08430), or boxes with scores."""

from collections.abc import Sequence

import numpy as np

from core.control.hints.models import Profile
from core.control.hints.one_image import OneImageModel, Size, letterboxed, normalized

USUAL_SIZE = (640, 640)  # of the input, where the model leaves it open
PAD_LEVEL = 114  # gray level around a smaller image
YOLOX_PROFILE = Profile(channels="BGR", scale="255")
STRIDES = (8, 16, 32)
MAX_BOXES, MAX_NUMBERS = 200_000, 1_000  # of an output: boxes, and values of each
MAX_PEOPLE = 50
LOWEST_SCORE, OVERLAP = 0.3, 0.45  # as DWPose


class PersonDetector(OneImageModel):
    """Detects people with an ONNX model.

    The first output is [N, M, C]: YOLOX's raw head (center, size, objectness, class scores; M is the number of cells of
    the three grids) or, for another M or C = 5, corners in pixels of the input and a score. People are the first class.
    """

    def find(self, image: np.ndarray) -> np.ndarray:
        """Return boxes around the people in an image, RGB uint8 [H, W, 3], the best first.

        Boxes are float [P, 4]: left, top, right, bottom in pixels of the image. Raises ProblemsError for outputs that are not boxes.
        """
        height, width = image.shape[:2]
        size = self.fixed or USUAL_SIZE
        pixels, scale = letterboxed(image, size, PAD_LEVEL)
        (values,) = self.run(normalized(pixels, YOLOX_PROFILE), self.outputs[:1], self._boxes)
        corners, scores = corners_of(values, size)
        if not np.isfinite(corners).all():
            raise self.refused("returns boxes that are not those of YOLOX's raw head", "not-finite")
        corners = (corners / scale).clip(0, [width, height, width, height])
        valid = (scores > LOWEST_SCORE) & (corners[:, 2] - corners[:, 0] >= 1) & (corners[:, 3] - corners[:, 1] >= 1)
        return non_max_suppression(corners[valid], scores[valid])

    def _boxes(self, shapes: Sequence[Sequence[int]]) -> list[int]:
        """Select the first output (a `Pick` function). Raises ProblemsError if its shape is not that of boxes."""
        shape = shapes[0]
        if len(shape) != 3 or shape[0] != self.batch or shape[1] > MAX_BOXES or not 5 <= shape[2] <= MAX_NUMBERS:
            raise self.refused(f"returns {[*shape]}, no boxes around people")
        return [0]


def corners_of(values: np.ndarray, size: Size) -> tuple[np.ndarray, np.ndarray]:
    """Return the corners [M, 4] and person scores [M] of all boxes in a detector's output, in pixels of its input.

    values   [M, C] of one image: YOLOX's raw head, or corners and scores (see `PersonDetector`)
    size     (width, height) of the input
    Corners of a damaged head can be infinite.
    """
    cells, strides = grid(size)
    if values.shape[1] == 5 or len(values) != len(cells):
        return values[:, :4], values[:, 4]
    centers = (values[:, :2] + cells) * strides
    with np.errstate(over="ignore"):  # infinity is refused
        halves = np.exp(values[:, 2:4]) * strides / 2
    return np.concatenate([centers - halves, centers + halves], axis=1), values[:, 4] * values[:, 5]


def grid(size: Size) -> tuple[np.ndarray, np.ndarray]:
    """Return the (x, y) [M, 2] and stride [M, 1] in pixels of each of YOLOX's grid cells for an input of (width, height).

    Cells are ordered row by row, one stride after the other.
    """
    cells, strides = [], []
    for stride in STRIDES:
        y, x = np.mgrid[: size[1] // stride, : size[0] // stride]
        cells.append(np.stack([x.ravel(), y.ravel()], axis=1))
        strides.append(np.full((x.size, 1), stride))
    return np.concatenate(cells), np.concatenate(strides)


def non_max_suppression(corners: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """Return the boxes [P, 4] of `corners` [M, 4] with the best `scores` [M], at most MAX_PEOPLE, best first.

    A box that overlaps a better one by an IoU above OVERLAP is left out.
    """
    remaining = corners[np.argsort(-scores, kind="stable")]
    boxes: list[np.ndarray] = []
    while len(remaining) and len(boxes) < MAX_PEOPLE:
        best, remaining = remaining[0], remaining[1:]
        boxes.append(best)
        inner = np.minimum(best[2:], remaining[:, 2:]) - np.maximum(best[:2], remaining[:, :2])
        common = inner.clip(0).prod(axis=1)
        areas = (remaining[:, 2:] - remaining[:, :2]).prod(axis=1)
        union = areas + (best[2:] - best[:2]).prod() - common
        remaining = remaining[common <= OVERLAP * union]
    return np.array(boxes).reshape(-1, 4)
