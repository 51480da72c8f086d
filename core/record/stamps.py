"""The stamp of a file (size and modification time), by which content read from the file is cached."""

import os
from collections.abc import Callable, Iterable
from functools import lru_cache, wraps
from pathlib import Path
from typing import Any, TypeVar

Stamp = tuple[int, int]
T = TypeVar("T")


def stamp(path: Path | str) -> Stamp:
    """Return (bytes, modification time in ns) of a file, links followed. Raises OSError, or ValueError for an impossible name."""
    return stamp_of(os.stat(path))


def stamp_of(facts: os.stat_result) -> Stamp:
    """Return (bytes, modification time in ns) from a stat result."""
    return facts.st_size, facts.st_mtime_ns


def stamp_or_none(path: Path | str) -> Stamp | None:
    """Return the `stamp` of a file; None if it does not exist or cannot be read."""
    try:
        return stamp(path)
    except (OSError, ValueError):
        return None


def cached_until_changed(
    maxsize: int, missing: Any, name: str = ""
) -> Callable[[Callable[[Path], T]], Callable[[Path], T]]:
    """Decorator that caches what a function returns for a path until the file's stamp changes; errors are not cached.

    maxsize   number of cached results
    missing   result if the file does not exist
    name      name of the file in the path, if the function takes a folder
    """

    def decorate(read: Callable[[Path], T]) -> Callable[[Path], T]:
        @lru_cache(maxsize)
        def read_at(path: Path, stamp: Stamp) -> T:
            return read(path)

        @wraps(read)
        def cached(path: Path) -> T:
            stamp = stamp_or_none(path / name)
            return read_at(path, stamp) if stamp else missing

        cached.cache_clear = read_at.cache_clear  # type: ignore[attr-defined]
        return cached

    return decorate


def stamp_of_files(paths: Iterable[Path]) -> Stamp:
    """Return (total bytes, newest modification time in ns) of files; missing ones are ignored, (0, 0) without any."""
    stamps = [each for path in paths if (each := stamp_or_none(path))]
    return sum(size for size, _ in stamps), max((changed for _, changed in stamps), default=0)


def version(path: Path | str) -> str:
    """Return a file's stamp as text, for URLs; "" if the file does not exist."""
    stamp = stamp_or_none(path)
    return f"{stamp[1]:x}-{stamp[0]:x}" if stamp else ""
