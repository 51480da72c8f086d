"""The stamp of a file, which differs after each change: what was read from the file is cached by it."""

from __future__ import annotations

import os
from pathlib import Path

Stamp = tuple[int, int]


def stamp(path: Path | str) -> Stamp:
    """(bytes, modification time in ns) of a file, links followed. Raises OSError, or ValueError for an impossible name."""
    return stamp_of(os.stat(path))


def stamp_of(facts: os.stat_result) -> Stamp:
    return facts.st_size, facts.st_mtime_ns


def stamp_or_none(path: Path | str) -> Stamp | None:
    """`stamp`, None where there is no such file."""
    try:
        return stamp(path)
    except (OSError, ValueError):
        return None


def version(path: Path | str) -> str:
    """The stamp as text, for a browser; "" where there is no such file."""
    stamp = stamp_or_none(path)
    return f"{stamp[1]:x}-{stamp[0]:x}" if stamp else ""
