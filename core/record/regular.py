"""A person's file, opened only if it is one: a named pipe would wait forever, a device may answer without end."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path
from typing import BinaryIO

from core.record.problems import ProblemsError

_KINDS = (
    (stat.S_ISDIR, "This is a folder, not a file", "choose a file in it"),
    (stat.S_ISFIFO, "This is a named pipe, not a file", "choose a regular file"),
    (stat.S_ISSOCK, "This is a socket, not a file", "choose a regular file"),
    (stat.S_ISCHR, "This is a device, not a file", "choose a regular file"),
    (stat.S_ISBLK, "This is a device, not a file", "choose a regular file"),
)


class MissingFile(ProblemsError):
    """There is no file at the path."""


def open_regular(path: Path | str, buffering: int = -1) -> BinaryIO:
    """The file for reading bytes. Raises ProblemsError, MissingFile where nothing is there.

    What the path leads to is asked before it is opened (opening a pipe waits for its writer, opening a device can move
    it), and once more after, without waiting, since it may have been replaced between.
    """
    try:
        _refuse_special(os.stat(path).st_mode, path)
        handle = os.open(path, os.O_RDONLY | getattr(os, "O_BINARY", 0) | getattr(os, "O_NONBLOCK", 0))
        try:
            _refuse_special(os.fstat(handle).st_mode, path)
            return os.fdopen(handle, "rb", buffering)
        except BaseException:
            os.close(handle)
            raise
    except (OSError, ValueError) as error:  # ValueError: a name with a null character or half a surrogate pair
        raise _unreadable(error, path) from error


def check_regular(path: Path | str) -> os.stat_result:
    """The same refusals for a file that a library is about to open by its name. Returns its facts."""
    try:
        facts = os.stat(path)
    except (OSError, ValueError) as error:
        raise _unreadable(error, path) from error
    _refuse_special(facts.st_mode, path)
    return facts


def read_regular(path: Path | str, max_bytes: int) -> bytes:
    """The whole file, refused where it has more than `max_bytes`, whatever its size is said to be."""
    with open_regular(path) as handle:
        try:
            data = handle.read(max_bytes + 1)
        except OSError as error:
            raise _unreadable(error, path) from error
    if len(data) > max_bytes:
        raise ProblemsError.one(
            f"The file is too large: more than {_size(max_bytes)}", str(path), "check that it is the right file"
        )
    return data


def _refuse_special(mode: int, path: Path | str) -> None:
    for is_kind, what, fix in _KINDS:
        if is_kind(mode):
            raise ProblemsError.one(what, str(path), fix)
    if not stat.S_ISREG(mode):
        raise ProblemsError.one("This is not a regular file", str(path), "choose a regular file")


def _unreadable(error: OSError | ValueError, path: Path | str) -> ProblemsError:
    where = str(path)
    if isinstance(error, (FileNotFoundError, NotADirectoryError)):
        return MissingFile.one("There is no such file", where, "check the path")
    if not isinstance(error, OSError):
        return MissingFile.one("This cannot be the name of a file", where, "check the path")
    if error.errno == errno.ELOOP:
        return ProblemsError.one("The link leads back to itself", where, "replace the link with the file")
    if error.errno == errno.ENAMETOOLONG:
        return MissingFile.one("The path is too long for this system", where, "use a shorter name or path")
    fix = "check its permissions" if isinstance(error, PermissionError) else "check the drive, or copy the file again"
    return ProblemsError.one(f"The file cannot be read: {error.strerror or error}", where, fix)


def _size(count: int) -> str:
    return f"{count / 1e6:,.0f} MB" if count >= 1_000_000 else f"{count:,} bytes"
