"""Settings of the tools that make control images of a folder."""

from __future__ import annotations

from typing import Literal

from core.settings.base import setting
from core.settings.captioning.tagger import PROVIDER_LABELS
from core.settings.hints import HintSettings
from core.settings.tools.images import CopySettings


class MadeHintsSettings(CopySettings):
    """Where control images of a folder are saved: PNG files with the names and subfolders of their images."""

    output: str | None = setting(
        None,
        title="Output folder",
        hint="automatic",
        level="shown",
        widget="folder",
        help="Where control images are saved. Empty is a folder in outputs/datasets/control, named after the images and the preprocessor or model.",
        names="path",
    )
    existing: Literal["keep", "replace"] = setting(
        "keep",
        title="Existing files",
        help="Keep makes only the control images that are missing, so a cancelled job can be started again. Replace makes all again.",
    )
    hint_resolution: int | None = setting(
        None,
        within=(64, 8192),
        title="Resolution",
        level="shown",
        unit="pixels",
        hint="as the image",
        help="Length of the shorter side to which large images are resized first. The resolution of the training keeps lines as thin as the model will see them.",
    )
    preview: int | None = setting(
        None,
        within=(1, 100),
        title="Preview images",
        unit="images",
        help="Number of images to show with their control images without writing anything. Empty makes all.",
    )


class MakeHintsSettings(HintSettings, MadeHintsSettings):
    """Makes a control image of each image, without a model: edges, blur and others. Captions stay with the images."""

    tool = "make_hints"


class HintsByModelSettings(MadeHintsSettings):
    """Makes a control image of each image with an ONNX model: depth, line art and others. Captions stay with the images."""

    tool = "hints_by_model"
    hint_model: str = setting(
        "",
        title="Model",
        level="shown",
        names="path or name",
        help="An .onnx file, or a folder with one: a path, or a name below models/preprocessors. It must make one image of 1 or 3 channels from one image.",
    )
    provider: Literal["auto", "cuda", "rocm", "directml", "openvino", "coreml", "cpu"] = setting(
        "auto",
        title="Execution provider",
        labels=PROVIDER_LABELS,
        help="The device for onnxruntime. Automatic uses the GPU if the installed onnxruntime supports it.",
    )
