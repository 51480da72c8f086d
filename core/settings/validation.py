"""Validation images and validation loss."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from core.record.units import count
from core.settings.base import Settings, every, setting

if TYPE_CHECKING:
    from core.settings.job import TrainJob


class ValidationSettings(Settings):
    """Validation images and how often the validation loss is measured."""

    best_checkpoint: Literal["auto", "training", "off"] = setting(
        "training",
        title="Best checkpoint",
        labels={"auto": "on validation images", "training": "on training images", "off": "off"},
        help="Measures the loss of each saved checkpoint with fixed noise and timesteps and marks the best, for about 2% of the training time. Training images cannot show overfitting; validation images hold out 3% (2 to 16 images) of datasets of 40 or more. New projects use validation images.",
    )
    validation_split: float = setting(
        0.0,
        ge=0,
        le=1,
        title="Validation split",
        kohya="validation_split",
        help="Fraction of the images that is held out for validation: 0.1 holds out a tenth. The choice depends on their content, so it stays the same when others are added. 1 holds out all.",
    )
    validation_seed: int = setting(
        0,
        ge=0,
        le=2**32 - 1,
        title="Validation seed",
        kohya="validation_seed",
        help="Selects the validation images and fixes all randomness of validation: runs with the same validation seed are comparable, whatever their training seed. sd-scripts uses the training seed by default.",
    )
    validate_every_n_steps: int | None = setting(
        None,
        unit="steps",
        title="Validate every n steps",
        hint="off",
        kohya="validate_every_n_steps",
        help="Measures the loss on validation images and on as many training images, with fixed noise at four fixed timesteps. Validation loss that rises while training loss falls means overfitting. Empty or 0 is off.",
    )
    validate_every_n_epochs: int | None = setting(
        1,
        unit="epochs",
        title="Validate every n epochs",
        hint="off",
        kohya="validate_every_n_epochs",
        help="The same at the end of every n-th epoch, and also before the first step and at the end. Empty or 0 is off.",
    )
    max_validation_steps: int | None = setting(
        None,
        unit="batches",
        title="Max validation batches",
        hint="all",
        kohya="max_validation_steps",
        help="Validates on only this many batches, always the same, to save time. Empty or 0 uses all.",
    )

    def summary(self, job: TrainJob) -> str:
        share, sources = self.validation_split, [source for source in job.dataset.sources if source.enabled]
        held = sum(bool(source.validation_images) + (source.role == "validation") for source in sources)
        ways = {"auto": "best checkpoint by validation images", "training": "checkpoints measured on training images"}
        parts = [f"{share:.0%} of the images" if share else ways.get(self.best_checkpoint, "no validation split")]
        parts += [f"validation images in {count(held, 'folder')}"] if held else []
        if share or held:
            periods = ((self.validate_every_n_epochs, "epochs"), (self.validate_every_n_steps, "steps"))
            moments = [f"every {period} {unit}" for period, unit in periods if every(period)]
            parts += [f"measured {' and '.join(moments)}" if moments else "never measured"]
        return ", ".join(parts)
