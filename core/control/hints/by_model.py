"""Control images by a loaded ONNX model (one image in, one image of 1 or 3 channels out; any other is refused), and by any preprocessor."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Self

import numpy as np
from PIL import Image

from core.control.hints import make_hint
from core.control.hints.models import ABOUT, Found, checked_model
from core.control.hints.plain import as_rgb, to_levels
from core.formats.onnx.file import batch_too_large
from core.formats.onnx.process import ModelProcess, OfProcess
from core.formats.onnx.providers import CPU
from core.record.cancel import CancelToken
from core.record.problems import ProblemsError
from core.record.workspace import Workspace
from core.settings.hints import BY_MODEL, AnyHintSettings

MAX_SIDE = 4096
FLOATS = ("tensor(float)", "tensor(float16)")


class HintModel(OfProcess):
    """Makes control images. `layout` is the model's, `fixed` the (width, height) of its input or None where it is open.

    provider, wanted   of onnxruntime: taken, and asked for
    """

    def __init__(self, found: Found, wanted: Sequence[str], device: str, cancel: CancelToken):
        """wanted: execution providers in the order of preference"""
        self.found, self.profile = found, found.profile
        self._model = ModelProcess(found.file, wanted, device, cancel, self._refused)
        self.provider, self.wanted = self._model.provider, wanted[0]
        self._room: tuple[int, ...] = ()
        try:
            self.layout, self._batch, self.fixed = self._input()
            self._one_output()
        except BaseException:
            self.close()
            raise

    def make(self, image: np.ndarray) -> np.ndarray:
        """The control image of an image at its size, both RGB uint8 [H, W, 3]. Raises ProblemsError."""
        height, width = image.shape[:2]
        size = self.fixed or self._size_for(width, height)
        values = self._output_of(self._prepared(image, size))
        levels = self._levels(values)
        if levels.shape[:2] == (height, width):
            return levels
        return np.asarray(Image.fromarray(levels).resize((width, height), Image.Resampling.BILINEAR))

    def _size_for(self, width: int, height: int) -> tuple[int, int]:
        """(width, height) of the input for an image: the shorter side near the profile's size, both multiples."""
        scale, step = self.profile.size / min(width, height), self.profile.multiple
        across, down = (max(step, round(side * scale / step) * step) for side in (width, height))
        if max(across, down) > MAX_SIDE:
            raise self._refused(f"would be given {across} x {down} pixels, more than {MAX_SIDE}", "size")
        return across, down

    def _prepared(self, image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
        resized = Image.fromarray(image).resize(size, Image.Resampling.BICUBIC)
        values = np.asarray(resized, dtype=np.float32)
        if self.profile.channels == "BGR":
            values = values[:, :, ::-1]
        if self.profile.scale == "1":
            values = (values / 255 - np.float32(self.profile.mean)) / np.float32(self.profile.std)
        return np.ascontiguousarray(values.transpose(2, 0, 1) if self.layout == "NCHW" else values)

    def _output_of(self, prepared: np.ndarray) -> np.ndarray:
        """float32 [H, W] or [H, W, 3] of the first image."""
        if self._room != prepared.shape:
            self._model.room(self._batch, prepared.shape)
            self._room = prepared.shape
        dtype, shape = self._model.run([prepared], self._batch, self._model.outputs[0])
        if not dtype.startswith("float"):
            raise self._refused(f"returns {dtype} in place of floats")
        if why := not_an_image(shape, self._batch):
            raise self._refused(f"returns {shape}: {why}")
        values: np.ndarray = self._model.values().astype(np.float32)
        if not np.isfinite(values).all():
            raise self._refused("returns NaN or infinity", "not-finite")
        return as_image(values)

    def _levels(self, values: np.ndarray) -> np.ndarray:
        """RGB uint8."""
        match self.profile.values:
            case "range":
                low, high = float(values.min()), float(values.max())
                levels = to_levels((values - low) * (255 / (high - low)) if high > low else np.zeros_like(values))
            case "-1":
                levels = to_levels((values + 1) * 127.5)
            case "1":
                levels = to_levels(values * 255)
            case _:
                levels = to_levels(values)
        levels = 255 - levels if self.profile.invert else levels
        return as_rgb(levels) if levels.ndim == 2 else levels

    def _input(self) -> tuple[str, int, tuple[int, int] | None]:
        """Layout, images at once, fixed (width, height)."""
        inputs = self._model.inputs
        shape = inputs[0][2] if inputs else []
        if len(inputs) != 1 or len(shape) != 4 or inputs[0][1] not in FLOATS:
            shapes = ", ".join(f"{kind} {shape}" for _, kind, shape in inputs)
            raise self._refused(f"does not take one image as floats; its inputs are {shapes[:200]}")
        layout = "NHWC" if shape[3] == 3 and shape[1] != 3 else "NCHW"
        channels = shape[1] if layout == "NCHW" else shape[3]
        if isinstance(channels, int) and channels != 3:
            raise self._refused(f"takes {shape}, not an image of 3 colors")
        batch, *sides = (_known(side) for side in (shape[0], *(shape[2:4] if layout == "NCHW" else shape[1:3])))
        height, width = sides
        size = (width or self.profile.size, height or self.profile.size)
        if max(size) > MAX_SIDE:
            raise self._refused(f"takes images of {size[0]} x {size[1]} pixels, more than {MAX_SIDE}")
        if why := batch_too_large((batch or 1, size[1], size[0], 3)):
            raise self._refused(why)
        return layout, batch or 1, size if width or height else None

    def _one_output(self) -> None:
        names = self._model.outputs
        if len(names) != 1:
            raise self._refused(f"returns {len(names)} outputs ({', '.join(names)[:200]}) in place of one image")

    def _refused(self, why: str, end: str = "model") -> ProblemsError:
        fix = "choose a model that makes an image of an image, or correct its profile.json (docs/control_images.md)"
        return ProblemsError.one(f"The model {self.found.title} {why}", self.found.where, fix, f"{ABOUT}.{end}")


class HintMaker:
    """Makes control images by any preprocessor. ONNX models run on the CPU, each in a process that ends with this.

    where   the setting that names a model
    """

    def __init__(self, workspace: Workspace, where: str, cancel: CancelToken):
        self._workspace, self._where, self._cancel = workspace, where, cancel
        self._models: dict[str, HintModel] = {}

    def make(self, image: np.ndarray, asked: AnyHintSettings) -> np.ndarray:
        """The control image of an image, both RGB uint8 [H, W, 3]. Raises ProblemsError."""
        if asked.preprocessor != BY_MODEL:
            return make_hint(image, asked)
        if asked.hint_model not in self._models:
            found = checked_model(asked.hint_model, self._workspace, self._where)
            self._models[asked.hint_model] = HintModel(found, [CPU], "cpu", self._cancel)
        return self._models[asked.hint_model].make(image)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for model in self._models.values():
            model.close()


def not_an_image(shape: Sequence[int], batch: int) -> str:
    """Why an output of this shape is no batch of images of 1 or 3 channels, "" if it is."""
    if len(shape) not in (3, 4) or not all(shape) or shape[0] != batch:
        return f"not {batch} of images" if batch > 1 else "not one image"
    if len(shape) == 4 and shape[1] not in (1, 3) and shape[3] not in (1, 3):
        return f"{shape[1]} channels in place of 1 or 3"
    return ""


def as_image(values: np.ndarray) -> np.ndarray:
    """The first of a batch: [N, H, W], [N, C, H, W] or [N, H, W, C] -> [H, W] or [H, W, 3]."""
    first: np.ndarray = values[0]
    if first.ndim == 3:
        first = first if first.shape[0] not in (1, 3) else first.transpose(1, 2, 0)
        first = first[..., 0] if first.shape[2] == 1 else first
    return first


def _known(side: Any) -> int | None:
    return side if isinstance(side, int) and side > 0 else None
