"""Opens user files only if they are regular files: a named pipe would block forever, a device may never end. Also checks whether a path can
be written, before work starts."""

import errno
import os
import re
import stat
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

from core.record.problems import IN_USE, Problem, ProblemsError
from core.record.units import size_text
from core.record.workspace import display_path, is_foreign

T = TypeVar("T")
WINDOWS = os.name == "nt"
RETRIES, RETRY_SECONDS = 8, 0.05
_KINDS = (
    (stat.S_ISDIR, "file.is-folder"),
    (stat.S_ISFIFO, "file.is-pipe"),
    (stat.S_ISSOCK, "file.is-socket"),
    (stat.S_ISCHR, "file.is-device"),
    (stat.S_ISBLK, "file.is-device"),
)
# Problem code -> what the path is instead of a file.
SPECIAL_FILES = {
    "file.is-folder": "a folder",
    "file.is-pipe": "a named pipe",
    "file.is-socket": "a socket",
    "file.is-device": "a device",
}


class MissingFile(ProblemsError):
    """Raised if no file exists at a path."""


def open_regular(path: Path | str, buffering: int = -1) -> BinaryIO:
    """Open a regular file for reading bytes. Raises ProblemsError; MissingFile if it does not exist.

    The path is checked before opening (opening a pipe waits for its writer, opening a device can move it), and again
    after, without blocking, since it may have been replaced in between.
    """
    try:
        _refuse_special(os.stat(path).st_mode, path)
        flags = os.O_RDONLY | getattr(os, "O_BINARY", 0) | getattr(os, "O_NONBLOCK", 0)
        handle = retry_open(os.open, path, flags)
        try:
            _refuse_special(os.fstat(handle).st_mode, path)
            return os.fdopen(handle, "rb", buffering)
        except BaseException:
            os.close(handle)
            raise
    except (OSError, ValueError) as error:  # ValueError: a name with a null character or half a surrogate pair
        raise _unreadable(error, path) from error


def retry_open(action: Callable[..., T], *arguments: Any) -> T:
    """Return `action(*arguments)`, which opens a file; on Windows retried while another program has the file open."""
    return retry(1 + RETRIES if WINDOWS else 1, action, *arguments)


def retry(tries: int, action: Callable[..., T], *arguments: Any) -> T:
    """Return `action(*arguments)`, called up to `tries` times while it raises PermissionError (on Windows, another program has the file
    open)."""
    for _ in range(tries - 1):
        try:
            return action(*arguments)
        except PermissionError:
            time.sleep(RETRY_SECONDS)
    return action(*arguments)


def check_regular(path: Path | str) -> os.stat_result:
    """Return the stat result of a regular file, for a library that opens it by name. Raises as `open_regular`."""
    try:
        facts = os.stat(path)
    except (OSError, ValueError) as error:
        raise _unreadable(error, path) from error
    _refuse_special(facts.st_mode, path)
    return facts


def read_regular(path: Path | str, max_bytes: int) -> bytes:
    """Return the bytes of a regular file. Raises as `open_regular`, and if there are more than `max_bytes`, whatever size the system
    reports."""
    with open_regular(path) as handle:
        try:
            large = os.fstat(handle.fileno()).st_size > max_bytes  # then none of it needs to be in memory
            data = b"" if large else handle.read(max_bytes + 1)
        except OSError as error:
            raise _unreadable(error, path) from error
    if large or len(data) > max_bytes:
        what = f"The file is larger than the limit of {size_text(max_bytes)}"
        raise ProblemsError.one(what, str(path), "check that it is the right file", "file.too-large")
    return data


def _refuse_special(mode: int, path: Path | str) -> None:
    """Raise ProblemsError for `path` unless `mode` (st_mode) is a regular file's."""
    for is_kind, code in _KINDS:
        if is_kind(mode):
            fix = "choose a file in it" if code == "file.is-folder" else "choose a regular file"
            raise ProblemsError.one(f"The path is {SPECIAL_FILES[code]}, not a file", str(path), fix, code)
    if not stat.S_ISREG(mode):
        what = "The path is not a regular file"
        raise ProblemsError.one(what, str(path), "choose a regular file", "file.not-regular")


def _unreadable(error: OSError | ValueError, path: Path | str) -> ProblemsError:
    """Return the ProblemsError for a file that cannot be opened or read; MissingFile if it does not exist."""
    where = str(path)
    if isinstance(error, (FileNotFoundError, NotADirectoryError)):
        return MissingFile.one("The file does not exist", where, "check the path", "file.missing")
    if not isinstance(error, OSError):
        return MissingFile.one("The path is not a valid file name", where, "check the path", "file.invalid-name")
    if error.errno == errno.ELOOP:
        return ProblemsError.one("The link points to itself", where, "replace the link with the file", "file.link-loop")
    if error.errno == errno.ENAMETOOLONG:
        fix = "use a shorter name or path"
        return MissingFile.one("The path is too long for this system", where, fix, "file.path-too-long")
    denied = isinstance(error, PermissionError)
    fix = f"{IN_USE}check its permissions" if denied else "check the drive, or copy the file again"
    return ProblemsError.one(f"The file cannot be read: {error.strerror or error}", where, fix, "file.unreadable")


LONGEST_NAME, LONGEST_PATH = 255, 4095  # as `name_length` counts


def name_length(name: str) -> int:
    """Return the length of a file name or path as the system counts it: UTF-16 units on Windows, else bytes. Raises ValueError for a half
    surrogate that no file name has."""
    return len(name.encode("utf-16-le", "surrogatepass")) // 2 if WINDOWS else len(os.fsencode(name))


def foreign_problem(text: str, where: str) -> Problem | None:
    """Return the problem of an address, or of a Windows path on another system, as the folder of the setting `where`; else None."""
    if not is_foreign(text):
        return None
    what, fix = f"{text} is not a path of this machine", "choose a folder on this machine, or leave it empty"
    return Problem(what, where, fix, code="folder.windows-path")


def impossible_path(target: Path, where: str) -> Problem | None:
    """Return the problem of a path that cannot be written: invalid name, such as con.png on Windows, parent that is not a folder or is
    read-only; else None.
    where: the setting with the path, for the problem"""

    def problem(what: str, fix: str, code: str) -> Problem:
        return Problem(what, where, fix, code=code)

    try:
        if "\0" in str(target):
            raise ValueError
        longest, length = max(map(name_length, target.parts)), name_length(str(target))
    except ValueError:  # also of a half surrogate
        return problem("The path has a character that no file name can have", "write it again", "file.invalid-name")
    if longest > LONGEST_NAME:
        what = f"The path has a name of {longest} {'characters' if WINDOWS else 'bytes'}; no more than {LONGEST_NAME} are possible"
        return problem(what, "use a shorter name", "file.path-too-long")
    if length > LONGEST_PATH:
        what = f"The path has {length:,} {'characters' if WINDOWS else 'bytes'}; no more than {LONGEST_PATH:,} are possible"
        return problem(what, "use a shorter path", "file.path-too-long")
    if WINDOWS:
        special = [part for part in target.parts[1:] if part != ".." and is_special_on_windows(part)]
        if special:
            return problem(f"Windows allows no file named '{special[0]}'", "use another name", "file.invalid-name")
    try:
        above = next(each for each in target.parents if os.path.lexists(each) or each == each.parent)
        if not above.is_dir():
            return problem(f"{display_path(above)} is not a folder", "choose another folder", "file.not-a-folder")
        if not os.access(above, os.W_OK | os.X_OK):
            what = f"Nothing can be written into {display_path(above)}"
            return problem(what, "choose another folder, or allow writing to it", "file.unwritable")
    except OSError as error:
        return problem(f"The path cannot be used: {error.strerror}", "choose another one", "file.unwritable")
    return None


def is_special_on_windows(part: str) -> bool:
    """Whether Windows would not read the path component `part` as a plain file name: it is empty, reserved (CON, LPT1), ends in a dot or
    space, or has a forbidden character."""
    if (
        not part
        or part != part.rstrip(". ")
        or any(character in '<>:"|?*' or ord(character) < 32 for character in part)
    ):
        return True
    stem = part.split(".")[0].rstrip(" ").upper()
    return stem in ("CON", "PRN", "AUX", "NUL", "CONIN$", "CONOUT$") or bool(_PORT.fullmatch(stem))


_PORT = re.compile("(COM|LPT)[0-9¹²³]")
