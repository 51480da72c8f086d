"""Base class of ONNX models that estimate the poses of people in an image."""

from abc import abstractmethod

import numpy as np

from core.control.hints.one_image import ProfiledModel
from core.control.hints.pose.drawing import draw
from core.control.hints.pose.person import Person


class PoseModel(ProfiledModel):
    """An ONNX model that makes control images of people's poses."""

    @abstractmethod
    def find(self, image: np.ndarray) -> list[Person]:
        """Return the people in an image, RGB uint8 [H, W, 3], with keypoints in its pixels. Raises ProblemsError."""

    def make(self, image: np.ndarray) -> np.ndarray:
        """Return the control image of `image` in the same size, both RGB uint8 [H, W, 3]; all black if there are no people."""
        height, width = image.shape[:2]
        return draw(self.find(image), (width, height))
