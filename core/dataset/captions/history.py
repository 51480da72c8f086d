"""The history of caption files, metadata and painted masks: a change of many files is undone as one.

Each change is a file below `outputs/.atelier/captions`: a line with its title, then for each caption file a line with its old
and new text, written before the caption file. So after a kill each caption has its old or its new text, and the history knows
which were written. Caption files that another program has changed since are never overwritten.
"""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from core.dataset.captions.change_file import Change, from_json, line_of, read_lines
from core.dataset.sources.files import printable
from core.record import atomic
from core.record.allowed import may_reach
from core.record.context import JobContext
from core.record.lock import HeldElsewhere, Lock
from core.record.problems import Problem, ProblemsError, raise_if_errors, write_errors
from core.record.regular import read_regular
from core.record.run_about import others_run_problem
from core.record.workspace import Workspace

# Of the changes of caption files, and again of those of whole metadata files: the oldest go.
MAX_HISTORY_BYTES = 256 << 20
LARGE_CHANGE = 16 << 20
MAX_CHANGES = 20_000
MAX_CAPTION_BYTES = 1 << 20  # a larger file is not a caption
MAX_BYTES = 256_000_000  # of a metadata file, which holds the captions of many images
FILES_PER_SYNC = 1000  # files between two waits for the disk
WRITTEN_WITHIN = 60.0  # seconds from the line of a file's change until the file itself is written
NEWEST = 500  # changes whose files may still grow
# Resolution of the clock of some disks: within it a folder may change again without a new time.
CLOCK_NANOSECONDS = 5_000_000_000
PRUNE_EVERY = 100  # changes; looking for old ones lists the folder


_WRITING = threading.Lock()
NOT_SAVED, UNCHANGED = "The file could not be saved", "the previous one is unchanged"


@dataclass(frozen=True)
class ChangeResult:
    """The result of a change.

    id              for undo; "" if nothing changed
    written         files changed
    changed_since   files that had another text than expected and were left unchanged
    """

    id: str = ""
    written: tuple[Path, ...] = ()
    changed_since: tuple[Path, ...] = ()


@dataclass(frozen=True)
class Entry:
    """A change of the history without its texts.

    at      time, seconds since 1970
    about   facts about the task that made the change, by name
    """

    id: str
    title: str
    at: float
    about: Mapping[str, Any] = field(default_factory=dict)


@dataclass
class _Index:
    """Byte positions in a change's file.

    size      size of the file in bytes when it was indexed
    damaged   number of damaged lines
    lines     path of a caption file -> positions where its lines begin
    """

    size: int
    damaged: int = 0
    lines: dict[str, list[int]] = field(default_factory=dict)


class History:
    """The changes of one outputs folder. Safe for several threads and processes.

    folder   where the changes are stored
    person   who makes changes here, if several people have a page each; "" otherwise
    """

    def __init__(self, folder: Path, person: str = ""):
        self._folder, self.person = folder, person
        self._opened = 0
        self._lock = threading.Lock()
        self._indexes: dict[str, _Index] = {}
        self._folder_time, self._listed = 0, list[Path]()  # the folder's time when its files were listed

    # -- changing

    def apply(
        self,
        title: str,
        changes: Sequence[Change],
        *,
        about: Mapping[str, Any] | None = None,
        resume: str = "",
        progress: Callable[[int, int], None] = lambda done, total: None,
    ) -> ChangeResult:
        """Make all changes or none: files written before an error are restored. Raises ProblemsError.

        changes    several of one file (images that share a caption file) count as the last of them
        title      name of the change, as the history lists it
        about      {name: value} about the task, for the entry; None for none
        resume     the id of an earlier change to add to, so that one undo reverts both; "" for a new one
        progress   called with (done, total) files
        """
        changes = list({each.path: each for each in changes if each.old != each.new}.values())
        if not changes:
            return ChangeResult()
        folders = (Path(os.path.realpath(each.path)).parent for each in changes)
        check_folders(folders, Workspace(self._folder.parents[1], person=self.person))
        written: list[Path] = []
        changed: list[Path] = []
        about = {"files": len(changes), "first": printable(changes[0].path.name)} | dict(about or {})
        with self.open(title, about, resume) as opened:
            for start in range(0, len(changes), FILES_PER_SYNC):
                try:
                    done = opened.write(changes[start : start + FILES_PER_SYNC])
                except ProblemsError as error:
                    raise ProblemsError([*error.problems, *opened.restore()]) from error
                written += done.written
                changed += done.changed_since
                progress(len(written) + len(changed), len(changes))
        return ChangeResult(opened.id if opened.wrote else "", tuple(written), tuple(changed))

    def write_file(
        self, title: str, change: Change, kind: str, code: str, about: Mapping[str, Any] | None = None
    ) -> str:
        """Make a change of a single file and return its id, or "" if nothing changed. Raises ProblemsError.

        title   name of the change, as the history lists it
        kind    noun for the file, for messages
        code    code of the problem if another program has changed the file
        about   {name: value} about the task, for the entry; None for none
        """
        where = printable(change.path)
        with write_errors(f"The {kind} could not be written", where, "nothing was changed"):
            change.path.parent.mkdir(parents=True, exist_ok=True)
        done = self.apply(title, [change], about=about)
        if done.changed_since:
            what = f"Another program changed the {kind} in the meantime; nothing was written"
            raise ProblemsError.one(what, where, "run it again", code)
        return done.id

    def record(self, title: str, change: Change) -> str:
        """Record a text that was not written, so that undo can restore it; return the id. Raises ProblemsError if it cannot be stored.
        title: name of the change, as the history lists it"""
        with self.open(title) as opened:
            opened.append(line_of(change))
            opened.wrote = True
        return opened.id

    @contextmanager
    def open(self, title: str, about: Mapping[str, Any] | None = None, resume: str = "") -> Iterator[OpenChange]:
        """Open a change that is made in several steps. After an exception it stays unfinished; it is removed if it wrote nothing.

        title    name of the change, as the history lists it
        about    {name: value} about the task, for the entry; None for none
        resume   the id of an unfinished change to continue; "" for a new one
        """
        resume = resume if self._file(resume).exists() else ""  # it may have been deleted as one of the oldest
        opened = OpenChange(self._file(resume) if resume else self._new(), resume)
        if not resume:
            if self._opened % PRUNE_EVERY == 0:
                self._prune()
            self._opened += 1
            person = {"person": self.person} if self.person else {}
            opened.append({"title": title, "at": time.time(), "about": dict(about or {}) | person})
        try:
            yield opened
            if opened.wrote:
                opened.append({"finished": True})
        finally:
            if not opened.wrote:
                atomic.remove(self._file(opened.id))  # nothing to undo

    def repair(self) -> int:
        """Repair after a power failure: write the new text again to files of the newest change that are empty; return their number.

        A kill does not cause this: the system still writes what the process passed to it.
        """
        newest = next(self.entries(), None)
        if newest is None or self._has(newest.id, "finished"):
            return 0
        listed, repaired = self._file(newest.id).stat().st_mtime, 0
        for each in self.changes(newest.id):
            with suppress(ProblemsError):  # something other than a caption file is there now
                content = content_of(each.path)
                empty = content is not None and not content.strip(b"\0") and content != each.old
                if empty and each.new and each.path.stat().st_mtime <= listed + WRITTEN_WITHIN:
                    _write_or_remove(each.path, each.new)
                    repaired += 1
        return repaired

    def is_settled(self, id: str) -> bool:
        """Return whether a change was completed, or its interruption was reported."""
        return self._has(id, "finished", "told")

    def mark_reported(self, id: str) -> None:
        """Record that the interruption of a change was reported."""
        OpenChange(self._file(id), id).append({"told": True})

    def _has(self, id: str, *names: str) -> bool:
        """Return whether a line of the change's file has one of these keys."""
        return any(name in each.content for each in read_lines(self._file(id)) for name in names)

    def interruption(self) -> str:
        """Return a message if the newest change was interrupted after it wrote files, else "". Each is reported once."""
        self.repair()
        newest = next(self.entries(), None)
        if newest is None or self.is_settled(newest.id):
            return ""
        changes = self.changes(newest.id)
        written = sum(_has_new_text(each) for each in changes)
        self.mark_reported(newest.id)
        if not written:
            return ""
        return (
            f"The last change of captions, '{newest.title}', was cut off: {written:,} of {len(changes):,} files have it. "
            "Undo it among the changes in Captions, or start it again."
        )

    def undo(self, id: str, progress: Callable[[int, int], None] = lambda done, total: None) -> ChangeResult:
        """Restore the old texts of a change, in files that still have its new text. The undo is a change that can be undone.

        progress   called with (done, total) files
        Raises ProblemsError if the change is no longer stored, or if all of its folders are gone.
        """
        entry = self.entry(id)
        about = dict(entry.about)
        first, redo = str(about.get("of", entry.title)), about.get("act") == "undo"
        changes = [Change(each.path, each.new, each.old, each.link) for each in self.changes(id)]
        about |= {"undoes": id, "of": first, "act": "redo" if redo else "undo"}
        gone = {each.path for each in changes if not each.path.parent.is_dir()}
        if len(gone) < len(changes):
            changes = [each for each in changes if each.path not in gone]
        done = self.apply(f"{'Redo' if redo else 'Undo'}: {first}", changes, about=about, progress=progress)
        return replace(done, changed_since=(*done.changed_since, *sorted(gone)))

    # -- what was changed

    def entry(self, id: str) -> Entry:
        """Return the entry of a change by its id. Raises ProblemsError if it is no longer stored."""
        first = next((each.content for each in read_lines(self._file(id))), {})
        if "title" not in first:
            what = "The earlier captions are no longer available; nothing was changed"
            raise ProblemsError.one(what, "caption history", "write the captions again", "caption.no-history")
        return Entry(id, str(first["title"]), float(first.get("at", 0)), first.get("about") or {})

    def entries(self) -> Iterator[Entry]:
        """Yield the entries of all changes, newest first."""
        for path in reversed(self._files()):
            with suppress(ProblemsError):
                yield self.entry(path.stem)

    def changes(self, id: str) -> list[Change]:
        """Return the change of each file by the change `id`, from its first old text to its last new text."""
        changes: dict[Path, Change] = {}
        for line, _, _ in read_lines(self._file(id)):
            if "path" in line:
                path = Path(line["path"])
                first = changes.get(path) or Change(path, from_json(line.get("old")), None)
                changes[path] = Change(path, first.old, from_json(line.get("new")), first.link or line.get("link"))
        return list(changes.values())

    def unfinished(self, about: Mapping[str, Any]) -> str:
        """Return the id of the newest change with exactly these facts, the `about` of `open`; "" if there is none or it is finished or
        undone."""
        undone = set()
        for entry in self.entries():
            undone.add(entry.about.get("undoes"))
            if entry.about == about:
                return "" if entry.id in undone or self._has(entry.id, "finished") else entry.id
        return ""

    def changes_of(self, path: Path, limit: int) -> list[tuple[Entry, Change]]:
        """Return the newest changes of one caption file, newest first, at most `limit`."""
        with self._lock:
            self._update_indexes()
            indexed = [(id, index.lines[str(path)]) for id, index in self._indexes.items() if str(path) in index.lines]
        newest = []
        for id, begins in sorted(indexed, reverse=True)[:limit]:
            with suppress(ProblemsError, StopIteration, KeyError):  # pruned since, or damaged
                first, last = [next(read_lines(self._file(id), each)).content for each in (begins[0], begins[-1])]
                newest.append((self.entry(id), Change(path, from_json(first["old"]), from_json(last["new"]))))
        return newest

    def _update_indexes(self) -> None:
        """Index the lines of each caption file in the changes' files. Each is read once, and again after it has grown."""
        files = self._files()
        unread = [each for each in files[:-NEWEST] if each.stem not in self._indexes]
        for file in unread + files[-NEWEST:]:
            with suppress(OSError):
                size = file.stat().st_size
                if file.stem not in self._indexes or self._indexes[file.stem].size != size:
                    index = self._indexes[file.stem] = _Index(size)
                    for each in read_lines(file):
                        index.damaged += not each.content
                        if "path" in each.content:
                            index.lines.setdefault(str(each.content["path"]), []).append(each.begin)

    def new_lines(self, offsets: dict[str, int]) -> Iterator[tuple[str, list[dict[str, Any]]]]:
        """Yield (id, new lines) of each of the NEWEST changes that has grown, oldest first. Lines are parsed: see `line_of` in
        change_file.py.
        offsets: id -> number of bytes read so far; updated here"""
        for file in self._files()[-NEWEST:]:
            offset = offsets.get(file.stem, 0)
            with suppress(OSError):
                if file.stat().st_size > offset:
                    lines = list(read_lines(file, offset))
                    offsets[file.stem] = lines[-1].end if lines else offset
                    yield file.stem, [each.content for each in lines]

    def file_count(self, id: str) -> int:
        """Return the number of files of a change."""
        return len(self._index_of(id).lines)

    def damaged_lines(self, id: str) -> int:
        """Return the number of damaged lines in a change's file; undo does not restore the caption files of these."""
        return self._index_of(id).damaged

    def _index_of(self, id: str) -> _Index:
        """Return the updated index of a change; an empty one for an unknown id."""
        with self._lock:
            self._update_indexes()
            return self._indexes.get(id) or _Index(0)

    # -- files

    def _file(self, id: str) -> Path:
        """Return the path of a change's file."""
        return self._folder / f"{Path(id).name}.jsonl"

    def _new(self) -> Path:
        """Create the empty file of a new change and return its path."""
        atomic.make_folders(self._folder)
        while True:
            path = self._file(f"{time.time_ns()}")
            with suppress(FileExistsError):
                path.open("xb").close()
                atomic.sync_folder(self._folder)
                return path

    def _files(self) -> list[Path]:
        """Return the files of changes, oldest first. The folder is listed only after it changed: 20,000 names take 140 ms."""
        try:
            changed = os.stat(self._folder).st_mtime_ns
            if changed != self._folder_time or time.time_ns() - changed < CLOCK_NANOSECONDS:
                self._listed, self._folder_time = sorted(self._folder.glob("*.jsonl")), changed
        except OSError:
            return []
        return self._listed

    def _prune(self) -> None:
        """Delete the oldest changes beyond the limits, never the newest.

        Changes above LARGE_CHANGE bytes (whole metadata files) are counted separately: a few of them would push out all changes of
        captions.
        """
        sizes = {path: path.stat().st_size for path in self._files()}
        for large in (False, True):
            files = [path for path, size in sizes.items() if (size > LARGE_CHANGE) == large]
            remaining = sum(sizes[path] for path in files)
            for number, path in enumerate(files[:-1]):
                if remaining <= MAX_HISTORY_BYTES and len(files) - number <= MAX_CHANGES:
                    break
                atomic.remove(path)
                remaining -= sizes[path]


@contextmanager
def only_one_writes(context: JobContext) -> Iterator[None]:
    """Hold the lock of caption writing while the context is open; waits for another task that holds it."""
    folder = context.workspace.captions
    folder.mkdir(parents=True, exist_ok=True)
    lock = Lock(folder / "writing.lock")
    while True:
        try:
            lock.acquire()
            break
        except HeldElsewhere:
            context.stage("waiting for another task to finish writing captions")
            context.check()
    try:
        History(folder).repair()
        yield
    finally:
        lock.release()


def interruption_message(folder: Path) -> str:
    """Return a message, once, if a power cut or kill interrupted the newest change of captions.

    "" if that change was completed or wrote nothing, and while another task writes.
    """
    with suppress(HeldElsewhere, OSError, ProblemsError):
        if folder.is_dir():
            lock = Lock(folder / "writing.lock")
            lock.acquire()
            try:
                return History(folder).interruption()
            finally:
                lock.release()
    return ""


class OpenChange:
    """A change in progress.

    id      for undo
    wrote   whether files were written; also True for a resumed change
    """

    def __init__(self, file: Path, resumed: str):
        """Open a change's file. resumed: the id of an unfinished change that is continued; empty for a new one"""
        self.id, self._file, self.wrote = file.stem, file, bool(resumed)
        if resumed:  # a kill may have left an incomplete last line
            os.truncate(file, file.read_bytes().rfind(b"\n") + 1)

    def append(self, *lines: Mapping[str, Any]) -> None:
        """Append lines to the change's file and wait until they are on disk. Raises ProblemsError."""
        with write_errors(NOT_SAVED, printable(self._file), UNCHANGED):
            with open(self._file, "ab") as handle:
                handle.write(b"".join(json.dumps(line).encode() + b"\n" for line in lines))
                handle.flush()
                with suppress(OSError):  # a network drive that cannot
                    os.fsync(handle.fileno())

    def write(self, changes: Sequence[Change]) -> ChangeResult:
        """Make these changes, except for files that do not have the expected old text.

        Raises ProblemsError for a file that cannot be written; the files before it are then changed, the others not.
        """
        to_write: list[Change] = []
        changed: list[Path] = []
        written: list[Path] = []
        for each in changes:
            content = content_of(each.path)
            if content == each.old and each.old != each.new:
                to_write.append(each)
            elif content != each.new:
                changed.append(each.path)
        check_links(each.path for each in to_write)
        if to_write:
            self.wrote = True
            self.append(*(line_of(each) for each in to_write))
            with _temporary_files(to_write if len(to_write) > 1 else []) as aside:
                for each in to_write:
                    (written if _try_write(each, aside.get(each.path)) else changed).append(each.path)
            if len(to_write) > 1:
                atomic.sync_all(written)
        return ChangeResult(self.id, tuple(written), tuple(changed))

    def written_files(self) -> set[Path]:
        """Return the files that this change has written, and those changed by others after they were listed here."""
        return {each.path for each in self._listed() if content_of(each.path) != each.old}

    def restore(self) -> list[Problem]:
        """Restore the old texts; return a problem for each file that cannot be restored."""
        problems = []
        for each in self._listed():
            try:
                if content_of(each.path) == each.new:
                    _write_or_remove(each.path, each.old, each.link)
            except OSError:
                what = "A caption that was changed before the error could not be restored"
                fix = f"its earlier text is in {printable(self._file)}"
                problems.append(Problem(what, printable(each.path), fix, code="caption.not-restored"))
        return problems

    def _listed(self) -> list[Change]:
        """Return the changes recorded in this change's file so far."""
        return History(self._file.parent).changes(self.id)


def _has_new_text(change: Change) -> bool:
    """Return whether a file has the change's new content; False if it cannot be read."""
    try:
        return content_of(change.path) == change.new
    except ProblemsError:
        return False


@contextmanager
def _temporary_files(changes: Sequence[Change]) -> Iterator[dict[Path, Path]]:
    """Write each new text to a temporary file; gives {path: temporary file} and removes the files at the end.

    All are synced to disk, so that a power cut between the renames leaves no empty caption.
    """
    temporary: dict[Path, Path] = {}
    try:
        for each in changes:
            if each.new is not None and each.link is None:
                with write_errors(NOT_SAVED, printable(each.path), UNCHANGED):
                    temporary[each.path] = atomic.write_temporary(each.path, each.new)
        if temporary:
            atomic.sync_all(temporary.values())
        yield temporary
    finally:
        for path in temporary.values():
            atomic.remove(path)


def _try_write(change: Change, aside: Path | None) -> bool:
    """Write a change if the file has its old text; return whether it was written.

    aside   a synced temporary file with the new text, or None
    Other threads are kept from writing meanwhile; another process could write between check and write.
    """
    with _WRITING:
        if content_of(change.path) != change.old:
            return False
        if change.new is not None and change.link is not None:  # a link to restore: it must lead to this content
            target = change.path.parent / change.link
            if not may_reach(target) or content_of(target) != change.new:
                return False
        with write_errors(NOT_SAVED, printable(change.path), UNCHANGED):
            _write_or_remove(change.path, change.new, change.link, aside=aside)
    return True


def _write_or_remove(path: Path, content: bytes | None, link: str | None = None, *, aside: Path | None = None) -> None:
    """Write the file, or remove it if `content` is None.

    link    target of a symbolic link to restore, if nothing exists at `path`
    aside   a synced temporary file to move to `path` instead
    """
    if aside is not None:
        atomic.replace_by_temporary(aside, path)
    elif content is None:
        atomic.remove(path)
    elif link and not os.path.lexists(path):
        os.symlink(link, path)
    else:
        atomic.write_bytes(path, content)


def content_of(path: Path) -> bytes | None:
    """Return a file's bytes, or None if it does not exist. Raises ProblemsError if it is not a regular file or too large."""
    return read_regular(path, MAX_BYTES) if os.path.lexists(path) else None


def check_links(paths: Iterable[Path]) -> None:
    """Raise ProblemsError with one problem for each symbolic link whose target this process may not write."""
    what = "This caption is a link to a file outside the open folders, so it is not changed"
    fix = "edit the target file, or replace the link with a copy"
    outside = [path for path in paths if os.path.islink(path) and not may_reach(path)]
    raise_if_errors(Problem(what, printable(path), fix, code="caption.link-outside") for path in outside)


def check_folders(folders: Iterable[Path], workspace: Workspace | None = None) -> None:
    """Raise ProblemsError for folders that are gone, read-only or belong to another user's run.

    Also removes temporary files of processes that were killed more than an hour ago.

    workspace   None for the job's workspace
    """
    folders = sorted(set(folders))
    raise_if_errors(filter(None, (others_run_problem(each, printable(each), workspace) for each in folders)))
    what, fix = "Nothing can be saved: this folder no longer exists", "move it back, or give it its earlier name"
    gone = [folder for folder in folders if not folder.is_dir()]
    raise_if_errors(Problem(what, printable(folder), fix, code="caption.folder-gone") for folder in gone)
    for folder in folders:
        atomic.remove_leftovers(folder, files_only=True)
    what = "Nothing can be saved: this folder is read-only"
    fix = "make it writable, or copy the images to another folder"
    locked = [folder for folder in folders if not os.access(folder, os.W_OK)]
    raise_if_errors(Problem(what, printable(folder), fix, code="caption.read-only-folder") for folder in locked)
