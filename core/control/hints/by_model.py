"""Control images by an ONNX model (image to image, or pose estimation), or by any other preprocessor."""

from collections.abc import Callable, Sequence
from typing import Self

import numpy as np
from PIL import Image

from core.control.hints import make_hint
from core.control.hints.models import DWPOSE, IMAGE, OPENPOSE, ModelFile, checked_model
from core.control.hints.one_image import ProfiledModel, normalized
from core.control.hints.plain import as_rgb, to_levels
from core.control.hints.pose.bottom_up import OpenPose
from core.control.hints.pose.finding import PoseModel
from core.control.hints.pose.top_down import DWPose
from core.formats.onnx.providers import CPU
from core.record.cancel import CancelToken
from core.record.workspace import Workspace
from core.settings.hints import BY_MODEL, AnyHintSettings


class HintModel(ProfiledModel):
    """An image-to-image ONNX model that makes control images."""

    def prepare(self) -> None:
        """Raise ProblemsError unless the model has exactly one output."""
        if len(self.outputs) != 1:
            names = ", ".join(self.outputs)[:200]
            raise self.refused(f"returns {len(self.outputs)} outputs ({names}) in place of one image")

    def make(self, image: np.ndarray) -> np.ndarray:
        """Return the control image of `image` in the same size, both RGB uint8 [H, W, 3]. Raises ProblemsError."""
        height, width = image.shape[:2]
        size = self.size_for(width, height, self.profile)
        resized = np.asarray(Image.fromarray(image).resize(size, Image.Resampling.BICUBIC))
        (values,) = self.run(normalized(resized, self.profile), self.outputs, self._one_image)
        levels = self._levels(as_image(values))
        if levels.shape[:2] == (height, width):
            return levels
        return np.asarray(Image.fromarray(levels).resize((width, height), Image.Resampling.BILINEAR))

    def _one_image(self, shapes: Sequence[Sequence[int]]) -> list[int]:
        """Select the only output (a `Pick` function). Raises ProblemsError if its shape is not that of an image."""
        if why := not_an_image(shapes[0], self.batch):
            raise self.refused(f"returns {[*shapes[0]]}: {why}")
        return [0]

    def _levels(self, values: np.ndarray) -> np.ndarray:
        """Convert the model's output, float [H, W] or [H, W, 3], to RGB uint8 as the profile's `values` and `invert` say."""
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


MODELS: dict[str, Callable[[ModelFile, Sequence[str], str, CancelToken], HintModel | PoseModel]] = {
    IMAGE: HintModel,
    DWPOSE: DWPose,
    OPENPOSE: OpenPose,
}


def open_model(model: ModelFile, providers: Sequence[str], device: str, cancel: CancelToken) -> HintModel | PoseModel:
    """Load an ONNX model; returns a context manager whose `make` returns control images. Raises ProblemsError.
    providers: execution providers, the preferred one first"""
    return MODELS[model.kind](model, providers, device, cancel)


class HintMaker:
    """Makes control images with any preprocessor, as a context manager.

    Each ONNX model is loaded at its first use and runs on the CPU in a process that ends with the context.

    where   the setting that names the model, for problems
    """

    def __init__(self, workspace: Workspace, where: str, cancel: CancelToken):
        self._workspace, self._where, self._cancel = workspace, where, cancel
        self._models: dict[str, HintModel | PoseModel] = {}

    def make(self, image: np.ndarray, settings: AnyHintSettings) -> np.ndarray:
        """Return the control image of `image` by the chosen preprocessor, both RGB uint8 [H, W, 3]. Raises ProblemsError."""
        if settings.preprocessor != BY_MODEL:
            return make_hint(image, settings)
        if settings.hint_model not in self._models:
            model = checked_model(settings.hint_model, self._workspace, self._where)
            self._models[settings.hint_model] = open_model(model, [CPU], "cpu", self._cancel)
        return self._models[settings.hint_model].make(image)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for model in self._models.values():
            model.close()


def not_an_image(shape: Sequence[int], batch: int) -> str:
    """Return why an output of this shape is not `batch` images with 1 or 3 channels; "" if it is."""
    if len(shape) not in (3, 4) or not all(shape) or shape[0] != batch:
        return f"not {batch} of images" if batch > 1 else "not one image"
    if len(shape) == 4 and shape[1] not in (1, 3) and shape[3] not in (1, 3):
        return f"{shape[1]} channels in place of 1 or 3"
    return ""


def as_image(values: np.ndarray) -> np.ndarray:
    """Convert an image [H, W], [C, H, W] or [H, W, C] with 1 or 3 channels to [H, W] (1 channel) or [H, W, 3]."""
    if values.ndim == 3:
        values = values if values.shape[0] not in (1, 3) else values.transpose(1, 2, 0)
        values = values[..., 0] if values.shape[2] == 1 else values
    return values
