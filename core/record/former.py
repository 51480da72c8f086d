"""Names that earlier versions used in journals, states, records and presets, and their current names."""

from collections.abc import Mapping
from typing import Any

# Schema version 1 -> 2.
NAMES = {"pictures": "images", "pictures_seen": "images_seen"}
KINDS = {"picture": "image"}


def with_current_names(record: Mapping[str, Any]) -> dict[str, Any]:
    """Return `record`, such as a journal line, with keys of earlier versions replaced by the current names, and so its "kind", the name of
    an event."""
    now = {NAMES.get(key, key): value for key, value in record.items()}
    if isinstance(kind := now.get("kind"), str):
        now["kind"] = KINDS.get(kind, kind)
    return now
