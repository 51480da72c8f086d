"""An ONNX model that is given one image after the other: its input checked, its outputs as floats."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from core.control.hints.models import ABOUT, Profile
from core.formats.onnx.file import MAX_INPUT, batch_too_large
from core.formats.onnx.process import ModelProcess, OfProcess
from core.record.cancel import CancelToken
from core.record.problems import ProblemsError

MAX_SIDE = 4096
LARGEST_NUMBER = 8  # bytes
FLOATS = ("tensor(float)", "tensor(float16)")
Size = tuple[int, int]  # (width, height)
Pick = Callable[[Sequence[Sequence[int]]], Sequence[int]]  # shapes of the outputs -> which to read


class OneImageModel(OfProcess):
    """A loaded model.

    provider, wanted   of onnxruntime: taken, and asked for
    layout, fixed      of its input: "NCHW" or "NHWC"; (width, height), or None where both are open
    outputs, batch     their names; images that it takes at once, all of which are the same here
    """

    def __init__(
        self, file: Path, title: str, where: str, wanted: Sequence[str], device: str, cancel: CancelToken, usual: Size
    ):
        """title, where: of its problems; wanted: execution providers in the order of preference; usual: of the input, for a side
        that the model leaves open"""
        self._title, self._where = title, where
        self._model = ModelProcess(file, wanted, device, cancel, self.refused)
        self.provider, self.wanted, self.outputs = self._model.provider, wanted[0], self._model.outputs
        self._room: tuple[int, ...] = ()
        try:
            self.layout, self.batch, self.fixed = self._input(usual)
        except BaseException:
            self.close()
            raise

    def run(self, pixels: np.ndarray, outputs: Sequence[str], pick: Pick) -> list[np.ndarray]:
        """What it returns for an image: the first of the batch of each output, float32.

        pixels   float32 [H, W, 3]
        pick     of the outputs' shapes, before any is read: the numbers of those to return. It refuses those that do not fit
        """
        prepared = np.ascontiguousarray(pixels.transpose(2, 0, 1) if self.layout == "NCHW" else pixels)
        if self._room != prepared.shape:
            self._model.room(self.batch, prepared.shape)
            self._room = prepared.shape
        found = self._model.run([prepared], self.batch, outputs)
        if sum(prod(shape) for _, shape in found) * LARGEST_NUMBER > MAX_INPUT:
            raise self.refused(f"returns {', '.join(str(shape) for _, shape in found)[:200]}: too many numbers")
        return [self._read(number, found[number][0]) for number in pick([shape for _, shape in found])]

    def _read(self, number: int, dtype: str) -> np.ndarray:
        if not dtype.startswith("float"):
            raise self.refused(f"returns {dtype} in place of floats")
        values: np.ndarray = self._model.values(number).astype(np.float32)
        if not np.isfinite(values).all():
            raise self.refused("returns NaN or infinity", "not-finite")
        return values[0]

    def size_for(self, width: int, height: int, profile: Profile) -> Size:
        """(width, height) of the input for an image: the shorter side near the profile's size, both multiples, unless fixed."""
        if self.fixed:
            return self.fixed
        scale, step = profile.size / min(width, height), profile.multiple
        across, down = (max(step, round(side * scale / step) * step) for side in (width, height))
        if max(across, down) > MAX_SIDE:
            raise self.refused(f"would be given {across} x {down} pixels, more than {MAX_SIDE}", "size")
        return across, down

    def _input(self, usual: Size) -> tuple[str, int, Size | None]:
        inputs = self._model.inputs
        shape = inputs[0][2] if inputs else []
        if len(inputs) != 1 or len(shape) != 4 or inputs[0][1] not in FLOATS:
            shapes = ", ".join(f"{kind} {shape}" for _, kind, shape in inputs)
            raise self.refused(f"does not take one image as floats; its inputs are {shapes[:200]}")
        layout = "NHWC" if shape[3] == 3 and shape[1] != 3 else "NCHW"
        channels = shape[1] if layout == "NCHW" else shape[3]
        if isinstance(channels, int) and channels != 3:
            raise self.refused(f"takes {shape}, not an image of 3 colors")
        batch, *sides = (_known(side) for side in (shape[0], *(shape[2:4] if layout == "NCHW" else shape[1:3])))
        height, width = sides
        size = (width or usual[0], height or usual[1])
        if max(size) > MAX_SIDE:
            raise self.refused(f"takes images of {size[0]} x {size[1]} pixels, more than {MAX_SIDE}")
        if why := batch_too_large((batch or 1, size[1], size[0], 3)):
            raise self.refused(why)
        return layout, batch or 1, size if width or height else None

    def refused(self, why: str, end: str = "model") -> ProblemsError:
        """The problem with what a model is or does. end: of its code"""
        fix = "choose a model of a kind that docs/control_images.md names, or correct its profile.json"
        return ProblemsError.one(f"The model {self._title} {why}", self._where, fix, f"{ABOUT}.{end}")


def normalized(pixels: np.ndarray, profile: Profile) -> np.ndarray:
    """uint8 RGB -> float32 [H, W, 3] with the profile's channels and scale."""
    values: np.ndarray = pixels.astype(np.float32)
    if profile.channels == "BGR":
        values = values[:, :, ::-1]
    if profile.scale == "1":
        values = (values / 255 - np.float32(profile.mean)) / np.float32(profile.std)
    return values


def letterboxed(image: np.ndarray, size: Size, level: int) -> tuple[np.ndarray, float]:
    """An image resized to fit into (width, height), in the upper left on a gray of this level: uint8 [H, W, 3]; and its scale."""
    height, width = image.shape[:2]
    scale = min(size[0] / width, size[1] / height)
    inner = Image.fromarray(image).resize(
        (max(1, int(width * scale)), max(1, int(height * scale))), Image.Resampling.BILINEAR
    )
    pixels: np.ndarray = np.full((size[1], size[0], 3), level, np.uint8)
    pixels[: inner.height, : inner.width] = np.asarray(inner)
    return pixels, scale


def _known(side: Any) -> int | None:
    return side if isinstance(side, int) and side > 0 else None
