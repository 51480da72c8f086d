"""Names that earlier versions used in journals, states, records and presets, so that those stay readable."""

from collections.abc import Mapping
from typing import Any

# Schema version 1 -> 2.
NAMES = {"pictures": "images", "pictures_seen": "images_seen"}
KINDS = {"picture": "image"}


def renewed(record: Mapping[str, Any]) -> dict[str, Any]:
    """Return the record with its keys, and an event's kind, under their current names."""
    now = {NAMES.get(key, key): value for key, value in record.items()}
    if isinstance(kind := now.get("kind"), str):
        now["kind"] = KINDS.get(kind, kind)
    return now
