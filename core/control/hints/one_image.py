"""ONNX models with one image as input: checks of the input, and outputs as float32 arrays."""

from collections.abc import Callable, Mapping, Sequence
from math import prod
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from PIL import Image

from core.control.hints.models import ABOUT, ModelFile, Profile
from core.formats.onnx.file import MAX_INPUT, batch_too_large
from core.formats.onnx.process import ModelProcess, UsesModelProcess
from core.record.cancel import CancelToken
from core.record.problems import ProblemsError

MAX_SIDE = 4096
LARGEST_NUMBER = 8  # bytes
FLOATS = ("tensor(float)", "tensor(float16)")
Size = tuple[int, int]  # (width, height)
Pick = Callable[[Sequence[Sequence[int]]], Sequence[int]]  # shapes of the outputs -> which to read


class OneImageModel(UsesModelProcess):
    """A loaded ONNX model whose input is one RGB image.

    provider, preferred   execution providers of onnxruntime: the one in use, and the first choice
    layout, fixed         of the input: "NCHW" or "NHWC"; (width, height), or None where both are open
    outputs, batch        names of the outputs; images per call, all copies of the same image
    """

    def __init__(
        self, file: Path, name: str, where: str, providers: Sequence[str], device: str, cancel: CancelToken, usual: Size
    ):
        """Load the model in a process of its own. Raises ProblemsError.

        name, where   title of the model, and the setting that names it, for problems
        providers     execution providers, the preferred one first
        usual         (width, height) for open sides of the input
        """
        self._title, self._where = name, where
        self._model = ModelProcess(file, providers, device, cancel, self.refused)
        self.provider, self.preferred, self.outputs = self._model.provider, providers[0], self._model.outputs
        self._input_shape: tuple[int, ...] = ()
        try:
            self.layout, self.batch, self.fixed = self._input(usual)
            self.prepare()
        except BaseException:
            self.close()
            raise

    def prepare(self) -> None:
        """Check the outputs and load further parts, in subclasses; the model is closed if this raises."""

    def run(self, pixels: np.ndarray, outputs: Sequence[str], pick: Pick) -> list[np.ndarray]:
        """Run the model on an image; return the selected outputs in float32, without the batch dimension. Raises ProblemsError.

        pixels    float32 [H, W, 3]
        outputs   names of the outputs to compute
        pick      (shapes of the computed outputs) -> indices of those to return; raises for unexpected shapes
        """
        prepared = np.ascontiguousarray(pixels.transpose(2, 0, 1) if self.layout == "NCHW" else pixels)
        if self._input_shape != prepared.shape:
            self._model.allocate_batches(self.batch, prepared.shape)
            self._input_shape = prepared.shape
        results = self._model.run([prepared], self.batch, outputs)
        if sum(prod(shape) for _, shape in results) * LARGEST_NUMBER > MAX_INPUT:
            raise self.refused(f"returns {', '.join(str(shape) for _, shape in results)[:200]}: too many numbers")
        return [self._read(number, results[number][0]) for number in pick([shape for _, shape in results])]

    def _read(self, number: int, dtype: str) -> np.ndarray:
        """Return the output with index `number` in float32, for the first image of the batch.
        dtype: the output's type by name. Raises ProblemsError for integers, NaN and infinity."""
        if not dtype.startswith("float"):
            raise self.refused(f"returns {dtype} in place of floats")
        values: np.ndarray = self._model.values(number).astype(np.float32)
        if not np.isfinite(values).all():
            raise self.refused("returns NaN or infinity", "not-finite")
        return values[0]

    def size_for(self, width: int, height: int, profile: Profile) -> Size:
        """Return the input's (width, height) for an image of `width` x `height` pixels.

        The model's size if it is fixed; else the image's, scaled so that the shorter side is about `profile.size`, with both sides
        multiples of `profile.multiple`. Raises ProblemsError if a side exceeds MAX_SIDE.
        """
        if self.fixed:
            return self.fixed
        scale, step = profile.size / min(width, height), profile.multiple
        input_width, input_height = (max(step, round(side * scale / step) * step) for side in (width, height))
        if max(input_width, input_height) > MAX_SIDE:
            raise self.refused(f"would be given {input_width} x {input_height} pixels, more than {MAX_SIDE}", "size")
        return input_width, input_height

    def _input(self, usual: Size) -> tuple[str, int, Size | None]:
        """Check the model's input; return (layout, batch size, (width, height) or None if both sides are open).
        usual: (width, height); replaces an open side. Raises ProblemsError unless the input is one RGB image as floats."""
        inputs = self._model.inputs
        shape = inputs[0][2] if inputs else []
        if len(inputs) != 1 or len(shape) != 4 or inputs[0][1] not in FLOATS:
            shapes = ", ".join(f"{kind} {shape}" for _, kind, shape in inputs)
            raise self.refused(f"does not take one image as floats; its inputs are {shapes[:200]}")
        layout = "NHWC" if shape[3] == 3 and shape[1] != 3 else "NCHW"
        channels = shape[1] if layout == "NCHW" else shape[3]
        if isinstance(channels, int) and channels != 3:
            raise self.refused(f"takes {shape}, not an image of 3 colors")
        batch, *sides = (_fixed_size(side) for side in (shape[0], *(shape[2:4] if layout == "NCHW" else shape[1:3])))
        height, width = sides
        size = (width or usual[0], height or usual[1])
        if max(size) > MAX_SIDE:
            raise self.refused(f"takes images of {size[0]} x {size[1]} pixels, more than {MAX_SIDE}")
        if why := batch_too_large((batch or 1, size[1], size[0], 3)):
            raise self.refused(why)
        return layout, batch or 1, size if width or height else None

    def refused(self, why: str, code: str = "model") -> ProblemsError:
        """Return the ProblemsError for a model that cannot be used.

        why    predicate of the sentence "The model X ..."
        code   the last part of the problem's code
        """
        fix = "choose a model of a kind that docs/control_images.md names, or correct its profile.json"
        return ProblemsError.one(f"The model {self._title} {why}", self._where, fix, f"{ABOUT}.{code}")


class ProfiledModel(OneImageModel):
    """A OneImageModel with a profile.
    defaults: values of this class for fields that profile.json leaves out"""

    defaults: ClassVar[Mapping[str, Any]] = {}

    def __init__(self, model: ModelFile, providers: Sequence[str], device: str, cancel: CancelToken):
        """Load a model file with its profile. Raises ProblemsError.
        providers: execution providers, the preferred one first"""
        self.source, self.opened_with = model, (providers, device, cancel)
        self.profile = model.profile.over(self.defaults)
        super().__init__(model.file, model.title, model.where, providers, device, cancel, self.usual_size)

    @property
    def usual_size(self) -> Size:
        """(width, height) for open sides of the input."""
        return self.profile.size, self.profile.size


def normalized(pixels: np.ndarray, profile: Profile) -> np.ndarray:
    """Convert RGB uint8 [H, W, 3] to float32 with the profile's channel order, scale, mean and std."""
    values: np.ndarray = pixels.astype(np.float32)
    if profile.channels == "BGR":
        values = values[:, :, ::-1]
    if profile.scale == "1":
        values = (values / 255 - np.float32(profile.mean)) / np.float32(profile.std)
    return values


def letterboxed(image: np.ndarray, size: Size, level: int) -> tuple[np.ndarray, float]:
    """Scale an image to fit into `size` (width, height), in the upper left corner; the rest has gray `level`.

    Returns uint8 [H, W, 3] and the scale.
    """
    height, width = image.shape[:2]
    scale = min(size[0] / width, size[1] / height)
    inner = Image.fromarray(image).resize(
        (max(1, int(width * scale)), max(1, int(height * scale))), Image.Resampling.BILINEAR
    )
    pixels: np.ndarray = np.full((size[1], size[0], 3), level, np.uint8)
    pixels[: inner.height, : inner.width] = np.asarray(inner)
    return pixels, scale


def _fixed_size(side: Any) -> int | None:
    """Return a dimension of an ONNX shape, or None if it is open."""
    return side if isinstance(side, int) and side > 0 else None
