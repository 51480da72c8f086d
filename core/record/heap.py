"""Controls whether freed memory is returned to the system or stays with this process for the next large tensor.

glibc keeps freed memory between two blocks in use until `malloc_trim`: nearly a gigabyte after a model's weights were
reordered. Large blocks it returns at once, and the system clears the pages of the next one again: an optimizer that
allocates a temporary as large as each weight spends half its time waiting for that.
"""

import ctypes
import gc
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

TRIM_BYTES = 64 << 20  # bytes; a call takes some milliseconds
TRIM_THRESHOLD, MMAP_THRESHOLD, MMAP_MAX, ARENA_MAX = -1, -3, -4, -8  # mallopt's numbers
# While a process runs, glibc raises the first two up to these values until one is set; the third is its default.
USUAL = {TRIM_THRESHOLD: 64 << 20, MMAP_THRESHOLD: 32 << 20, MMAP_MAX: 65536}


@cache
def _glibc() -> Any:
    """Return the C library if it is glibc, else None."""
    if not sys.platform.startswith("linux"):
        return None
    try:
        library = ctypes.CDLL("libc.so.6")
        return library if library.malloc_trim and library.mallopt else None
    except (OSError, AttributeError):
        return None


def trim_heap() -> bool:
    """Return freed memory to the system (malloc_trim). Return whether any was returned; False without glibc."""
    library = _glibc()
    return bool(library is not None and library.malloc_trim(0))


def single_arena() -> None:
    """Limit glibc to one malloc arena for all threads, since only the main arena keeps large blocks. Call before any thread starts."""
    library = _glibc()
    if library is not None:
        library.mallopt(ARENA_MAX, 1)


@contextmanager
def keep_freed_memory() -> Iterator[None]:
    """Context in which glibc keeps freed memory for reuse; afterwards it is returned to the system. Does nothing without glibc."""
    library = _glibc()
    if library is None:
        yield
        return
    library.mallopt(MMAP_MAX, 0)
    library.mallopt(TRIM_THRESHOLD, 2**31 - 1)
    try:
        yield
    finally:
        for parameter, value in USUAL.items():
            library.mallopt(parameter, value)
        trim_heap()


@contextmanager
def without_gc() -> Iterator[None]:
    """Context with garbage collection disabled: for imports and building pages, which create no reference cycles."""
    collects = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collects:
            gc.enable()


def freeze_gc() -> None:
    """Exclude all existing objects from garbage collection, which took a third of a second each time for half a million objects of
    libraries and the page. Call while no job has data in memory."""
    gc.freeze()


class HeapTrimmer:
    """Calls `trim_heap` after every TRIM_BYTES freed bytes."""

    def __init__(self) -> None:
        self._freed = 0

    def freed(self, size: int) -> None:
        """Count `size` freed bytes; trim the heap after every TRIM_BYTES."""
        self._freed += size
        if self._freed >= TRIM_BYTES:
            self._freed = 0
            trim_heap()
