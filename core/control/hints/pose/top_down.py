"""DWPose, RTMPose and RTMW: a network estimates the keypoints of one person in a crop, as positions along x and y (SimCC).

RTMPose: arXiv:2303.07399; SimCC: arXiv:2107.03332; the steps around the network are those of DWPose's inference.
"""

from collections.abc import Sequence

import numpy as np
from PIL import Image

from core.control.hints.models import KEYPOINTS
from core.control.hints.one_image import Size, normalized
from core.control.hints.pose.detector import USUAL_SIZE, PersonDetector
from core.control.hints.pose.finding import PoseModel
from core.control.hints.pose.person import Person, person_of

USUAL = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225), "size": 288}
PADDING = 1.25  # of a person's box


class DWPose(PoseModel):
    """A SimCC pose model: estimates a pose in each box of a person detector; without one, a single pose in the whole image."""

    defaults = USUAL
    _detector: PersonDetector | None = None

    @property
    def usual_size(self) -> Size:
        """The default input size, (width, height) in the ratio 3:4."""
        return self.profile.size, self.profile.size * 4 // 3

    def prepare(self) -> None:
        """Check that there are two outputs, and load the person detector if there is one. Raises ProblemsError."""
        self._size = self.fixed or self.usual_size
        if len(self.outputs) != 2:
            raise self.refused(f"returns {len(self.outputs)} outputs ({', '.join(self.outputs)[:200]}), not x and y")
        if file := self.source.detector:
            self._detector = PersonDetector(file, file.name, self.source.where, *self.opened_with, USUAL_SIZE)

    def close(self) -> None:
        """Close the model and its person detector."""
        super().close()
        if self._detector is not None:
            self._detector.close()

    def find(self, image: np.ndarray) -> list[Person]:
        """Return the people in an image, RGB uint8 [H, W, 3], with keypoints in its pixels. Raises ProblemsError."""
        height, width = image.shape[:2]
        boxes = np.array([[0.0, 0, width, height]]) if self._detector is None else self._detector.find(image)
        return [self._person(image, box) for box in boxes]

    def _person(self, image: np.ndarray, box: np.ndarray) -> Person:
        """Estimate the pose inside a box [4] (left, top, right, bottom), both in pixels of the image, RGB uint8 [H, W, 3]."""
        center, extent = region_of(box, self._size)
        pixels = normalized(cropped(image, center, extent, self._size), self.profile)
        along_x, along_y = self.run(pixels, self.outputs, self._axes)
        points, scores = keypoints_of(along_x, along_y, center, extent)
        points[scores < self.profile.score] = np.nan
        return person_of(points, self.profile)

    def _axes(self, shapes: Sequence[Sequence[int]]) -> list[int]:
        """Select the output for x and the one for y (a `Pick` function) by the same number of positions per pixel.

        Raises ProblemsError for other outputs.
        """
        first, second = shapes
        if len(first) != 3 or len(second) != 3 or [*first[:2]] != [*second[:2]] or first[0] != self.batch:
            raise self.refused(f"returns {[*first]} and {[*second]}, not x and y of keypoints")
        if first[1] not in KEYPOINTS:
            raise self.refused(f"finds {first[1]} keypoints; only 17, 26 (Halpe) and 133 (whole body) are known")
        (width, height), across, down = self._size, first[2], second[2]
        if across >= width and across * height == down * width:
            return [0, 1]
        if down >= width and down * height == across * width:
            return [1, 0]
        raise self.refused(f"returns {across} and {down} positions for an input of {width} x {height} pixels")


def region_of(box: np.ndarray, size: Size) -> tuple[np.ndarray, np.ndarray]:
    """Return (center, extent), each (x, y), of the region that surrounds a box with padding, in the aspect ratio of `size`.

    box    left, top, right, bottom in pixels of the image
    size   (width, height) of the model's input
    """
    center = (box[:2] + box[2:]) / 2
    across, down = (box[2:] - box[:2]) * PADDING
    ratio = size[0] / size[1]
    return center, np.array([max(across, down * ratio), max(down, across / ratio)])


def cropped(image: np.ndarray, center: np.ndarray, extent: np.ndarray, size: Size) -> np.ndarray:
    """Crop a region from an image and resize it to `size` (width, height): uint8 [H, W, 3]; black outside the image.

    center, extent   of the region, (x, y) in pixels of the image; pixel i along x shows position i * extent / width + center -
                     extent / 2, interpolated
    """
    step = extent / size
    # Pillow reckons with the corners of pixels: the center of each is half a pixel off its index, in both images
    x, y = center - extent / 2 + 0.5 - step / 2
    matrix = (step[0], 0, x, 0, step[1], y)
    return np.asarray(Image.fromarray(image).transform(size, Image.Transform.AFFINE, matrix, Image.Resampling.BILINEAR))


def keypoints_of(
    along_x: np.ndarray, along_y: np.ndarray, center: np.ndarray, extent: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Decode SimCC outputs to keypoints (x, y) [K, 2] in pixels of the image, and scores [K].

    along_x, along_y   [K, positions]
    center, extent     (x, y) of the region of the image that the model saw
    """
    positions = np.stack([each.argmax(axis=1) / each.shape[1] for each in (along_x, along_y)], axis=1)
    return positions * extent + center - extent / 2, np.minimum(along_x.max(axis=1), along_y.max(axis=1))
