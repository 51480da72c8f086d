"""How generated images are shown while they are made, and written."""

from __future__ import annotations

from core.settings.base import Settings, setting


class OutputSettings(Settings):
    """Preview and files of images."""

    preview_every_n_steps: int | None = setting(
        2,
        within=(1, 1000),
        title="Preview every",
        unit="steps",
        hint="off",
        help="Shows an approximation of the image while it is made, at most four times a second. Empty is off.",
    )
