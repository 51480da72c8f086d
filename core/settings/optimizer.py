"""How weights are moved."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, JsonValue, field_validator

from core.settings.base import Settings, setting
from core.settings.optimizers import parse_arguments

Beta = Annotated[float, Field(ge=0, lt=1)]
Rate = Annotated[float, Field(ge=-10, le=10)]  # negative ones train away: rules/training.py says where they may stand


class OptimizerSettings(Settings):
    """The optimizer and its rates."""

    optimizer_type: str = setting(
        "AdamW",
        max_length=200,
        title="Optimizer",
        level="shown",
        kohya="optimizer_type, use_8bit_adam, use_lion_optimizer",
        widget="optimizer",
        source="AdamW: Loshchilov and Hutter 2019, arXiv:1711.05101; 8 bits: Dettmers et al. 2022, arXiv:2110.02861",
        help="AdamW suits everything; AdamW8bit keeps its memory of gradients in a quarter of the space; Prodigy finds the rate itself. A name of sd-scripts or of torch, or a path such as pytorch_optimizer.CAME.",
    )
    learning_rate: Rate = setting(
        1e-4,
        title="Trained rate",
        level="shown",
        kohya="learning_rate",
        help="How far each step moves. 1e-4 for a LoRA of SD 1.5, 2e-6 for a whole model, 5e-3 for a new word; too high burns the image, too low trains nothing.",
    )
    unet_lr: Rate | None = setting(
        None,
        title="Rate of the U-Net",
        kohya="unet_lr",
        help="Empty is the learning rate; 0 leaves the U-Net as it is.",
    )
    text_encoder_lr: Rate | tuple[Rate, Rate] | None = setting(
        None,
        title="Rate of the text encoder",
        kohya="text_encoder_lr, learning_rate_te, learning_rate_te1, learning_rate_te2",
        help="Empty is the learning rate; half of it is usual. 0 leaves the text encoder as it is. Two numbers are for the two of SDXL.",
    )
    scale_lr: bool = setting(
        False,
        title="Scale rates with the batch",
        kohya="scale_lr",
        help="Multiplies every rate by batch size, gradient accumulation and number of processes. The summary shows the product.",
    )
    loraplus_lr_ratio: float | None = setting(
        None,
        gt=0,
        le=1000,
        title="LoRA+ ratio",
        kohya="loraplus_lr_ratio",
        source="Hayou et al. 2024, arXiv:2402.12354",
        help="The up matrices train this many times faster than the down matrices. The paper suggests 16; empty is off.",
    )
    loraplus_unet_lr_ratio: float | None = setting(
        None,
        gt=0,
        le=1000,
        title="LoRA+ ratio of the U-Net",
        kohya="loraplus_unet_lr_ratio",
        help="Instead of the LoRA+ ratio, for the U-Net.",
    )
    loraplus_text_encoder_lr_ratio: float | None = setting(
        None,
        gt=0,
        le=1000,
        title="LoRA+ ratio of the text encoder",
        kohya="loraplus_text_encoder_lr_ratio",
        help="Instead of the LoRA+ ratio, for the text encoders.",
    )
    optimizer_args: dict[str, JsonValue] = setting(
        default_factory=dict,
        title="Arguments of the optimizer",
        kohya="optimizer_args",
        widget="arguments",
        help="What this optimizer takes besides, one name=value a line, such as d_coef=2. Checked against its list.",
    )
    weight_decay: float | None = setting(
        None,
        ge=0,
        le=10,
        title="Weight decay",
        kohya="optimizer_args",
        help="Pulls weights towards zero at every step. Empty is the optimizer's own: 0.01 for AdamW, 0 for most others.",
    )
    betas: tuple[Beta, Beta] | None = setting(
        None,
        title="Betas",
        kohya="optimizer_args",
        help="How long gradients and their squares are remembered. Empty is the optimizer's own, mostly 0.9 and 0.999.",
    )
    eps: float | None = setting(
        None,
        gt=0,
        le=1,
        title="Epsilon",
        kohya="optimizer_args",
        help="Keeps the division of AdamW and its kin finite. Empty is the optimizer's own.",
    )
    max_grad_norm: float = setting(
        1.0,
        ge=0,
        le=1e6,
        title="Gradient clipping",
        kohya="max_grad_norm",
        help="Longest gradient, over all trained weights together. 0 is off.",
    )
    compatibility: Literal["none", "kohya"] = setting(
        "none",
        title="Clipping exactly as sd-scripts",
        labels={"none": "no", "kohya": "as sd-scripts"},
        help="Repeats old results: a part of a LoRA or a block of the U-Net (block_lr) whose rate is 0 counts in the gradient's length all the same, with what earlier steps left of it, and for a new word the whole table of words does, in SDXL that of the second text encoder alone. What trains is then clipped more.",
    )

    @field_validator("optimizer_args", mode="before")
    @classmethod
    def _from_words(cls, value: Any) -> Any:
        """sd-scripts' list of "name=value" words is taken too."""
        if isinstance(value, list) and all(isinstance(item, str) for item in value):
            return parse_arguments(value)
        return value

    @property
    def clips_as_kohya(self) -> bool:
        """Whether gradients are clipped together that sd-scripts clips together."""
        return self.compatibility == "kohya" and self.max_grad_norm > 0

    # -- rates by part

    @property
    def unet_rate(self) -> float:
        return self.learning_rate if self.unet_lr is None else self.unet_lr

    @property
    def text_rates(self) -> tuple[float, float]:
        """Of the first and the second text encoder."""
        own = self.learning_rate if self.text_encoder_lr is None else self.text_encoder_lr
        return own if isinstance(own, tuple) else (own, own)

    def rate_of(self, part: str) -> float:
        """Of "unet", "text_encoder", "text_encoder_2" or any other part, which has the learning rate."""
        if part == "unet":
            return self.unet_rate
        if part.startswith("text_encoder"):
            return self.text_rates[1 if part.endswith("2") else 0]
        return self.learning_rate

    def plus_ratio(self, part: str) -> float:
        """LoRA+: how many times faster the up matrices of this part train."""
        own = self.loraplus_unet_lr_ratio if part == "unet" else self.loraplus_text_encoder_lr_ratio
        return next((ratio for ratio in (own, self.loraplus_lr_ratio) if ratio is not None), 1.0)
