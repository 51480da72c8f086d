"""The adapter that learns."""

from __future__ import annotations

from core.settings.base import Settings, setting


class NetworkSettings(Settings):
    """Size and reach of a LoRA."""

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
        gt=0,
        le=4096,
        title="Alpha",
        kohya="network_alpha",
        help="The LoRA acts with alpha / rank. Equal to the rank is neutral; lower needs a higher learning rate.",
    )
    conv_rank: int | None = setting(
        None,
        ge=1,
        le=1024,
        title="Rank of 3x3 convolutions",
        kohya="conv_dim",
        help="Trains the 3x3 convolutions too (C3Lier, also called LoCon): better for textures and styles. Empty is off.",
        costs="About half again the time of a step.",
    )
    conv_alpha: float | None = setting(
        None,
        gt=0,
        le=4096,
        title="Alpha of 3x3 convolutions",
        kohya="conv_alpha",
        help="Acts with alpha / rank of the 3x3 convolutions. Empty is the same as their rank.",
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
