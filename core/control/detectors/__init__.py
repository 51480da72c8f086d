"""Detectors of faces, hands or people in an image; registered ones are choices of the detailer."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from core import extensions
from core.settings.generation.detailer import DetailerSettings
from core.settings.growth import add_choice

if TYPE_CHECKING:
    from PIL.Image import Image

Box = tuple[float, float, float, float]  # left, top, right, bottom in pixels
Find = Callable[["Image", float], Sequence[Box]]  # (RGB image, lowest confidence) -> boxes, the surest first

FILE_CONFIDENCE = 0.3  # usual confidence, ADetailer's


@dataclass(frozen=True)
class Detector:
    """A registered detector.

    open         opens the detector: a context manager that gives its `Find` function
    check        raises ProblemsError if the detector cannot run on this machine
    confidence   default lowest confidence, 0 to 1
    """

    name: str
    title: str
    open: Callable[[], AbstractContextManager[Find]]
    check: Callable[[], object] = lambda: None
    confidence: float = FILE_CONFIDENCE


DETECTORS: dict[str, Detector] = {}


def register(detector: Detector) -> None:
    """Register a detector and add it to the choices of the detailer's `ad_model`."""
    DETECTORS[detector.name] = detector
    add_choice(DetailerSettings, "ad_model", detector.name, detector.title)


def lowest_confidence(settings: DetailerSettings) -> float:
    """Return the lowest confidence of boxes to use, 0 to 1: `ad_confidence`, or the detector's default if that is None."""
    default = FILE_CONFIDENCE if settings.ad_model_file else DETECTORS[settings.ad_model].confidence
    return default if settings.ad_confidence is None else settings.ad_confidence


@contextmanager
def _faces() -> Iterator[Find]:
    """Open the MTCNN face detector as a `Find` function."""
    from core.control.detectors.mtcnn import FaceDetector

    detector = FaceDetector()
    yield lambda image, lowest: [
        (face.left, face.top, face.right, face.bottom) for face in detector.find(image, lowest)
    ]


_check_faces = extensions.later("core.control.detectors.mtcnn", "weights_folder")
register(Detector("face", "Faces", _faces, _check_faces, confidence=0.9))
