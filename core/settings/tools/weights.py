"""Settings of the tools that measure weights."""

from typing import Any

from core.settings.base import Settings, setting
from core.settings.tools.fields import model_file


def _base(help: str) -> Any:
    """Declare the base model, which only some network types need."""
    return setting(None, title="Base model", hint="not needed", names="path or name", holds="checkpoint", help=help)


def _png(what: str) -> Any:
    """Declare the PNG file to save `what` to, such as "the heat maps"."""
    return setting(
        None, title="Save as PNG", names="path", hint="off", help=f"Also saves {what} as a PNG file, by this name."
    )


NEEDED = "Only for network types that rotate or scale the weight, such as DoRA and OFT."


class CheckWeightsSettings(Settings):
    """Looks for NaN, infinite and very large values, finds untrained layers, and shows how much each layer changes."""

    file: str | None = model_file("A LoRA, or a checkpoint in a single file.", "lora, checkpoint")
    base_model: str | None = _base(NEEDED)
    png: str | None = _png("the heat maps")


class SingularValuesSettings(Settings):
    """Shows how the change of a LoRA spreads over its singular values, and which rank would keep how much of it."""

    file: str | None = model_file("A LoRA of any kind.", "lora", title="LoRA")
    keep: float = setting(
        0.95,
        within=(0.5, 0.9999),
        title="Norm to keep",
        level="shown",
        help="Share of each layer's norm that the recommended rank keeps. 0.9 to 0.98 are usual.",
    )
    base_model: str | None = _base(NEEDED)
    png: str | None = _png("the plots")


class CompareLorasSettings(Settings):
    """Compares two LoRAs layer by layer: whether they change weights in the same direction, and how far apart they are."""

    file: str | None = model_file("A LoRA of any kind.", "lora", title="First LoRA")
    other: str | None = model_file("Another one of the same family.", "lora", title="Second LoRA")
    base_model: str | None = _base(NEEDED)
    png: str | None = _png("the heat maps")


class InterrogateLoraSettings(Settings):
    """Lists the tokens that a LoRA's text encoders change most: the words it was trained on are usually among them."""

    file: str | None = model_file("The LoRA.", "lora", title="LoRA")
    base_model: str | None = model_file("The model it was trained on.", "checkpoint")
    top: int = setting(100, within=(1, 1000), title="Tokens shown", level="shown", help="How many tokens are listed.")
    clip_skip: int | None = setting(
        None,
        within=(1, 12),
        hint="the model's own",
        help="Layer of the text encoder that is compared, counted from its end.",
    )
    batch_size: int = setting(256, within=(1, 4096), help="Tokens that are computed at once.")
