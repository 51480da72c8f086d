"""What the owner of the machine permits jobs: modules whose code they may run, files a shared page may access.

A preset or metadata file from elsewhere can name both but can permit neither.
"""

import json
import ntpath
import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path, PureWindowsPath

from core.record.problems import ProblemsError
from core.record.regular import LONGEST_NAME
from core.record.workspace import PROJECT, is_closed, is_share

FILE = PROJECT / "allowed_modules.txt"

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_by_flag: set[str] = set()
OPEN_FOLDERS = "ATELIER_OPEN_FOLDERS"  # a JSON list, set for processes launched by a shared page
KEYS_LENT = "ATELIER_KEYS_LENT"  # set with it if their jobs may use the owner's keys
_open_folders: Sequence[Path] | None = None
_keys_lent = False


def allow(name: str) -> None:
    """Allow a top-level module until this process ends: the command line's --allow-module. Raises ProblemsError for a text that
    is not a module's name."""
    if not _NAME.fullmatch(name):
        fix = "use the first part of package.module.Class: package"
        raise ProblemsError.one(f"--allow-module {name}: not a module name", "command line", fix, "module.bad-name")
    _by_flag.add(name)


def allowed_modules() -> frozenset[str]:
    """Names of top-level modules: the command line's and the lines of allowed_modules.txt. # starts a comment."""
    return frozenset({*_by_flag, *_lines(FILE)})


def _lines(file: Path) -> set[str]:
    """Module names in a file, one per line, without # comments; an empty set if it cannot be read."""
    try:
        text = file.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError):  # no readable file: nothing is allowed
        return set()
    names = {line.partition("#")[0].strip() for line in text.splitlines()}
    return {name for name in names if _NAME.fullmatch(name)}


def keep_files_inside(folders: Sequence[Path] | None, *, keys: bool = False) -> None:
    """Restrict the jobs of this process to files in these folders (a shared page). None: all files.

    keys   whether such jobs may use the owner's keys (Hugging Face, wandb)
    """
    global _open_folders, _keys_lent
    _open_folders = None if folders is None else [folder.resolve() for folder in folders]
    _keys_lent = keys


def limits_of_launched() -> dict[str, str]:
    """Environment variables that pass these limits on to launched processes."""
    if _open_folders is None:
        return {}
    folders = {OPEN_FOLDERS: json.dumps([str(folder) for folder in _open_folders])}
    return folders | ({KEYS_LENT: "1"} if _keys_lent else {})


def take_limits() -> None:
    """Adopt the limits of the process that launched this one, if any."""
    if folders := os.environ.get(OPEN_FOLDERS):
        keep_files_inside([Path(folder) for folder in json.loads(folders)], keys=bool(os.environ.get(KEYS_LENT)))


def may_use_keys() -> bool:
    """Whether jobs of this process may use the keys of the machine's owner."""
    return _open_folders is None or _keys_lent


def may_reach(path: Path) -> bool:
    """Whether a path from a file or a setting may be accessed: it is in an open folder, and in none that somebody else has alone."""
    return (_open_folders is None or lies_in(path, _open_folders)) and not is_closed(path)


def lies_in(path: str | os.PathLike, folders: Iterable[Path] | None) -> bool:
    """Whether a path is inside one of these folders, themselves resolved; None: anywhere. Links are followed first, so none
    leads outside. An invalid path is inside none."""
    folders = None if folders is None else list(folders)
    if folders is not None and is_share(path) and not any(is_share(folder) for folder in folders):
        return False
    if os.name == "nt" and folders is not None:
        if not lies_in_on_windows(os.path.abspath(path), [str(folder) for folder in folders]):
            return False
    try:
        real = Path(path).resolve()
        if any(len(part if os.name == "nt" else os.fsencode(part)) > LONGEST_NAME for part in real.parts):
            return False
    except (OSError, ValueError, RuntimeError):  # a NUL byte, a loop of links
        return False
    return folders is None or any(real.is_relative_to(folder) for folder in folders)


def lies_in_on_windows(path: str, folders: Iterable[str]) -> bool:
    r"""`lies_in` for an absolute Windows path, by its text only. What Windows does not read as a plain path is inside none
    of them: \\?\ and \\.\ devices, streams (a.txt:b), reserved names (CON, LPT1.txt), parts that end in a dot or space."""
    path = _EXTENDED.sub(lambda match: "\\\\" if match[1] else "", path.replace("/", "\\"))
    whole = PureWindowsPath(ntpath.normpath(path))
    if not whole.is_absolute() or whole.drive.startswith(("\\\\?", "\\\\.", "//?", "//.")):
        return False
    if any(windows_trap(part) for part in whole.parts[1:]):
        return False
    return any(whole.is_relative_to(PureWindowsPath(ntpath.normpath(folder))) for folder in folders)


def windows_trap(part: str) -> bool:
    """Whether Windows takes this part of a path for something other than a file or folder of that name."""
    if not part or part != part.rstrip(". ") or any(sign in '<>:"|?*' or ord(sign) < 32 for sign in part):
        return True
    stem = part.split(".")[0].rstrip(" ").upper()
    return stem in ("CON", "PRN", "AUX", "NUL", "CONIN$", "CONOUT$") or bool(_PORT.fullmatch(stem))


_EXTENDED = re.compile(r"^\\\\\?\\(?:(UNC)\\|(?=[A-Za-z]:\\))")  # the form for opening long paths
_PORT = re.compile("(COM|LPT)[0-9¹²³]")
