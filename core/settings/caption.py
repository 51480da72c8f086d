"""What the caption job writes."""

from __future__ import annotations

from core.settings.base import Settings, setting


class CaptionWriteSettings(Settings):
    """Captions for a folder."""

    write_missing: str | None = setting(
        None,
        title="Write where none is",
        level="shown",
        help="Text written as the caption of each image that has none; {words} stands for the folder's words. Empty writes nothing and only reports.",
    )
