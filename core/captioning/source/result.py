"""What captions from text share: the caption of a text, or why there is none; objects of JSON files."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from core.captioning.described import Described, skipped
from core.dataset.sources.files import printable

LONGEST = 100_000  # characters: no caption has that many
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
_HALF_PAIR = re.compile("[\ud800-\udfff]")


def described(path: Path, text: str, nothing: Described) -> Described:
    """The caption of an image. nothing: the result for a blank text."""
    if len(text) > LONGEST:
        what = f"The text for {printable(path.name)} has {len(text):,} characters, more than {LONGEST:,}"
        return skipped(path, what, "write its caption by hand", "source.too-long")
    text = " ".join(_CONTROL.sub(" ", text).split())
    if not text.strip(" ,"):
        return nothing
    if _HALF_PAIR.search(text):
        what = f"The name of {printable(path.name)} is not valid Unicode"
        return skipped(path, what, "rename the file or its folder", "source.not-unicode")
    return Described(text)


def first_object(value: Any) -> dict[str, Any]:
    """A JSON object, or the first one of a list, as exports hold a single post; {} for anything else."""
    value = value[0] if isinstance(value, list) and value else value
    return value if isinstance(value, dict) else {}
