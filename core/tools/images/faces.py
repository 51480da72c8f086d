"""The tool that crops faces, rotated upright, to files named `<name>_x_y_width_height`, as a training's face crop reads them.

As sd-scripts' detect_face_rotate: rotated around the face's center to level the eyes, with mirrored surroundings; the window around
the face is moved to lie inside the image.
"""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
from PIL import Image

from core.control.detectors.mtcnn import Face, FaceDetector
from core.dataset.images.colors import WHITE
from core.dataset.images.opening import DecodedImage, open_decoded
from core.dataset.images.resize import resize
from core.dataset.sources.files import split_label
from core.record.context import JobContext, Outcome
from core.settings.tools.images import FaceSettings
from core.tools.images.copies import Box
from core.tools.images.folders import Copy, FolderPlan, Skip, make_copies


class Detector(Protocol):
    """Detects faces, as FaceDetector does."""

    def find(self, image: Image.Image, min_score: float) -> list[Face]: ...


def do(settings: FaceSettings, plan: FolderPlan, context: JobContext, detector: Detector | None = None) -> Outcome:
    """Write the face crops. Raises ProblemsError if there are no images.
    detector: finds the faces; None: a FaceDetector"""
    finder = detector or FaceDetector()
    return make_copies(settings, plan, context, lambda path: face_copies(path, settings, finder))


def face_copies(path: Path, settings: FaceSettings, detector: Detector) -> tuple[list[Copy], list[str]]:
    """Return (a PNG copy for each qualifying face, the largest first; messages about faces left out).

    Raises Skip for masks, control images, and images without faces.
    """
    if split_label(path.stem)[1]:
        raise Skip("is a mask or control image")
    image = open_decoded(path).on(WHITE)
    faces = detector.find(image, settings.face_min_score)
    if not faces:
        raise Skip("has no detected face")
    left_out: list[str] = []
    fitting = []
    for face in faces:
        size = max(face.size)
        if size < settings.face_min_size or (settings.face_max_size is not None and size > settings.face_max_size):
            left_out.append(f"has a face of {size:.0f} pixels, outside the min and max face size")
        else:
            fitting.append(face)
    if not settings.multiple_faces:
        left_out += ["has another, smaller face"] * (len(fitting) - 1)
        fitting = fitting[:1]
    copies: list[Copy] = []
    for number, face in enumerate(fitting, 1):
        try:
            crop, info = face_window(image, face, settings)
        except Skip as reason:
            left_out.append(str(reason))
            continue
        index = f"_{number:02d}" if len(fitting) > 1 else ""
        copies.append(
            Copy(f"{path.stem}{index}_" + "_".join(f"{value:04d}" for value in info), DecodedImage(crop, None), "png")
        )
    return copies, left_out


def face_window(image: Image.Image, face: Face, settings: FaceSettings) -> tuple[Image.Image, Sequence[int]]:
    """Return (crop around a face, [x and y of the face's center, its width, its height] in the crop, in pixels).

    Raises Skip if the crop does not fit into the image.
    """
    scale = 1.0
    size = max(face.size)
    window = settings.crop_size if settings.face_crop == "size" else None
    if settings.face_crop == "ratio":
        crop_width, crop_height = (int(size * ratio + 0.5) for ratio in settings.face_crop_ratio)
        window = (min(crop_width, image.width), min(crop_height, image.height))
    if settings.face_resize != "none" and window is not None and settings.face_crop == "size":
        min_scale = max(window[0] / image.width, window[1] / image.height)
        # Never smaller than what covers the window: there is nothing outside the image to show.
        scale = min_scale if settings.face_resize == "fit" else max(min_scale, settings.resize_face_size / size)
    result = rotated(image, face.tilt, face.center) if settings.face_rotate else image
    if scale != 1.0:
        result = resize(
            result,
            (math.ceil(image.width * scale - 1e-9), math.ceil(image.height * scale - 1e-9)),
            settings.interpolation,
        )
    box = (0, 0, *result.size)
    if window is not None:
        if window[0] > result.width or window[1] > result.height:
            raise Skip(f"is {result.width} x {result.height}, smaller than the crop of {window[0]} x {window[1]}")
        box = window_around(face.center[0] * scale, face.center[1] * scale, window, result.size)
    center = (face.center[0] * scale - box[0], face.center[1] * scale - box[1])
    sides = (face.size[0] * scale, face.size[1] * scale)
    return result.crop(box), [max(0, round(value)) for value in (*center, *sides)]


def window_around(x: float, y: float, window: tuple[int, int], size: tuple[int, int]) -> Box:
    """Return the box (left, top, right, bottom) of size `window`, inside an image of `size`, whose center is nearest to (x, y)."""
    left = min(max(round(x - window[0] / 2), 0), size[0] - window[0])
    top = min(max(round(y - window[1] / 2), 0), size[1] - window[1])
    return left, top, left + window[0], top + window[1]


def rotated(image: Image.Image, degrees: float, center: tuple[float, float]) -> Image.Image:
    """Rotate an image counterclockwise around a point, keeping its size, with mirrored borders."""
    if abs(degrees) < 0.05:
        return image
    width, height = image.size
    cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    x0, y0 = center

    def source(x: float, y: float) -> tuple[float, float]:
        """Return the point of the original image that is rotated to (x, y)."""
        return x0 + cos * (x - x0) - sin * (y - y0), y0 + sin * (x - x0) + cos * (y - y0)

    corners = [source(x, y) for x in (0, width) for y in (0, height)]  # bicubic reads 2 pixels more
    left, top = (max(0, math.ceil(2 - min(corner[axis] for corner in corners))) for axis in (0, 1))
    right = max(0, math.ceil(max(corner[0] for corner in corners) + 2 - width))
    bottom = max(0, math.ceil(max(corner[1] for corner in corners) + 2 - height))
    padded = Image.fromarray(np.pad(np.asarray(image), ((top, bottom), (left, right), (0, 0)), mode="symmetric"))
    start = source(0, 0)
    matrix = (cos, -sin, start[0] + left, sin, cos, start[1] + top)
    return padded.transform(image.size, Image.Transform.AFFINE, matrix, Image.Resampling.BICUBIC)
