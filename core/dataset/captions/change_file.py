"""The file of a change in the caption history: JSON lines with the old and new text of each changed file."""

import base64
import json
import os
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

LATEST = 1e11  # seconds since 1970; a later time is invalid


@dataclass(frozen=True)
class Change:
    """A change of one file: its bytes before and after, None for no file.
    link: target of a symbolic link that is deleted instead of its target file; undo restores the link"""

    path: Path
    old: bytes | None
    new: bytes | None
    link: str | None = None


def line_of(change: Change) -> dict[str, Any]:
    """Return the line that records a file's change, as JSON values: {"path", "old", "new": `to_json` of its contents, "link": target of a
    deleted link, only if there is one}."""
    link = os.readlink(change.path) if change.new is None and os.path.islink(change.path) else change.link
    about = {"path": str(change.path.absolute()), "old": to_json(change.old), "new": to_json(change.new)}
    return about | ({"link": link} if link else {})


def to_json(data: bytes | None) -> Any:
    """Convert a file's bytes for JSON: text if they are UTF-8, else {"base64": ...}; None for no file."""
    if data is None:
        return None
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError:
        return {"base64": base64.b64encode(data).decode("ascii")}


def from_json(value: Any) -> bytes | None:
    """Convert the result of `to_json` back to bytes, or None. Raises ValueError, KeyError or TypeError for other values."""
    if isinstance(value, dict):
        return base64.b64decode(value["base64"])
    return None if value is None else str.encode(value)


def _is_valid(line: Any) -> bool:
    """Return whether a parsed line of a change's file is an object with the expected types: "path", "old", "new", "link", or "title", "at",
    "about"; each may be missing."""
    try:
        title, at, about = line.get("title", ""), line.get("at", 0), line.get("about") or {}
        names = [os.fsencode(line[name]) for name in ("path", "link") if name in line]
        for name in ("old", "new"):
            from_json(line.get(name))
        simple = all(isinstance(each, str | int | float | None) for each in about.values())
        return isinstance(title, str) and 0 <= at < LATEST and simple and not any(b"\0" in name for name in names)
    except (AttributeError, KeyError, TypeError, ValueError):
        return False


class Line(NamedTuple):
    """A line of a change's file, parsed, with its byte range."""

    content: dict[str, Any]
    begin: int
    end: int


def read_lines(path: Path, begin: int = 0) -> Iterator[Line]:
    """Yield the lines of a change's file from byte `begin` on; none if the file is missing.

    A damaged line is yielded as {}; an incomplete last line is skipped.
    """
    with suppress(OSError, ValueError), open(path, "rb") as handle:  # ValueError: a name that no file can have
        handle.seek(begin)
        for text in handle:
            if text.endswith(b"\n"):
                try:
                    line = json.loads(text)
                except (ValueError, RecursionError):
                    line = None
                yield Line(line if _is_valid(line) else {}, begin, begin + len(text))
            begin += len(text)
