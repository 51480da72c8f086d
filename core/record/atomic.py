"""Files that are complete or absent: written next to the target, flushed to disk, then renamed over it."""

import errno
import json
import os
import shutil
import tempfile
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from itertools import count
from pathlib import Path
from typing import Any

from core.record.allowed import may_reach

# Windows refuses to replace or delete a file that a virus scanner or an open mapping still holds.
RETRIES = 20
RETRY_SECONDS = 0.05
LEFTOVER_SECONDS = 3600
_TEMPORARY = f".tmp-{'[a-z0-9_]' * 8}"
TEMPORARY_NAMES = (_TEMPORARY, f"{_TEMPORARY}.*")  # of tempfile; any other file belongs to the user


def _umask() -> int:
    """Return the process's umask. It can only be read by setting it for all threads, so once at the start."""
    mask = os.umask(0o077)
    os.umask(mask)
    return mask


UMASK = _umask()


def _retry(action, *arguments) -> None:
    """Call `action`, up to RETRIES times while it raises PermissionError (on Windows, another program has the file open)."""
    for attempt in range(RETRIES):
        try:
            return action(*arguments)
        except PermissionError:
            if attempt == RETRIES - 1:
                raise
            time.sleep(RETRY_SECONDS)


def replace(source: Path | str, target: Path | str) -> None:
    """Rename `source` over `target`."""
    _retry(os.replace, source, target)


def put_new(source: Path, target: Path) -> None:
    """Rename `source` to an unused name: FileExistsError instead of replacing anything."""
    if os.name != "nt" and not source.is_dir():
        try:
            os.link(source, target)  # refuses an existing name, unlike a rename
        except FileExistsError:
            raise
        except OSError:  # a drive without hard links
            pass
        else:
            return remove(source)
    if os.path.lexists(target):
        raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(target))
    _retry(os.rename, source, target)


def numbered(name: str, ending: str = "") -> Iterator[str]:
    """The names that are tried until one is unused: name, name-2, name-3 ..., each with the ending."""
    return (f"{name}{'' if number == 1 else f'-{number}'}{ending}" for number in count(1))


def put_folder(source: Path, parent: Path, name: str) -> Path:
    """Rename a folder to the first unused of the `numbered` names in `parent`. Returns it."""
    for free in numbered(name):
        target = parent / free
        if target.exists():
            continue
        # On POSIX a rename silently replaces an empty folder; one created meanwhile is not empty.
        try:
            replace(source, target)
        except OSError as error:
            if error.errno not in (errno.EEXIST, errno.ENOTEMPTY):
                raise
        else:
            return target
    raise AssertionError("the numbers never end")


def remove(path: Path | str) -> None:
    """Delete a file; a missing one is fine."""
    with suppress(FileNotFoundError):
        _retry(os.unlink, path)


def remove_folder(path: Path | str) -> None:
    """Delete a folder with its contents; does nothing if it is missing."""
    with suppress(FileNotFoundError):
        _retry(shutil.rmtree, path)


def remove_any(path: Path) -> None:
    """Delete a file, a link, or a folder with its contents; does nothing if it is missing."""
    (remove_folder if path.is_dir() and not path.is_symlink() else remove)(path)


def sync_file(path: Path | str) -> None:
    """Wait until the file's bytes are on disk, if the drive supports it (not every network drive does)."""
    with open(path, "rb+") as handle:
        try:
            os.fsync(handle.fileno())
        except OSError as error:
            if error.errno not in (errno.EINVAL, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP):
                raise


def sync_folder(path: Path | str) -> None:
    """Wait until the folder's entries are on disk, if supported (not on Windows, not on every network drive)."""
    if os.name == "nt":
        return
    handle = os.open(path, os.O_RDONLY)
    try:
        with suppress(OSError):
            os.fsync(handle)
    finally:
        os.close(handle)


def make_folders(path: Path | str) -> None:
    """Create a folder with its parents, and wait until each new one is on disk."""
    path = Path(path)
    if not path.is_dir():
        if path.exists():
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(path))
        make_folders(path.parent)
        path.mkdir(exist_ok=True)
        sync_folder(path.parent)


@contextmanager
def open_atomic(target: Path | str, *, synced: bool = True) -> Iterator[Path]:
    """Yield a temporary path in the target's folder; on success it replaces the target, otherwise it is removed.

    If the target is a link, the file that it points to is replaced; the link itself if it leads outside a shared page's
    folders, or to a folder or device. Raises OSError for devices and pipes.

    synced   False does not wait for the disk: for many files, before one `sync_all`
    """
    target = _writable_target(Path(target))
    temporary = _temporary_file(target)
    try:
        yield temporary
        if synced:
            sync_file(temporary)
        give_usual_mode(temporary)
        replace(temporary, target)
        if synced:
            sync_folder(target.parent)
    finally:
        remove(temporary)


def _temporary_file(target: Path) -> Path:
    """Create an empty temporary file in the target's folder and return its path."""
    make_folders(target.parent)
    handle, name = tempfile.mkstemp(prefix=".tmp-", suffix=target.suffix, dir=target.parent)
    os.close(handle)
    return Path(name)


def write_aside(target: Path, data: bytes) -> Path:
    """Write `data` to a temporary file next to the target and return its path, for `put_aside`. Not flushed to disk: with many
    files, call `sync_all` once in between."""
    temporary = _temporary_file(_writable_target(target))
    try:
        temporary.write_bytes(data)
    except BaseException:
        remove(temporary)
        raise
    return temporary


def put_aside(temporary: Path, target: Path) -> None:
    """Rename a file of `write_aside` to its target."""
    give_usual_mode(temporary)
    replace(temporary, _writable_target(target))


def _writable_target(target: Path) -> Path:
    """The path to replace when writing to `target`: itself, or for a link the file that it leads to, if that may be written.
    Raises OSError for devices and pipes."""
    if os.path.islink(target):
        leads_to = Path(os.path.realpath(target))
        follows = may_reach(target) and (leads_to.is_file() or not os.path.lexists(leads_to))
        return leads_to if follows else target
    if target.exists() and not target.is_file() and not target.is_dir():
        raise OSError(errno.EINVAL, "This is a device or a pipe, not a file", str(target))
    return target


def sync_all(paths: Iterable[Path]) -> None:
    """Wait until these files are on disk: with one call where the system has one, else file by file."""
    if hasattr(os, "sync"):
        return os.sync()
    for path in paths:
        with suppress(FileNotFoundError):
            sync_file(path)


@contextmanager
def folder_atomic(target: Path | str) -> Iterator[Path]:
    """`open_atomic` for a folder. An existing folder is replaced once the new one is complete, then deleted."""
    target = Path(target)
    make_folders(target.parent)
    temporary = Path(tempfile.mkdtemp(prefix=".tmp-", dir=target.parent))
    try:
        yield temporary
        for path in [temporary, *temporary.rglob("*")]:
            if path.is_dir():
                sync_folder(path)
            else:
                sync_file(path)
        give_usual_mode(temporary)
        _put_in_place(temporary, target)
        sync_folder(target.parent)
    finally:
        remove_folder(temporary)


def remove_leftovers(folder: Path | str, *patterns: str, files_only: bool = False) -> None:
    """Remove temporary files and folders that killed processes left there, older than an hour (an ongoing write is younger).

    patterns   of names; by default TEMPORARY_NAMES
    """
    with suppress(OSError):
        for path in [path for pattern in patterns or TEMPORARY_NAMES for path in Path(folder).glob(pattern)]:
            newest = max(each.stat().st_mtime for each in [path, *path.rglob("*")])
            if time.time() - newest > LEFTOVER_SECONDS and not (files_only and path.is_dir()):
                remove_any(path)


def _put_in_place(temporary: Path, target: Path) -> None:
    """Rename a folder to a target that may exist: the old one is moved aside, and back if the rename fails."""
    if not target.exists():
        replace(temporary, target)
        return
    # If the power fails between the two, the old one can be found by its name.
    aside = target.with_name(f".old-{target.name}-{temporary.name.removeprefix('.tmp-')}")
    replace(target, aside)
    try:
        replace(temporary, target)
    except BaseException:
        replace(aside, target)
        raise
    remove_folder(aside)


def give_usual_mode(path: Path) -> None:
    """Set a new file's usual mode, as only its owner can read those of mkstemp. USB sticks and network drives ignore it."""
    if os.name != "nt":
        with suppress(OSError):
            os.chmod(path, (0o777 if path.is_dir() else 0o666) & ~UMASK)


def write_bytes(target: Path | str, data: bytes, *, synced: bool = True) -> None:
    with open_atomic(target, synced=synced) as temporary:
        temporary.write_bytes(data)


def write_text(target: Path | str, text: str) -> None:
    """Write UTF-8 without a byte order mark and with the line endings of `text`."""
    write_bytes(target, text.encode("utf-8"))


def write_json(target: Path | str, value: Any) -> None:
    """Write JSON in UTF-8. Invalid Unicode (file names in another encoding) becomes JSON escapes."""
    text = json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    write_bytes(target, text.encode("utf-8", "backslashreplace"))
