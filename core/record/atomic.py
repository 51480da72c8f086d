"""Files that are complete or absent: written next to the target, flushed to disk, then renamed over it."""

import errno
import json
import os
import shutil
import stat
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

from core.record.allowed import may_reach
from core.record.regular import retry

WINDOWS = os.name == "nt"
# Windows refuses to replace, delete or write a file that a virus scanner or an open mapping still holds.
RETRIES = 20
LEFTOVER_SECONDS = 3600
_TEMPORARY = f".tmp-{'[a-z0-9_]' * 8}"
TEMPORARY_NAMES = (_TEMPORARY, f"{_TEMPORARY}.*")  # of tempfile; any other file belongs to the user


# Where a folder denies writing, Python on Windows tries this many names before it gives up: 2 ** 31, unless it is newer than 3.11.
tempfile.TMP_MAX = 100  # type: ignore[misc]


def _umask() -> int:
    """Return the process's umask. Reading it means setting it for all threads, so this is called once, at import."""
    mask = os.umask(0o077)
    os.umask(mask)
    return mask


UMASK = _umask()


_retry = partial(retry, RETRIES)


def replace(source: Path | str, target: Path | str) -> None:
    """Rename `source` over `target`, retrying while another program on Windows has `target` open."""
    _retry(os.replace, source, target)


def rename_noreplace(source: Path, target: Path) -> None:
    """Rename `source` to `target`; raises FileExistsError if `target` exists."""
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
    """Yield candidate names without end: name, name-2, name-3 ..., each followed by `ending`."""
    return (f"{name}{'' if number == 1 else f'-{number}'}{ending}" for number in count(1))


def rename_to_unused(source: Path, parent: Path, name: str) -> Path:
    """Rename folder `source` to the first unused of the `numbered` names in `parent`; return its new path."""
    for candidate in numbered(name):
        target = parent / candidate
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
    """Delete a file, also a read-only one; does nothing if it is missing."""
    with suppress(FileNotFoundError):
        if WINDOWS and not os.lstat(path).st_mode & stat.S_IWRITE:
            os.chmod(path, stat.S_IWRITE)
        _retry(os.unlink, path)


def remove_folder(path: Path | str) -> None:
    """Delete a folder with its contents; does nothing if it is missing."""
    with suppress(FileNotFoundError):
        _retry(shutil.rmtree, path, False, _delete_read_only if WINDOWS else None)


def _delete_read_only(delete: Callable[[str], object], path: str, _: object) -> None:
    """Delete `path` after clearing its read-only attribute, with which only Windows refuses to. Called by rmtree in `except`."""
    if delete not in (os.unlink, os.rmdir):
        raise
    os.chmod(path, stat.S_IWRITE)
    delete(path)


def remove_any(path: Path) -> None:
    """Delete a file, a link, or a folder with its contents; does nothing if it is missing."""
    (remove_folder if path.is_dir() and not path.is_symlink() else remove)(path)


def discard(path: Path) -> None:
    """Delete a file or folder of a run, of which a killed process leaves nothing under its name; it may be missing."""
    if path.is_dir() and not path.is_symlink():
        temporary = path.with_name(f".tmp-removed-{path.name}")
        remove_folder(temporary)
        replace(path, temporary)
        path = temporary
    remove_any(path)


def sync_file(path: Path | str) -> None:
    """Flush a file to disk (fsync). Errors of drives that do not support fsync are ignored."""
    with _retry(open, path, "rb+") as handle:
        try:
            os.fsync(handle.fileno())
        except OSError as error:
            if error.errno not in (errno.EINVAL, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP):
                raise


def sync_folder(path: Path | str) -> None:
    """Flush the entries of a folder to disk (fsync). Does nothing on Windows; errors of fsync are ignored."""
    if os.name == "nt":
        return
    handle = os.open(path, os.O_RDONLY)
    try:
        with suppress(OSError):
            os.fsync(handle)
    finally:
        os.close(handle)


def make_folders(path: Path | str) -> None:
    """Create a folder and its missing parents, and flush each new entry to disk. Raises NotADirectoryError if one of them is a file,
    FileNotFoundError for a missing drive."""
    path = Path(path)
    if not path.is_dir():
        if path.exists():
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(path))
        if path.parent == path:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path))
        make_folders(path.parent)
        path.mkdir(exist_ok=True)
        sync_folder(path.parent)


@contextmanager
def open_atomic(target: Path | str, *, synced: bool = True) -> Iterator[Path]:
    """Context that yields a temporary path next to `target`; on success it is renamed over `target`, on an error deleted.

    If `target` is a link, the linked file is replaced; if the link leads outside a shared page's folders, or to a folder or
    device, the link itself. Raises OSError if `target` is a device or pipe.

    synced   flush to disk; False for many files, to be followed by one `sync_all`
    """
    target = _writable_target(Path(target))
    temporary = _temporary_file(target)
    try:
        yield temporary
        if synced:
            sync_file(temporary)
        apply_umask(temporary)
        replace(temporary, target)
        if synced:
            sync_folder(target.parent)
    finally:
        remove(temporary)


def _temporary_file(target: Path) -> Path:
    """Create an empty temporary file in the folder of `target` and return its path."""
    make_folders(target.parent)
    handle, name = tempfile.mkstemp(prefix=".tmp-", suffix=target.suffix, dir=target.parent)
    os.close(handle)
    return Path(name)


def write_temporary(target: Path, data: bytes) -> Path:
    """Write `data` to a temporary file next to `target` and return its path, to be renamed by `replace_by_temporary`.

    The file is not flushed to disk: call `sync_all` once before the first `replace_by_temporary`.
    """
    temporary = _temporary_file(_writable_target(target))
    try:
        _retry(temporary.write_bytes, data)
    except BaseException:
        remove(temporary)
        raise
    return temporary


def replace_by_temporary(temporary: Path, target: Path) -> None:
    """Rename a temporary file, which `write_temporary` has written for `target`, over `target`."""
    apply_umask(temporary)
    replace(temporary, _writable_target(target))


def _writable_target(target: Path) -> Path:
    """Return the path to replace when writing to `target`: the linked file if `target` is a link and jobs may reach that file, else
    `target`. Raises OSError for devices and pipes."""
    if os.path.islink(target):
        leads_to = Path(os.path.realpath(target))
        follows = may_reach(target) and (leads_to.is_file() or not os.path.lexists(leads_to))
        return leads_to if follows else target
    if target.exists() and not target.is_file() and not target.is_dir():
        raise OSError(errno.EINVAL, "This is a device or a pipe, not a file", str(target))
    return target


def sync_all(paths: Iterable[Path]) -> None:
    """Flush files to disk: with one os.sync() if the system has it, else one by one."""
    if hasattr(os, "sync"):
        return os.sync()
    for path in paths:
        with suppress(FileNotFoundError):
            sync_file(path)


@contextmanager
def folder_atomic(target: Path | str) -> Iterator[Path]:
    """Context that yields a temporary folder next to `target`; on success it replaces `target`, on an error it is deleted."""
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
        apply_umask(temporary)
        _put_in_place(temporary, target)
        sync_folder(target.parent)
    finally:
        remove_folder(temporary)


def remove_leftovers(folder: Path | str, *patterns: str, files_only: bool = False) -> None:
    """Delete temporary files and folders in `folder` that killed processes left: those unchanged for LEFTOVER_SECONDS.

    patterns     glob patterns of their names; by default TEMPORARY_NAMES
    files_only   leave folders alone
    """
    with suppress(OSError):
        for path in [path for pattern in patterns or TEMPORARY_NAMES for path in Path(folder).glob(pattern)]:
            newest = max(each.stat().st_mtime for each in [path, *path.rglob("*")])
            if time.time() - newest > LEFTOVER_SECONDS and not (files_only and path.is_dir()):
                remove_any(path)


def put_back(folder: Path) -> None:
    """Rename the folders in `folder` that a killed process moved aside to their earlier names, or delete them if they were replaced."""
    for aside in folder.glob(".old-*-*"):
        target = aside.with_name(aside.name.removeprefix(".old-").rpartition("-")[0])
        with suppress(OSError):
            remove_folder(aside) if target.exists() else replace(aside, target)


def _put_in_place(temporary: Path, target: Path) -> None:
    """Rename folder `temporary` to `target`. An existing `target` is moved aside first and then deleted; it is moved back if the rename
    fails."""
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


def apply_umask(path: Path) -> None:
    """Give a file or folder created by tempfile, which only its owner can read, the permissions that the umask allows.

    Does nothing on Windows and on drives without permissions.
    """
    if os.name != "nt":
        with suppress(OSError):
            os.chmod(path, (0o777 if path.is_dir() else 0o666) & ~UMASK)


def write_bytes(target: Path | str, data: bytes, *, synced: bool = True) -> None:
    """Write `data` to `target` by `open_atomic`."""
    with open_atomic(target, synced=synced) as temporary:
        _retry(temporary.write_bytes, data)


def write_text(target: Path | str, text: str) -> None:
    """Write `text` to `target` atomically, in UTF-8 without byte order mark; line endings are not changed."""
    write_bytes(target, text.encode("utf-8"))


def write_json(target: Path | str, value: Any) -> None:
    """Write `value` to `target` atomically as indented JSON in UTF-8. Raises ValueError for NaN and infinity.

    Invalid Unicode (file names in another encoding) becomes JSON escapes.
    """
    text = json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    write_bytes(target, text.encode("utf-8", "backslashreplace"))
