"""Detectors of faces, hands or persons in an image. Registered ones are choices of the detailer."""

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

    open         () -> a context with its function
    check        raises ProblemsError if it cannot run on this machine
    confidence   its usual lowest confidence
    """

    name: str
    title: str
    open: Callable[[], AbstractContextManager[Find]]
    check: Callable[[], object] = lambda: None
    confidence: float = FILE_CONFIDENCE


DETECTORS: dict[str, Detector] = {}


def register(detector: Detector) -> None:
    """Register a detector as a choice of the detailer."""
    DETECTORS[detector.name] = detector
    add_choice(DetailerSettings, "ad_model", detector.name, detector.title)


def lowest_confidence(settings: DetailerSettings) -> float:
    """The confidence that is set, else the detector's usual one."""
    default = FILE_CONFIDENCE if settings.ad_model_file else DETECTORS[settings.ad_model].confidence
    return default if settings.ad_confidence is None else settings.ad_confidence


@contextmanager
def _faces() -> Iterator[Find]:
    from core.control.detectors.mtcnn import FaceDetector

    detector = FaceDetector()
    yield lambda image, lowest: [
        (face.left, face.top, face.right, face.bottom) for face in detector.find(image, lowest)
    ]


_check_faces = extensions.later("core.control.detectors.mtcnn", "weights_folder")
register(Detector("face", "Faces", _faces, _check_faces, confidence=0.9))
