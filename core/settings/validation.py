"""Pictures that never train, to see whether what is learnt holds for others."""

from __future__ import annotations

from core.settings.base import Settings, setting


class ValidationSettings(Settings):
    """Which pictures are held out."""

    validation_split: float = setting(
        0.0,
        ge=0,
        le=1,
        title="Share held out",
        kohya="validation_split",
        help="This share of the pictures never trains and is kept for validation: 0.1 holds out a tenth. Which ones follows from their content, so it stays the same when others are added. 1 holds out all.",
    )
    validation_seed: int = setting(
        0,
        ge=0,
        le=2**32 - 1,
        title="Which are held out",
        kohya="validation_seed",
        help="Another number holds out other pictures.",
    )
