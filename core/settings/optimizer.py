"""How weights are moved."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from core.settings.base import Settings, setting

Beta = Annotated[float, Field(ge=0, lt=1)]


class OptimizerSettings(Settings):
    """The optimizer and its rates."""

    optimizer_type: Literal["AdamW", "AdamW8bit"] = setting(
        "AdamW",
        title="Optimizer",
        level="shown",
        kohya="optimizer_type",
        labels={"AdamW": "AdamW", "AdamW8bit": "AdamW 8-bit"},
        source="Loshchilov and Hutter 2019, arXiv:1711.05101; Dettmers et al. 2022, arXiv:2110.02861",
        help="AdamW suits everything. The 8-bit one keeps its memory of past gradients in a quarter of the space.",
    )
    learning_rate: float = setting(
        1e-4,
        ge=0,
        le=10,
        title="Learning rate",
        level="shown",
        kohya="learning_rate",
        help="How far each step moves. 1e-4 for a LoRA of SD 1.5; too high burns the picture, too low learns nothing.",
    )
    unet_lr: float | None = setting(
        None,
        ge=0,
        le=10,
        title="Rate of the U-Net",
        kohya="unet_lr",
        help="Empty is the learning rate; 0 leaves the U-Net as it is.",
    )
    text_encoder_lr: float | None = setting(
        None,
        ge=0,
        le=10,
        title="Rate of the text encoder",
        kohya="text_encoder_lr",
        help="Empty is the learning rate; half of it is usual. 0 leaves the text encoder as it is.",
    )
    weight_decay: float = setting(
        0.01,
        ge=0,
        le=10,
        title="Weight decay",
        kohya="optimizer_args",
        help="Pulls weights towards zero at every step.",
    )
    betas: tuple[Beta, Beta] = setting(
        (0.9, 0.999), title="Betas", kohya="optimizer_args", help="How long gradients and their squares are remembered."
    )
    eps: float = setting(
        1e-8, gt=0, le=1, title="Epsilon", kohya="optimizer_args", help="Keeps the division of AdamW finite."
    )
    max_grad_norm: float = setting(
        1.0,
        ge=0,
        le=1e6,
        title="Gradient clipping",
        kohya="max_grad_norm",
        help="Longest gradient, over all trained weights together. 0 is off.",
    )
