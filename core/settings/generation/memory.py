"""What a generation keeps in memory, and where."""

from __future__ import annotations

from core.settings.base import Settings, setting


class GenerationMemorySettings(Settings):
    """Models in memory."""

    keep_models_gb: float | None = setting(
        None,
        within=(0, 4096),
        unit="GB",
        title="Keep models up to",
        hint="half of the memory",
        help="Models stay loaded for the next images until this is full; the least recently used leave first. Empty is half of the VRAM, without a GPU half of the RAM. 0 keeps only the last one.",
    )
