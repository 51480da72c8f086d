"""Permissions that the machine's owner grants to jobs: Python modules to import, folders that a shared page may access.

A preset or metadata file from elsewhere can name a module or folder, but cannot permit it.
"""

import json
import ntpath
import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path, PureWindowsPath

from core.record.problems import ProblemsError
from core.record.regular import LONGEST_NAME, is_special_on_windows, name_length
from core.record.workspace import PROJECT, is_closed, is_share

FILE = PROJECT / "allowed_modules.txt"

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_by_flag: set[str] = set()
OPEN_FOLDERS = "ATELIER_OPEN_FOLDERS"  # a JSON list, set for processes launched by a shared page
KEYS_LENT = "ATELIER_KEYS_LENT"  # set with it if their jobs may use the owner's keys
_open_folders: Sequence[Path] | None = None
_keys_lent = False


def allow(name: str) -> None:
    """Allow jobs to import the top-level module `name` until this process ends (--allow-module). Raises ProblemsError unless `name` is an
    ASCII identifier."""
    if not _NAME.fullmatch(name):
        fix = "use the first part of package.module.Class: package"
        raise ProblemsError.one(f"--allow-module {name}: not a module name", "command line", fix, "module.bad-name")
    _by_flag.add(name)


def allowed_modules() -> frozenset[str]:
    """Return the names of the allowed top-level modules: those passed to `allow` and the lines of allowed_modules.txt."""
    return frozenset({*_by_flag, *_lines(FILE)})


def _lines(file: Path) -> set[str]:
    """Return the module names in `file`, one per line, without # comments; an empty set if the file cannot be read."""
    try:
        text = file.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError):  # no readable file: nothing is allowed
        return set()
    names = {line.partition("#")[0].strip() for line in text.splitlines()}
    return {name for name in names if _NAME.fullmatch(name)}


def keep_files_inside(folders: Sequence[Path] | None, *, keys: bool = False) -> None:
    """Restrict the jobs of this process to files in `folders`, as for a shared page; None removes the restriction.
    keys: whether restricted jobs may use the owner's API keys (Hugging Face, wandb)"""
    global _open_folders, _keys_lent
    _open_folders = None if folders is None else [folder.resolve() for folder in folders]
    _keys_lent = keys


def limits_of_launched() -> dict[str, str]:
    """Return {name: value} of environment variables that pass the restrictions of `keep_files_inside` on to launched processes; {} if there
    are none."""
    if _open_folders is None:
        return {}
    folders = {OPEN_FOLDERS: json.dumps([str(folder) for folder in _open_folders])}
    return folders | ({KEYS_LENT: "1"} if _keys_lent else {})


def take_limits() -> None:
    """Adopt the restrictions that the launching process set in the environment (`limits_of_launched`), if any."""
    if folders := os.environ.get(OPEN_FOLDERS):
        keep_files_inside([Path(folder) for folder in json.loads(folders)], keys=bool(os.environ.get(KEYS_LENT)))


def may_use_keys() -> bool:
    """Whether jobs of this process may use the API keys of the machine's owner."""
    return _open_folders is None or _keys_lent


def may_reach(path: Path) -> bool:
    """Whether jobs of this process may access `path`: it is in no folder that somebody else than the job's user has alone, and in
    an open folder if `keep_files_inside` names any."""
    return (_open_folders is None or lies_in(path, _open_folders)) and not is_closed(path)


def lies_in(path: str | os.PathLike, folders: Iterable[Path] | None) -> bool:
    """Whether `path`, with links followed, is inside one of `folders` (resolved paths); None allows any folder.

    False for invalid paths (NUL byte, loop of links, a name over 255 bytes), and for a network path unless a folder in `folders` is
    a network path.
    """
    folders = None if folders is None else list(folders)
    if folders is not None and is_share(path) and not any(is_share(folder) for folder in folders):
        return False
    if os.name == "nt" and folders is not None:
        if not lies_in_on_windows(os.path.abspath(path), [str(folder) for folder in folders]):
            return False
    try:
        real = Path(path).resolve()
        if any(name_length(part) > LONGEST_NAME for part in real.parts):
            return False
    except (OSError, ValueError, RuntimeError):  # a NUL byte, a loop of links
        return False
    return folders is None or any(real.is_relative_to(folder) for folder in folders)


def lies_in_on_windows(path: str, folders: Iterable[str]) -> bool:
    r"""`lies_in` for an absolute Windows path, by its text only, without following links.

    False for everything that Windows does not read as a plain path: \\?\ and \\.\ devices, streams (a.txt:b), reserved names (CON,
    LPT1.txt), components that end in a dot or space.
    """
    path = _EXTENDED.sub(lambda match: "\\\\" if match[1] else "", path.replace("/", "\\"))
    windows_path = PureWindowsPath(ntpath.normpath(path))
    if not windows_path.is_absolute() or windows_path.drive.startswith(("\\\\?", "\\\\.", "//?", "//.")):
        return False
    if any(is_special_on_windows(part) for part in windows_path.parts[1:]):
        return False
    return any(windows_path.is_relative_to(PureWindowsPath(ntpath.normpath(folder))) for folder in folders)


_EXTENDED = re.compile(r"^\\\\\?\\(?:(UNC)\\|(?=[A-Za-z]:\\))")  # the form for opening long paths
