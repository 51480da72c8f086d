"""Space on the disk: what a folder takes, and emptying one."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

from core.record import atomic


def folder_bytes(folder: Path) -> int:
    """Bytes of all files below a folder; what vanishes meanwhile does not count."""
    total = 0
    for root, _, names in os.walk(folder):
        for name in names:
            with suppress(OSError):
                total += os.lstat(os.path.join(root, name)).st_size
    return total


def clear(folder: Path) -> int:
    """Delete all that is in a folder, and return the bytes freed. What another program holds stays."""
    before = folder_bytes(folder)
    for each in list(folder.iterdir()) if folder.is_dir() else []:
        with suppress(OSError):
            (atomic.remove_folder if each.is_dir() and not each.is_symlink() else atomic.remove)(each)
    return before - folder_bytes(folder)
