"""What the owner of the machine lets jobs do: modules whose code they may run, files that a shared page may reach.

A preset or a metadata file that came from elsewhere can name both, and can allow neither.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from core.record.problems import ProblemsError
from core.record.workspace import PROJECT

FILE = PROJECT / "allowed_modules.txt"
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_by_flag: set[str] = set()
OPEN_FOLDERS = "ATELIER_OPEN_FOLDERS"  # a JSON list, set for processes that a shared page has launched
_open_folders: Sequence[Path] | None = None


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


def keep_files_inside(folders: Sequence[Path] | None) -> None:
    """From now on jobs of this process reach only files in these folders: those of a shared page. None: all."""
    global _open_folders
    _open_folders = None if folders is None else [folder.resolve() for folder in folders]


def limits_of_launched() -> dict[str, str]:
    """What stands in the environment of processes that this one launches, so that they keep to the same folders."""
    return {} if _open_folders is None else {OPEN_FOLDERS: json.dumps([str(folder) for folder in _open_folders])}


def take_limits() -> None:
    """Keep to the folders of the process that launched this one, if it did."""
    if folders := os.environ.get(OPEN_FOLDERS):
        keep_files_inside([Path(folder) for folder in json.loads(folders)])


def may_reach(path: Path) -> bool:
    """Whether a path that stands in a file, or is written to by a setting, may be touched."""
    return _open_folders is None or lies_in(path, _open_folders)


def lies_in(path: str | os.PathLike, folders: Iterable[Path] | None) -> bool:
    """Whether a path lies in one of these folders, themselves resolved; None: anywhere. Links are followed first, so none
    leads outside. What is no path at all lies nowhere."""
    try:
        real = Path(path).resolve()
    except (OSError, ValueError, RuntimeError):  # a NUL byte, a loop of links
        return False
    return folders is None or any(real.is_relative_to(folder) for folder in folders)
