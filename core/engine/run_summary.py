"""Rows of the table of runs."""

from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from core.engine.run_facts import RunFacts
from core.engine.run_labels import RunLabels
from core.engine.view import DAMAGED, true_state
from core.record.problems import ProblemsError
from core.record.run_about import RunAbout, initial_title, read_about
from core.record.run_folder import RunFolder, newest_state, state_step


@dataclass(frozen=True)
class RunState:
    """Name, title and state of a run, for short lists."""

    name: str
    title: str
    state: str


@dataclass(frozen=True)
class RunSummary:
    """A row of the table of runs.

    step, total      trained and planned steps
    started          in seconds since 1970
    seconds          that the run worked
    thumbnail        image of the newest sample
    files            existing checkpoints
    resumable_step   of the newest training state, -1 without one
    message, fix     of the run's state
    """

    name: str
    title: str
    state: str
    step: int
    total: int
    started: float
    seconds: float
    thumbnail: Path | None
    files: list[Path]
    message: str
    folder: Path
    resumable_step: int = -1
    fix: str = ""
    best: tuple[float, int] | None = None  # lowest loss on held-out images and its step
    best_file: dict[str, Any] | None = None  # the best checkpoint (core/record/best.py)
    words: RunLabels = field(default_factory=RunLabels)
    note: str = ""
    person: str = ""  # whose it is, where several have a page each
    about_error: str = ""  # why title and note cannot be read

    @property
    def starred(self) -> bool:
        return bool(RunFolder(self.folder).star_file.exists())


def summary_of(folder: RunFolder, facts: RunFacts, held: bool = False) -> RunSummary:
    """Return the row of a run. held: whether a process runs it. Raises OSError if its folder was deleted."""
    state = true_state(facts.state, facts.damaged, held)
    message, fix = DAMAGED if state == "damaged" else (facts.message, facts.fix)
    row = RunSummary(
        name=folder.name,
        title="",
        state=state,
        step=facts.step,
        total=facts.total,
        started=facts.started or folder.path.stat().st_mtime,
        seconds=facts.seconds,
        thumbnail=folder.path / facts.sample if facts.sample else None,
        files=[folder.path / file for file in facts.files],
        message=message,
        folder=folder.path,
        fix=fix,
        best=facts.best,
        best_file=facts.best_file.to_dict() if facts.best_file else None,
        words=facts.words,
    )
    return with_current_about(folder, row)


def with_current_about(folder: RunFolder, row: RunSummary) -> RunSummary:
    """Return `row` with the current title, note, person and newest training state, which change without new events in the journal."""
    about, about_error = about_of(folder)
    return replace(
        row,
        title=about.title or initial_title(folder),
        note=about.note,
        person=about.person,
        about_error=about_error,
        resumable_step=newest_state_step(folder),
    )


def newest_state_step(folder: RunFolder) -> int:
    """Return the step of the newest training state whose files have their sizes (hashes are checked on resuming); -1 without one."""
    with suppress(OSError):
        if state := newest_state(folder.states, quick=True):
            return state_step(state)
    return -1


def about_of(folder: RunFolder) -> tuple[RunAbout, str]:
    """Return (title and note of a run, error message): empty values and why if about.json is damaged, else "" as the message."""
    try:
        return read_about(folder), ""
    except ProblemsError as error:
        return RunAbout(), str(error)
