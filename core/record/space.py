"""Disk space: size of a folder, checking for free space, emptying a folder."""

import math
import os
from contextlib import suppress
from pathlib import Path

from core.record import atomic, machine
from core.record.problems import ProblemsError
from core.record.workspace import display_path

RESERVE = 256_000_000  # kept free: journals, previews and other programs need some


def folder_bytes(folder: Path) -> int:
    """Return the total bytes of all files below `folder`; files that vanish meanwhile do not count."""
    total = 0
    for root, _, names in os.walk(folder):
        for name in names:
            with suppress(OSError):
                total += os.lstat(os.path.join(root, name)).st_size
    return total


def clear(folder: Path) -> int:
    """Delete everything in `folder` and return the bytes freed. Files that cannot be deleted, such as those in use, stay."""
    before = folder_bytes(folder)
    for each in list(folder.iterdir()) if folder.is_dir() else []:
        with suppress(OSError):
            atomic.remove_any(each)
    return before - folder_bytes(folder)


def require_space(folder: Path, needed: int, what: str, fix: str, reserve: int = RESERVE) -> None:
    """Raise ProblemsError unless the disk of `folder` has `needed` + `reserve` free bytes.

    what   the action that needs them, for the message: "Unpacking the zip"
    fix    advice
    """
    free = machine.free_disk(folder)
    if needed + reserve <= free:
        return
    needs = f"needs {_rounded_up(needed)} plus a reserve of {_rounded_up(reserve)}"
    what = f"{what} {needs}, but only {_rounded_down(free)} are available"
    raise ProblemsError.one(what, display_path(folder), fix, "disk.space")


def _rounded_up(count: int) -> str:
    """Format needed bytes rounded up: "1.2 GB", "300 MB"."""
    if count <= 0:
        return "0 MB"
    return f"{count / 1e9:.1f} GB" if count >= 999.5e6 else f"{math.ceil(count / 1e6)} MB"


def _rounded_down(count: int) -> str:
    """Format free bytes rounded down, so that the numbers in the message explain the refusal."""
    return f"{math.floor(count / 1e8) / 10:.1f} GB" if count >= 1e9 else f"{count // 1_000_000} MB"
