"""Boxes around people by an ONNX detector: YOLOX's raw head (arXiv:2107.08430), or boxes with scores."""

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
    """Detects people.

    The first output is [N, M, C]: YOLOX's raw head (center, size, objectness, class scores; M is the number of cells of
    the three grids) or, with another M or C = 5, corners in the input's pixels and scores. People are the first class.
    """

    def find(self, image: np.ndarray) -> np.ndarray:
        """float [P, 4]: left, top, right, bottom in the pixels of an image, RGB uint8 [H, W, 3], best first. Raises
        ProblemsError for outputs that are no boxes."""
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
        shape = shapes[0]
        if len(shape) != 3 or shape[0] != self.batch or shape[1] > MAX_BOXES or not 5 <= shape[2] <= MAX_NUMBERS:
            raise self.refused(f"returns {[*shape]}, no boxes around people")
        return [0]


def corners_of(values: np.ndarray, size: Size) -> tuple[np.ndarray, np.ndarray]:
    """Corners [M, 4] in the pixels of an input of (width, height), and scores [M] of people, of every box.

    values: [M, C] of an image, YOLOX's raw head or corners and scores (see `PersonDetector`). Corners of a damaged head can be
    infinite.
    """
    cells, strides = grid(size)
    if values.shape[1] == 5 or len(values) != len(cells):
        return values[:, :4], values[:, 4]
    centers = (values[:, :2] + cells) * strides
    with np.errstate(over="ignore"):  # infinity is refused
        halves = np.exp(values[:, 2:4]) * strides / 2
    return np.concatenate([centers - halves, centers + halves], axis=1), values[:, 4] * values[:, 5]


def grid(size: Size) -> tuple[np.ndarray, np.ndarray]:
    """(x, y) of each cell [M, 2], row by row and one stride after the other, and the strides [M, 1]."""
    cells, strides = [], []
    for stride in STRIDES:
        y, x = np.mgrid[: size[1] // stride, : size[0] // stride]
        cells.append(np.stack([x.ravel(), y.ravel()], axis=1))
        strides.append(np.full((x.size, 1), stride))
    return np.concatenate(cells), np.concatenate(strides)


def non_max_suppression(corners: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """The best boxes, at most `MAX_PEOPLE`, without those that overlap a better one by more than `OVERLAP`."""
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
