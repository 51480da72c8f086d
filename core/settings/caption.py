"""What the caption job writes."""

from __future__ import annotations

from core.settings.base import Settings, setting


class CaptionWriteSettings(Settings):
    """Write missing captions."""

    write_missing: str | None = setting(
        None,
        title="Caption for uncaptioned images",
        level="shown",
        help="Text to write as the caption of each image that has none; {words} is replaced by the folder's class tokens. Empty writes nothing and only reports.",
    )
