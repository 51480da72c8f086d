"""Images that never train, to see whether what is trained holds for others."""

from __future__ import annotations

from typing import Literal

from core.settings.base import Settings, setting


class ValidationSettings(Settings):
    """Which images are held out, and how often the loss is measured on them."""

    best_checkpoint: Literal["auto", "training", "off"] = setting(
        "training",
        title="Find the best checkpoint",
        labels={"auto": "on held-out images", "training": "on training images", "off": "off"},
        help="Measures saved checkpoints with fixed noise at fixed timesteps and names the best, for about 2% of the training's time. On training images changes nothing that trains, but cannot show overfitting. On held-out images: from 40 images on, 3% (2 to 16) never train. New projects hold out.",
    )
    validation_split: float = setting(
        0.0,
        ge=0,
        le=1,
        title="Share held out",
        kohya="validation_split",
        help="This share of the images never trains and is kept for validation: 0.1 holds out a tenth. Which ones follows from their content, so it stays the same when others are added. 1 holds out all.",
    )
    validation_seed: int = setting(
        0,
        ge=0,
        le=2**32 - 1,
        title="Which are held out",
        kohya="validation_seed",
        help="Another number holds out other images. It also fixes everything random about measuring them: runs with the same number compare, whatever their training seed. sd-scripts takes the training seed unless it is given one.",
    )
    validate_every_n_steps: int | None = setting(
        None,
        unit="steps",
        title="Validate every n steps",
        kohya="validate_every_n_steps",
        help="Measures the loss on held-out images, and on as many that train, with fixed noise at four fixed timesteps. A loss that rises there while it falls in training means overfitting. Empty or 0 is off.",
    )
    validate_every_n_epochs: int | None = setting(
        1,
        unit="epochs",
        title="Validate every n epochs",
        kohya="validate_every_n_epochs",
        help="The same at the end of every n-th epoch. It is also done before the first step and at the end. Empty or 0 is off.",
    )
    max_validation_steps: int | None = setting(
        None,
        unit="batches",
        title="Validate on at most",
        kohya="max_validation_steps",
        help="Takes only so many batches of the held-out images, always the same, to save time. Empty or 0 takes all.",
    )
