"""Settings of the ControlNets and LLLites of a generation, and their control images."""

from typing import Literal

from core.settings.base import Settings, setting
from core.settings.growth import add_choice
from core.settings.hints import AnyHintSettings

MODES = {
    "balanced": "balanced",
    "prompt": "prompt is more important",
    "control": "ControlNet is more important",
    "guess": "guess mode",
}


class ControlUse(AnyHintSettings):
    """A ControlNet or LLLite with its control image, weight and range of steps."""

    file: str = setting(
        title="ControlNet",
        kohya="control_net_models",
        help="A ControlNet or ControlNet-LLLite: a file or a diffusers folder, or the name of one in models/ or in a run.",
        names="path or name",
    )
    image: str | None = setting(
        None,
        title="Control image",
        widget="path",
        hint="the one for all",
        help="What it follows, or the image that the preprocessor makes it from. Of a folder, each image made takes the next one.",
        names="path",
    )
    preprocessor: Literal["canny"] = setting(  # none is added below, the others in core/control/hints/registered.py
        "none",
        kohya="control_net_preps",
        labels={"canny": "Canny edges"},
        help="Makes the control image from the image, at the size that is generated. None takes the image as it is. An ONNX model runs on the CPU.",
    )
    weight: float = setting(
        1.0,
        within=(0, 5),
        kohya="control_net_multipliers",
        help="How strongly it is followed: 1 as trained, 0 is off. 0.5 to 1 is usual.",
    )
    start_at: float = setting(0.0, within=(0, 1), help="Share of the steps after which it begins.")
    end_at: float = setting(
        1.0,
        within=(0, 1),
        kohya="control_net_ratios",
        help="Share of the steps after which it ends. 0.6 fixes the layout and leaves details to the prompt.",
    )
    mode: Literal["balanced", "prompt", "control", "guess"] = setting(
        "balanced",
        title="Control mode",
        labels=MODES,
        source="A1111; guess mode of diffusers",
        help="Prompt is more important weakens it from the middle of the U-Net outwards. ControlNet is more important does that too, but acts on the prompt's side of guidance alone. Guess mode does so with diffusers' weights, for an empty prompt. LLLite is always balanced.",
    )
    fit: Literal["resize", "crop", "fill"] = setting(
        "resize",
        title="Resize mode",
        labels={"resize": "just resize", "crop": "crop and resize", "fill": "resize and fill"},
        source="A1111",
        help="How an image of another aspect ratio is fitted to the size: stretched, cropped at its longer side, or shown whole, with the median color of the control image's border around it.",
    )
    enabled: bool = setting(True, title="On", help="Off keeps it in the list without using it.")

    @property
    def used(self) -> bool:
        """Whether this ControlNet or LLLite is enabled with a weight other than 0."""
        return self.enabled and bool(self.weight)


add_choice(ControlUse, "preprocessor", "none", "None: a control image")


class ControlSettings(Settings):
    """ControlNets and LLLites, and the default control image."""

    control_image: str | None = setting(
        None,
        title="Control image for all",
        widget="path",
        hint="none",
        kohya="guide_image_path",
        help="The control image of every ControlNet that has none of its own. Of a folder, each image made takes the next one; with sd-scripts compatibility, each ControlNet does. Prompts set it by --cn FILE.",
        names="path",
    )
    nets: list[ControlUse] = setting(
        default_factory=list,
        title="ControlNets",
        widget="controls",
        kohya="control_net_models, control_net_lllite_models, control_net_preps, control_net_multipliers, control_net_weights, control_net_ratios",
        help="Any number of ControlNets and LLLites at once, each with its own control image, weight and steps.",
    )

    @property
    def used(self) -> list[ControlUse]:
        """The ControlNets and LLLites that are enabled with a weight other than 0, with the default control image where they have none."""
        return [
            use if use.image else use.model_copy(update={"image": self.control_image}) for use in self.nets if use.used
        ]
