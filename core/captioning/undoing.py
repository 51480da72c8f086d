"""The task `caption_history`: the latest changes of captions, and the undoing of one."""

from __future__ import annotations

import time
from itertools import islice

from core.dataset.captions.history import Entry, History, only_one_writes
from core.dataset.sources.files import printable
from core.record.context import JobContext, Outcome
from core.record.problems import ProblemsError
from core.record.units import count
from core.record.workspace import Workspace
from core.settings.captioning.edits import CaptionHistorySettings

LISTED = 30
LAST = "last"


def check_history(asked: CaptionHistorySettings, workspace: Workspace) -> str:
    """The check before a start. Raises ProblemsError for a change that is not kept."""
    history = History(workspace.captions)
    if not asked.undo:
        return count(sum(1 for _ in history.entries()), "change")
    return f"Would undo: {_line(history, _entry(history, asked.undo))}"


def caption_history(asked: CaptionHistorySettings, context: JobContext) -> Outcome:
    """List the latest changes, newest first, or undo one: files that hold something else by now are left alone."""
    history = History(context.workspace.captions)
    if not asked.undo:
        entries = list(islice(history.entries(), LISTED))
        return Outcome(
            lines=[_line(history, entry) for entry in entries] or ["No changes"], facts={"changes": len(entries)}
        )
    with only_one_writes(context):
        entry = _entry(history, asked.undo)
        done = history.undo(entry.id)
    left = [f"{printable(path)} has changed since and was left unchanged" for path in done.changed_since]
    lines = [f"Undone: {_line(history, entry)}", *left, f"{count(len(done.written), 'caption')} restored"]
    return Outcome(lines=lines, facts={"written": len(done.written), "left": len(done.changed_since)})


def _entry(history: History, asked: str) -> Entry:
    """The newest change for 'last', else the one with this number. Raises ProblemsError."""
    entry = next((each for each in history.entries() if asked in (LAST, each.id)), None)
    if entry is None:
        fix = "run caption_history without a number to list the changes"
        raise ProblemsError.one("This caption change does not exist", "caption_history.undo", fix, "caption.no-change")
    return entry


def _line(history: History, entry: Entry) -> str:
    files, done = entry.about.get("files"), history.count(entry.id)
    part = f"at most {done:,} of " if isinstance(files, int) and done < files else ""  # it was interrupted
    many = f", {part}{count(files, 'caption')}" if isinstance(files, int) else ""
    return f"{entry.id}  {time.strftime('%Y-%m-%d %H:%M:%S', time.localtime(entry.at))}  {entry.title}{many}"
