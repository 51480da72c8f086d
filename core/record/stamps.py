"""The stamp of a file, which differs after each change: what was read from the file is cached by it."""

import os
from collections.abc import Callable, Iterable
from functools import lru_cache, wraps
from pathlib import Path
from typing import Any, TypeVar

Stamp = tuple[int, int]
T = TypeVar("T")


def stamp(path: Path | str) -> Stamp:
    """(bytes, modification time in ns) of a file, links followed. Raises OSError, or ValueError for an impossible name."""
    return stamp_of(os.stat(path))


def stamp_of(facts: os.stat_result) -> Stamp:
    return facts.st_size, facts.st_mtime_ns


def stamp_or_none(path: Path | str) -> Stamp | None:
    """`stamp`; None if the file does not exist."""
    try:
        return stamp(path)
    except (OSError, ValueError):
        return None


def cached_until_changed(
    maxsize: int, missing: Any, name: str = ""
) -> Callable[[Callable[[Path], T]], Callable[[Path], T]]:
    """Caches what a function reads from a file, except errors, until the file's stamp changes.

    missing   what it returns where there is no such file     name   of the file, if the function gets its folder
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
    """(bytes of all, newest modification time in ns) of files; those that do not exist do not count."""
    stamps = [each for path in paths if (each := stamp_or_none(path))]
    return sum(size for size, _ in stamps), max((changed for _, changed in stamps), default=0)


def version(path: Path | str) -> str:
    """The stamp as text, for a browser; "" if the file does not exist."""
    stamp = stamp_or_none(path)
    return f"{stamp[1]:x}-{stamp[0]:x}" if stamp else ""
