"""Validation images and validation loss."""

from typing import Literal

from core.settings.base import SEED_RANGE, Settings, follows_compatibility, kohya_setting, setting


class ValidationSettings(Settings):
    """Validation images and how often the validation loss is measured."""

    best_checkpoint: Literal["auto", "training", "off"] = setting(
        "training",
        labels={"auto": "on validation images", "training": "on training images"},
        help="Measures the loss of each saved checkpoint with fixed noise and timesteps and marks the best; takes about 2% of the training time. Validation images, the default of new projects, hold out 3% (2 to 16 images) of datasets of 40 or more; loss on training images cannot show overfitting. With Compatibility, no images are held out.",
    )
    validation_split: float = kohya_setting(
        0.0,
        within=(0, 1),
        help="Fraction of each folder's images that is held out for validation: 0.1 holds out a tenth. The choice depends on their content, so it stays the same when others are added. 1 holds out all.",
    )
    validation_seed: int = kohya_setting(
        0,
        within=SEED_RANGE,
        help="Selects the validation images and fixes all randomness of validation: runs with the same validation seed are comparable, whatever their training seed. sd-scripts uses the training seed by default.",
    )
    validate_every_n_steps: int | None = kohya_setting(
        None,
        unit="steps",
        hint="off",
        help="Measures the loss on validation images and on the same number of training images, with fixed noise at four fixed timesteps. Validation loss that rises while training loss falls means overfitting. Empty or 0 is off.",
    )
    validate_every_n_epochs: int | None = kohya_setting(
        1,
        unit="epochs",
        hint="off",
        help="Measures the validation loss every n epochs, before the first step and at the end. Empty or 0 is off.",
    )
    max_validation_steps: int | None = kohya_setting(
        None,
        unit="batches",
        title="Max validation batches",
        hint="all",
        help="Validates on only this many batches, always the same, to save time. Empty or 0 uses all.",
    )

    compatibility: Literal["none", "kohya"] = follows_compatibility("none", "kohya")

    @property
    def automatic(self) -> bool:
        """Whether a few images are held out automatically to find the best checkpoint; never with sd-scripts' compatibility."""
        return self.best_checkpoint == "auto" and self.compatibility == "none"
