"""Faces cut out upright, named `<name>_x_y_width_height` as the face crop of a training reads them.

The rules are those of sd-scripts' detect_face_rotate: turned about the face's middle by the line of the eyes with the
surroundings mirrored, a window around the face moved to lie inside the image.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
from PIL import Image

from core.dataset.images.colors import WHITE
from core.dataset.images.opening import Opened, open_decoded
from core.dataset.images.resize import resize
from core.settings.tools.images import FaceSettings
from core.tools.images.copies import Box, Made, Skip
from core.tools.images.face_detector import Face


class Detector(Protocol):
    def find(self, image: Image.Image, min_score: float) -> list[Face]: ...


def face_copies(path: Path, asked: FaceSettings, detector: Detector) -> tuple[list[Made], list[str]]:
    """A PNG for each face that qualifies, the largest first, and why others were left out."""
    image = open_decoded(path).on(WHITE)
    faces = detector.find(image, asked.face_min_score)
    if not faces:
        raise Skip("has no detected face")
    left_out: list[str] = []
    fitting = []
    for face in faces:
        size = max(face.size)
        if size < asked.face_min_size or (asked.face_max_size is not None and size > asked.face_max_size):
            left_out.append(f"has a face of {size:.0f} pixels, outside the min and max face size")
        else:
            fitting.append(face)
    if not asked.multiple_faces:
        left_out += ["has another, smaller face"] * (len(fitting) - 1)
        fitting = fitting[:1]
    made: list[Made] = []
    for number, face in enumerate(fitting, 1):
        try:
            copy, info = upright(image, face, asked)
        except Skip as reason:
            left_out.append(str(reason))
            continue
        index = f"_{number:02d}" if len(fitting) > 1 else ""
        made.append(
            Made(f"{path.stem}{index}_" + "_".join(f"{value:04d}" for value in info), Opened(copy, None), "png")
        )
    return made, left_out


def upright(image: Image.Image, face: Face, asked: FaceSettings) -> tuple[Image.Image, Sequence[int]]:
    """The window around a face, and the face's (x, y of its middle, width, height) in it."""
    scale = 1.0
    size = max(face.size)
    window = asked.crop_size if asked.face_crop == "size" else None
    if asked.face_crop == "ratio":
        wide, high = (int(size * ratio + 0.5) for ratio in asked.face_crop_ratio)
        window = (min(wide, image.width), min(high, image.height))
    if asked.face_resize != "none" and window is not None and asked.face_crop == "size":
        covers = max(window[0] / image.width, window[1] / image.height)
        # Never smaller than what covers the window: there is nothing outside the image to show.
        scale = covers if asked.face_resize == "fit" else max(covers, asked.resize_face_size / size)
    turned = rotated(image, face.tilt, face.center) if asked.face_rotate else image
    if scale != 1.0:
        turned = resize(
            turned, (math.ceil(image.width * scale - 1e-9), math.ceil(image.height * scale - 1e-9)), asked.interpolation
        )
    box = (0, 0, *turned.size)
    if window is not None:
        if window[0] > turned.width or window[1] > turned.height:
            raise Skip(f"is {turned.width} x {turned.height}, smaller than the crop of {window[0]} x {window[1]}")
        box = around(face.center[0] * scale, face.center[1] * scale, window, turned.size)
    middle = (face.center[0] * scale - box[0], face.center[1] * scale - box[1])
    sides = (face.size[0] * scale, face.size[1] * scale)
    return turned.crop(box), [max(0, round(value)) for value in (*middle, *sides)]


def around(x: float, y: float, window: tuple[int, int], size: tuple[int, int]) -> Box:
    """The window with its middle as near to (x, y) as it lies inside an image of that size."""
    left = min(max(round(x - window[0] / 2), 0), size[0] - window[0])
    top = min(max(round(y - window[1] / 2), 0), size[1] - window[1])
    return left, top, left + window[0], top + window[1]


def rotated(image: Image.Image, degrees: float, center: tuple[float, float]) -> Image.Image:
    """Turned anticlockwise about a point, at its own size; what comes in from outside is the image mirrored."""
    if abs(degrees) < 0.05:
        return image
    width, height = image.size
    cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    x0, y0 = center

    def source(x: float, y: float) -> tuple[float, float]:
        return x0 + cos * (x - x0) - sin * (y - y0), y0 + sin * (x - x0) + cos * (y - y0)

    corners = [source(x, y) for x in (0, width) for y in (0, height)]
    left, top = (max(0, math.ceil(2 - min(corner[axis] for corner in corners))) for axis in (0, 1))
    right = max(0, math.ceil(max(corner[0] for corner in corners) + 2 - width))
    bottom = max(0, math.ceil(max(corner[1] for corner in corners) + 2 - height))
    wide = Image.fromarray(np.pad(np.asarray(image), ((top, bottom), (left, right), (0, 0)), mode="symmetric"))
    start = source(0, 0)
    matrix = (cos, -sin, start[0] + left, sin, cos, start[1] + top)
    return wide.transform(image.size, Image.Transform.AFFINE, matrix, Image.Resampling.BICUBIC)
