"""A model that finds people in an image."""

from abc import abstractmethod

import numpy as np

from core.control.hints.one_image import ProfiledModel
from core.control.hints.pose.drawing import draw
from core.control.hints.pose.person import Person


class PoseModel(ProfiledModel):
    """Makes control images of people's poses."""

    @abstractmethod
    def find(self, image: np.ndarray) -> list[Person]:
        """The people in an image, RGB uint8 [H, W, 3]. Raises ProblemsError."""

    def make(self, image: np.ndarray) -> np.ndarray:
        """The control image of an image at its size, both RGB uint8 [H, W, 3]; black without people."""
        height, width = image.shape[:2]
        return draw(self.find(image), (width, height))
