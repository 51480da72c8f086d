"""After a power cut or a kill: the last change of captions is compared with the files, and a person is told."""

from __future__ import annotations

from pathlib import Path

from core.dataset.captions.history import Change, Entry, History, content_of
from core.record.lock import HeldElsewhere, Lock
from core.record.problems import ProblemsError


def cut_off_words(folder: Path) -> str:
    """What a person should know at a start about the last change of captions, "" where it was finished."""
    if not folder.is_dir():
        return ""
    lock = Lock(folder / "writing.lock")
    try:
        lock.acquire()
    except (HeldElsewhere, OSError):
        return ""
    try:
        found = _cut_off(History(folder))
    except (OSError, ProblemsError):
        return ""
    finally:
        lock.release()
    if found is None:
        return ""
    entry, written, of = found
    return (
        f"The last change of captions, '{entry.title}', was cut off: {written:,} of {of:,} files have it. "
        "Undo it among the changes in Captions, or start it again."
    )


def _cut_off(history: History) -> tuple[Entry, int, int] | None:
    """The newest change if it was left before its end and nobody has been told: with how many of its files have the new
    text, and of how many it is."""
    history.repair()
    newest = next(history.entries(), None)
    if newest is None or history.ended(newest.id):
        return None
    changes = history.changes(newest.id)
    written = sum(_stands(each) for each in changes)
    history.end(newest.id)
    return (newest, written, len(changes)) if written else None


def _stands(change: Change) -> bool:
    """Whether the file has the new text."""
    try:
        return content_of(change.path) == change.new
    except ProblemsError:
        return False
