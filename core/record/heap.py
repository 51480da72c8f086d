"""Freed memory of this process, given back to the system.

glibc keeps what is freed between two blocks that are still used: after a model's weights were put into another order,
nearly a gigabyte. It is given back only when asked.
"""

from __future__ import annotations

import ctypes
import sys
from functools import cache
from typing import Any

OFTEN_ENOUGH = 64 << 20  # bytes; asking takes some milliseconds


@cache
def _trim() -> Any:
    if not sys.platform.startswith("linux"):
        return None
    try:
        return ctypes.CDLL("libc.so.6").malloc_trim
    except (OSError, AttributeError):  # another C library
        return None


def give_back() -> bool:
    """Whether the system was given something. Does nothing but on Linux with glibc."""
    trim = _trim()
    return bool(trim is not None and trim(0))


class GivingBack:
    """Gives back now and then, as much is freed."""

    def __init__(self) -> None:
        self._freed = 0

    def freed(self, size: int) -> None:
        """size: bytes"""
        self._freed += size
        if self._freed >= OFTEN_ENOUGH:
            self._freed = 0
            give_back()
