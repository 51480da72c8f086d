"""The stamp of a file, which differs after each change: what was read from the file is cached by it."""

import os
from collections.abc import Iterable
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


def stamp_of_files(paths: Iterable[Path]) -> Stamp:
    """(bytes of all, newest modification time in ns) of files; those that do not exist do not count."""
    stamps = [each for path in paths if (each := stamp_or_none(path))]
    return sum(size for size, _ in stamps), max((changed for _, changed in stamps), default=0)


def version(path: Path | str) -> str:
    """The stamp as text, for a browser; "" where there is no such file."""
    stamp = stamp_or_none(path)
    return f"{stamp[1]:x}-{stamp[0]:x}" if stamp else ""
