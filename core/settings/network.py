"""The adapter that trains."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import field_validator

from core.settings.base import Settings, setting, zero_is_off

# Lists of numbers that stand in one text, as sd-scripts takes them; lists of a JSON file are taken too.
NUMBER_TEXTS = (
    "block_dims",
    "block_alphas",
    "conv_block_dims",
    "conv_block_alphas",
    "down_lr_weight",
    "mid_lr_weight",
    "up_lr_weight",
    "base_weights_multiplier",
)


class NetworkSettings(Settings):
    """Size and reach of a LoRA."""

    kind: Literal["lora"] = setting(
        "lora",
        title="Network type",
        labels={"lora": "LoRA"},
        help="The kind of adapter that trains beside the frozen model.",
    )
    rank: int = setting(
        16,
        ge=1,
        le=1024,
        title="Rank",
        level="shown",
        kohya="network_dim",
        source="Hu et al. 2021, arXiv:2106.09685",
        help="How much the LoRA can hold. 4 to 16 for a subject, 16 to 64 for a style.",
        costs="File size and optimizer memory grow with it; speed hardly changes.",
    )
    alpha: float = setting(
        16.0,
        ge=0,
        le=4096,
        title="Alpha",
        kohya="network_alpha",
        help="The LoRA acts with alpha / rank. Equal to the rank is neutral; lower needs a higher learning rate. 0 is the rank, that of its block where ranks differ.",
    )
    conv_rank: int | None = setting(
        None,
        ge=1,
        le=1024,
        title="Rank of 3x3 convolutions",
        kohya="conv_dim",
        help="Trains the 3x3 convolutions too (C3Lier, also called LoCon): better for textures and styles. Empty or 0 is off.",
        costs="About half again the time of a step.",
    )
    conv_alpha: float | None = setting(
        None,
        gt=0,
        le=4096,
        title="Alpha of 3x3 convolutions",
        kohya="conv_alpha",
        help="Acts with alpha / rank of the 3x3 convolutions. Empty or 0 is the same as their rank.",
    )
    train_unet: bool = setting(
        True,
        title="Train the U-Net",
        kohya="network_train_text_encoder_only",
        help="The part that draws. Nearly always on.",
    )
    train_text_encoder: bool = setting(
        False,
        title="Train the text encoder",
        level="shown",
        kohya="network_train_unet_only",
        help="The part that reads. Helps with new words; off is safer, faster and lets captions be encoded once.",
        costs="More memory and time: captions are encoded at every step.",
    )
    network_dropout: float = setting(
        0.0,
        ge=0,
        le=1,
        title="Dropout",
        kohya="network_dropout",
        source="Srivastava et al. 2014, JMLR 15",
        help="Share of the numbers between the down and the up matrix that a step leaves out. 0.1 to 0.3 against overfitting.",
    )
    rank_dropout: float = setting(
        0.0,
        ge=0,
        le=1,
        title="Rank dropout",
        kohya="rank_dropout",
        help="Share of the rank that a step leaves out, drawn for each image. 0.1 to 0.3 makes the ranks independent of each other.",
    )
    module_dropout: float = setting(
        0.0,
        ge=0,
        le=1,
        title="Module dropout",
        kohya="module_dropout",
        help="Share of the layers that a step trains without their LoRA. 0.1 to 0.3 keeps a layer from leaning on others.",
    )
    scale_weight_norms: float | None = setting(
        None,
        gt=0,
        le=1000,
        title="Longest weight change",
        kohya="scale_weight_norms",
        help="After each step, a layer whose change of the weights is longer than this is shortened to it. 1 is usual; empty or 0 is off.",
    )
    block_dims: str | None = setting(
        None,
        title="Ranks by block",
        kohya="block_dims",
        widget="numbers",
        help="A rank for each block of the U-Net: 25 whole numbers for SD 1.x and 2.x, 23 for SDXL; 0 leaves a block out. Empty is the rank everywhere.",
    )
    block_alphas: str | None = setting(
        None,
        title="Alphas by block",
        kohya="block_alphas",
        widget="numbers",
        help="An alpha for each block, as many numbers as ranks by block. Empty is the alpha everywhere.",
    )
    conv_block_dims: str | None = setting(
        None,
        title="Ranks of 3x3 convolutions by block",
        kohya="conv_block_dims",
        widget="numbers",
        help="A rank for the 3x3 convolutions of each block; 0 leaves a block's out. Empty is their one rank everywhere.",
    )
    conv_block_alphas: str | None = setting(
        None,
        title="Alphas of 3x3 convolutions by block",
        kohya="conv_block_alphas",
        widget="numbers",
        help="An alpha for the 3x3 convolutions of each block. Empty is their one alpha, or their rank.",
    )
    down_lr_weight: str | None = setting(
        None,
        title="Rates of the down blocks",
        kohya="down_lr_weight",
        widget="numbers",
        help="Factors of the U-Net's rate from the image inwards: 12 numbers (SDXL: 9), one for all, or sine, cosine, linear, reverse_linear, zeros, also with +0.25 added. 0 leaves a block out.",
    )
    mid_lr_weight: str | None = setting(
        None,
        title="Rates of the middle block",
        kohya="mid_lr_weight",
        widget="numbers",
        help="Factor of the U-Net's rate in the middle: one number (SDXL: 3). 0 leaves it out.",
    )
    up_lr_weight: str | None = setting(
        None,
        title="Rates of the up blocks",
        kohya="up_lr_weight",
        widget="numbers",
        help="As for the down blocks, from the middle outwards to the image.",
    )
    block_lr_zero_threshold: float = setting(
        0.0,
        ge=0,
        le=100,
        title="Rates by block that count as 0",
        kohya="block_lr_zero_threshold",
        help="Factors up to this one become 0: the block then has no LoRA.",
    )
    network_weights: str | None = setting(
        None,
        title="Start from a LoRA",
        kohya="network_weights",
        widget="lora",
        help="Goes on with the weights of this file, with a fresh optimizer. Its ranks must be those set here, or be taken from it.",
        names="path or name",
    )
    dim_from_weights: bool = setting(
        False,
        title="Ranks and alphas of that LoRA",
        kohya="dim_from_weights",
        help="Layers, ranks and alphas are those of the LoRA to start from; what is set here for them does not count.",
    )
    weights_scale: Literal["file", "kohya"] = setting(
        "file",
        title="Strength of that LoRA",
        labels={"file": "as it was saved", "kohya": "by the alpha set here"},
        help="Where its alpha is another than set here: sd-scripts trains with the one set here and saves the file's, so that the result acts with another strength than in training.",
    )
    base_weights: list[str] = setting(
        default_factory=list,
        title="LoRAs merged into the base model",
        kohya="base_weights",
        widget="lines",
        help="LoRA files that become part of the base model before training, one a line. The new LoRA then needs them too.",
        names="path or name",
    )
    base_weights_multiplier: str | None = setting(
        None,
        title="Strengths of the merged LoRAs",
        kohya="base_weights_multiplier",
        widget="numbers",
        help="One number for each merged LoRA, in their order. Empty, or numbers that are missing, are 1.",
    )
    base_weights_layers: Literal["own", "kohya"] = setting(
        "own",
        title="Layers trained after a merge",
        labels={"own": "the same as without", "kohya": "more, as sd-scripts"},
        help="After merging LoRAs, sd-scripts trains the U-Net's residual blocks too, but not their 3x3 convolutions. Choose it to repeat old results only.",
    )

    @field_validator("scale_weight_norms", "conv_rank", "conv_alpha", mode="before")
    @classmethod
    def _zero_is_off(cls, value: Any) -> Any:
        return zero_is_off(value)

    @field_validator(*NUMBER_TEXTS, mode="before")
    @classmethod
    def _from_list(cls, value: Any) -> Any:
        """[1, 0.5] and 1 are taken as "1,0.5" and "1": what is no number is said by the rules."""
        if isinstance(value, bool):
            return value
        if isinstance(value, (list, tuple)) and all(isinstance(item, (int, float)) for item in value):
            return ",".join(f"{item:g}" for item in value)
        return f"{value:g}" if isinstance(value, (int, float)) else value

    @property
    def dropped_out(self) -> bool:
        """Whether any dropout is on."""
        return self.network_dropout > 0 or self.rank_dropout > 0 or self.module_dropout > 0

    @property
    def has_block_rates(self) -> bool:
        """Whether the U-Net's rate differs by block."""
        return bool(self.down_lr_weight or self.mid_lr_weight or self.up_lr_weight)

    @property
    def trains_conv(self) -> bool:
        """Whether residual and resampling blocks are hooked too, with their 3x3 convolutions."""
        return self.conv_rank is not None or bool(self.conv_block_dims)

    @property
    def hooks_residual(self) -> bool:
        """Whether they are hooked, with or without their 3x3 convolutions."""
        return self.trains_conv or (bool(self.base_weights) and self.base_weights_layers == "kohya")
