"""Settings of textual inversion. The group exists from the first version so that presets never move; it has no settings yet."""

from __future__ import annotations

from core.settings.base import Settings


class EmbeddingSettings(Settings):
    """New words for a model."""
