"""How long training goes on, and how its rate changes."""

from __future__ import annotations

from typing import Literal

from core.settings.base import Settings, setting


class ScheduleSettings(Settings):
    """Length, learning-rate curve and the seed."""

    max_train_epochs: int | None = setting(
        None,
        ge=1,
        le=100000,
        title="Passes over each picture",
        level="shown",
        unit="epochs",
        kohya="max_train_epochs",
        help="Epochs. Empty, with steps empty too, takes the advised length for the number of pictures.",
    )
    max_train_steps: int | None = setting(
        None,
        ge=1,
        le=10000000,
        title="Steps",
        level="shown",
        unit="steps",
        kohya="max_train_steps",
        help="Optimizer updates. When set, it decides and the passes are ignored.",
    )
    gradient_accumulation_steps: int = setting(
        1,
        ge=1,
        le=1024,
        title="Gradient accumulation",
        unit="batches",
        kohya="gradient_accumulation_steps",
        help="Batches whose gradients are added up before one update: a large batch in little memory.",
    )
    lr_scheduler: Literal["constant", "cosine", "linear"] = setting(
        "constant",
        title="Learning-rate curve",
        kohya="lr_scheduler",
        labels={"constant": "constant", "cosine": "cosine to 0", "linear": "linear to 0"},
        help="How the rate changes over the run.",
    )
    lr_warmup_steps: int = setting(
        0,
        ge=0,
        le=1000000,
        title="Warm-up",
        unit="steps",
        kohya="lr_warmup_steps",
        help="Steps over which the rate rises from 0.",
    )
    seed: int | None = setting(
        None,
        ge=0,
        le=2**32 - 1,
        title="Seed",
        kohya="seed",
        help="The same seed and settings train the same LoRA. Empty draws one and records it.",
    )
