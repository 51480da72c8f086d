"""Settings of the tools that make control images from a folder of images."""

from typing import Literal

from core.settings.base import Settings, setting
from core.settings.captioning.tagger import Provider
from core.settings.hints import AnyHintSettings, HintModelSettings, HintSettings
from core.settings.samples import Side, guidance_setting, images_seed, steps_setting
from core.settings.tools.fields import output_folder
from core.settings.tools.images import CopySettings


class MadeHintsSettings(CopySettings):
    """Output folder of control images: PNG files with the names and subfolders of their images."""

    output: str | None = output_folder(
        "Where control images are saved. Empty is a folder in outputs/datasets/control, named after the images and the preprocessor or model.",
        hint="in outputs/datasets/control",
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


class HintsByModelSettings(HintModelSettings, MadeHintsSettings):
    """Makes a control image of each image with an ONNX model: depth, line art, poses and others. Captions stay with the images."""

    tool = "hints_by_model"
    provider: Provider = "auto"


class GeneratedImagesSettings(Settings):
    """Images to generate from captions with a base model."""

    captions: str = setting(
        "",
        level="shown",
        widget="path",
        names="path",
        help="A text file with a caption on each line, or a folder whose caption files are taken. Each caption is the prompt of its image.",
    )
    base_model: str = setting(
        "models/starter",
        level="shown",
        names="path or name",
        holds="checkpoint",
        help="The model that generates the images: usually the one that the ControlNet is trained for.",
    )
    number: int | None = setting(
        None,
        within=(1, 100_000),
        title="Number of pairs",
        hint="one for each caption",
        level="shown",
        unit="pairs",
        help="More than there are captions repeats them with other seeds. A ControlNet needs thousands of pairs.",
    )
    output: str | None = output_folder(
        "Gets a folder images with their captions, and a folder control. Empty is a folder in outputs/datasets/pairs. Pairs that are there are kept.",
        hint="in outputs/datasets/pairs",
    )
    negative_prompt: str = setting("", widget="prompt", help="What the images should not show.")
    width: Side | None = setting(None, unit="pixels", hint="model's own", help="Empty uses the model's native size.")
    height: Side | None = setting(None, unit="pixels", hint="model's own", help="Empty uses the model's native size.")
    steps: int = steps_setting(20)
    guidance_scale: float | None = guidance_setting(hint="model's own")
    seed: int = images_seed(title="Image seed")


class MakePairsSettings(AnyHintSettings, GeneratedImagesSettings):
    """Generates images from captions with a base model, and makes their control images: pairs to train a ControlNet with."""
