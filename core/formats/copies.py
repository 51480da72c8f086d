"""Copies saved files into folders of other programs, atomically and without overwriting a file."""

import errno
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from core.formats.hashes import CHUNK_BYTES
from core.record import atomic
from core.record.cancel import CancelToken
from core.record.problems import ProblemsError, unwritten
from core.record.regular import check_regular, open_regular
from core.record.space import require_space
from core.record.stamps import Stamp, stamp_of

# Programs list files by suffix, so a file being written has one that none of them knows.
PREFIX, SUFFIX = ".atelier-", ".part"
SYNC_BYTES = 1 << 26  # sync in between, so that progress is right on slow drives and a cancel takes effect
MOST_NAMES = 1000
CHOOSE = "choose another folder"
MISSING = "copy.missing-folder"  # code of the problem that the page offers to solve
PARTIAL_REMOVED = "the partial copy was removed"
Report = Callable[[float, str], None]


@dataclass(frozen=True)
class Copied:
    """The result of `copy_into`.

    new       False if the folder already had a file with the same content
    preview   name of the preview image copied next to it; "" without one
    """

    path: Path
    new: bool
    preview: str = ""


def copy_into(
    source: Path,
    folder: Path,
    cancel: CancelToken | None = None,
    report: Report = lambda share, text: None,
    name: str = "",
) -> Copied:
    """Copy a file or a folder (a diffusers model) into an existing folder.

    report   called with (fraction done, activity as text)
    name     file name of the copy with its suffix; "" keeps the source's
    The copy gets a number (name-2, name-3) if another file has the name; a file with the same content is not copied again.
    Raises ProblemsError or Cancelled; either way no partial copy is left behind.
    """
    cancel = cancel or CancelToken()
    require_folder(folder, source)
    stamps = _file_stamps(source)
    total = sum(size for size, _ in stamps.values())
    for target in _names(source, folder, name):
        if not os.path.lexists(target):
            break
        if _same_content(source, stamps, target, cancel, report):
            return Copied(target, new=False)
    atomic.remove_leftovers(folder, f"{PREFIX}*{SUFFIX}")
    require_space(folder, total, f"Copying '{source.name}'", f"free some space there, or {CHOOSE}")
    try:
        with _temporary(folder, source.is_dir()) as temporary:
            _write(source, stamps, temporary, cancel, _counter(total, report))
            for target in _names(source, folder, name):
                with suppress(FileExistsError):
                    atomic.rename_noreplace(temporary, target)
                    atomic.sync_folder(folder)
                    return Copied(target, new=True)
    except OSError as error:
        raise _failed(error, source, folder) from error
    raise ProblemsError.one(
        f"All names such as '{name or source.name}' are taken", str(folder), CHOOSE, "copy.no-free-name"
    )


def require_folder(folder: Path, source: Path) -> None:
    """Raise ProblemsError for a folder that does not exist, is not writable, or is inside the source."""
    try:
        os.stat(folder)
    except (FileNotFoundError, NotADirectoryError, ValueError):
        what = "The folder does not exist"
        raise ProblemsError.one(what, str(folder), f"create it, or {CHOOSE}", MISSING) from None
    except OSError as error:
        raise unwritten(error, "The folder cannot be opened", str(folder)) from None
    if not folder.is_dir():
        what = "This is a file, not a folder"
        raise ProblemsError.one(what, str(folder), "choose the folder to copy into", "copy.not-a-folder")
    if folder.resolve().is_relative_to(source.resolve()):
        raise ProblemsError.one("A folder cannot be copied into itself", str(folder), CHOOSE, code="copy.into-itself")
    try:
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise _failed(error, source, folder) from None


def _file_stamps(source: Path) -> dict[Path, Stamp]:
    """Return {path below `source`: (size, modification time)} of all files; the only path is Path() if `source` is a file.

    Raises ProblemsError for a link in the folder.
    """
    if not source.is_dir():
        return {Path(): stamp_of(check_regular(source))}
    stamps: dict[Path, Stamp] = {}
    for root, folders, names in os.walk(source):
        for each in [Path(root, name) for name in (*folders, *names)]:
            if each.is_symlink():
                what = "The folder contains a link"
                raise ProblemsError.one(what, str(each), "replace the link with the file it points to", "copy.link")
        stamps |= {Path(root, name).relative_to(source): stamp_of(check_regular(Path(root, name))) for name in names}
    return stamps


def _names(source: Path, folder: Path, name: str) -> Iterator[Path]:
    """Yield candidate paths for the copy: the name ("" means the source's), then name-2, name-3 ... before the suffix."""
    suffix, name = "" if source.is_dir() else source.suffix, name or source.name
    stem = name.removesuffix(suffix)
    yield folder / name
    yield from (folder / f"{stem}-{number}{suffix}" for number in range(2, MOST_NAMES))


def _same_content(source: Path, stamps: dict[Path, Stamp], target: Path, cancel: CancelToken, report: Report) -> bool:
    """Return whether source and target are equal byte by byte. An unreadable file counts as different."""
    try:
        if os.path.samefile(source, target):
            return True
        other = _file_stamps(target)
        if {part: size for part, (size, _) in other.items()} != {part: size for part, (size, _) in stamps.items()}:
            return False
        add_bytes = _counter(sum(size for size, _ in stamps.values()), report, f"comparing with {target.name}")
        return all(_equal_files(source / part, target / part, cancel, add_bytes) for part in stamps)
    except (OSError, ProblemsError):
        return False


def _equal_files(source: Path, target: Path, cancel: CancelToken, add_bytes: Callable[[int], None]) -> bool:
    """Return whether two files have the same bytes. `add_bytes` is called with the number of bytes of each equal chunk."""
    with open_regular(source) as first, open_regular(target) as second:
        while chunk := first.read(CHUNK_BYTES):
            cancel.check()
            if chunk != second.read(CHUNK_BYTES):
                return False
            add_bytes(len(chunk))
        return not second.read(1)


def _counter(total: int, report: Report, text: str = "copying") -> Callable[[int], None]:
    """Return a callback that adds a number of bytes to those done and calls `report` with (fraction of `total`, `text`)."""
    done = 0

    def add_bytes(count: int) -> None:
        """Add `count` bytes and report the fraction done."""
        nonlocal done
        done += count
        report(done / total if total else 1.0, text)

    return add_bytes


@contextmanager
def _temporary(folder: Path, as_folder: bool) -> Iterator[Path]:
    """Create a temporary file or folder in `folder`; remove it at the end unless it was renamed."""
    if as_folder:
        path = Path(tempfile.mkdtemp(SUFFIX, PREFIX, folder))
    else:
        handle, name = tempfile.mkstemp(SUFFIX, PREFIX, folder)
        os.close(handle)
        path = Path(name)
    try:
        yield path
    finally:
        with suppress(OSError):  # the drive may be gone, which was reported already
            (atomic.remove_folder if as_folder else atomic.remove)(path)


def _write(
    source: Path,
    stamps: dict[Path, Stamp],
    temporary: Path,
    cancel: CancelToken,
    add_bytes: Callable[[int], None],
) -> None:
    """Copy the files of `source` to `temporary` and sync them to disk. Raises ProblemsError if one of them changes meanwhile."""
    cancel.check()
    for part, stamp in stamps.items():
        target = temporary / part
        if part != Path():
            target.parent.mkdir(parents=True, exist_ok=True)
        _write_file(source / part, target, cancel, add_bytes)
        if stamp_of(check_regular(source / part)) != stamp:
            what = f"The file changed while it was being copied; {PARTIAL_REMOVED}"
            raise ProblemsError.one(what, str(source / part), "copy it again", "copy.changed")
        atomic.apply_umask(target)
    for each in (temporary, *(path for path in temporary.rglob("*") if path.is_dir())) if temporary.is_dir() else ():
        atomic.apply_umask(each)
        atomic.sync_folder(each)


def _write_file(source: Path, target: Path, cancel: CancelToken, add_bytes: Callable[[int], None]) -> None:
    """Copy one file in chunks, syncing every SYNC_BYTES. `add_bytes` is called with the number of bytes of each chunk."""
    unsynced = 0
    with open_regular(source) as reader, open(target, "wb") as writer:
        while chunk := _read(reader, source):
            cancel.check()
            writer.write(chunk)
            unsynced += len(chunk)
            if unsynced >= SYNC_BYTES:
                writer.flush()
                atomic.sync_file(target)
                unsynced = 0
            add_bytes(len(chunk))
    atomic.sync_file(target)


def _read(handle: BinaryIO, source: Path) -> bytes:
    """Read the next chunk. Raises ProblemsError on a read error, so that it is not reported as a write error."""
    try:
        return handle.read(CHUNK_BYTES)
    except OSError as error:
        what = f"The file cannot be read ({error.strerror or error}); {PARTIAL_REMOVED}"
        raise ProblemsError.one(what, str(source), "check the drive it is on", code="copy.unreadable") from error


def _failed(error: OSError, source: Path, folder: Path) -> ProblemsError:
    """Return the ProblemsError of an error while writing into `folder`."""
    if not folder.is_dir():
        what = f"The folder no longer exists; {PARTIAL_REMOVED}"
        return ProblemsError.one(what, str(folder), f"connect its drive again, or {CHOOSE}", "copy.folder-gone")
    if error.errno == errno.EFBIG:
        fix = f"{CHOOSE}: a drive formatted as FAT32 holds files of up to 4 GB"
        what = f"'{source.name}' is too large for this drive; {PARTIAL_REMOVED}"
        return ProblemsError.one(what, str(folder), fix, "copy.too-large")
    return unwritten(error, f"'{source.name}' cannot be copied", str(folder), PARTIAL_REMOVED, then="copy it again")
