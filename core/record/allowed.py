"""What the owner of the machine lets jobs do: modules whose code they may run, files that a shared page may reach.

A preset or a metadata file that came from elsewhere can name both, and can allow neither.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from pathlib import Path

from core.record.problems import ProblemsError
from core.record.workspace import PROJECT

FILE = PROJECT / "allowed_modules.txt"
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_by_flag: set[str] = set()
_is_open: Callable[[Path], bool] | None = None


def allow(name: str) -> None:
    """Allow a top-level module until this process ends: the command line's --allow-module."""
    if not _NAME.fullmatch(name):
        raise ProblemsError.one(
            f"--allow-module {name}: this is no module's name",
            "command line",
            "give the first part of package.module.Class: package",
        )
    _by_flag.add(name)


def allowed_modules(extra: Iterable[str] = (), file: Path | None = None) -> frozenset[str]:
    """Names of top-level modules: the command line's and the lines of allowed_modules.txt. # begins a comment."""
    return frozenset({*_by_flag, *extra, *_lines(file or FILE)})


def _lines(file: Path) -> set[str]:
    try:
        text = file.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError):  # no file, or none that can be read: nothing is allowed
        return set()
    names = {line.partition("#")[0].strip() for line in text.splitlines()}
    return {name for name in names if _NAME.fullmatch(name)}


def keep_files_inside(is_open: Callable[[Path], bool] | None) -> None:
    """From now on jobs of this process reach only files that `is_open` says yes to: a shared page's folders. None: all."""
    global _is_open
    _is_open = is_open


def may_reach(path: Path) -> bool:
    """Whether a path that stands in a file, or is written to by a setting, may be touched."""
    return _is_open is None or _is_open(path)
