"""Detects a change of captions that a power cut or kill interrupted, for a message to the user."""

from __future__ import annotations

from pathlib import Path

from core.dataset.captions.history import Change, Entry, History, content_of
from core.record.lock import HeldElsewhere, Lock
from core.record.problems import ProblemsError


def interruption_message(folder: Path) -> str:
    """The message on an interrupted last change of captions; "" if it was completed."""
    if not folder.is_dir():
        return ""
    lock = Lock(folder / "writing.lock")
    try:
        lock.acquire()
    except (HeldElsewhere, OSError):
        return ""
    try:
        interrupted = _cut_off(History(folder))
    except (OSError, ProblemsError):
        return ""
    finally:
        lock.release()
    if interrupted is None:
        return ""
    entry, written, of = interrupted
    return (
        f"The last change of captions, '{entry.title}', was cut off: {written:,} of {of:,} files have it. "
        "Undo it among the changes in Captions, or start it again."
    )


def _cut_off(history: History) -> tuple[Entry, int, int] | None:
    """(the newest change, number of files with the new text, number of files) if it was interrupted and not yet reported; else
    None."""
    history.repair()
    newest = next(history.entries(), None)
    if newest is None or history.ended(newest.id):
        return None
    changes = history.changes(newest.id)
    written = sum(_stands(each) for each in changes)
    history.end(newest.id)
    return (newest, written, len(changes)) if written else None


def _stands(change: Change) -> bool:
    """Whether the file has the change's new text."""
    try:
        return content_of(change.path) == change.new
    except ProblemsError:
        return False
