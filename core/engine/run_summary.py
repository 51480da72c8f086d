"""A training in the table of runs."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from core.engine.run_words import RunWords
from core.record.problems import ProblemsError
from core.record.run_about import RunAbout, read_about
from core.record.run_folder import RunFolder, state_step


@dataclass(frozen=True)
class RunState:
    """A run in a list of names."""

    name: str
    title: str
    state: str


@dataclass(frozen=True)
class RunSummary:
    """A row of the table of runs."""

    name: str
    title: str
    task: str
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
    words: RunWords = field(default_factory=RunWords)
    note: str = ""
    spoilt: str = ""  # why title and note cannot be read


def newest_state_name(folder: RunFolder) -> int:
    """The step of the newest state by its name alone (hashes are checked when it is used), -1 when there is none."""
    if not folder.states.is_dir():
        return -1
    return max((state_step(path) for path in folder.states.iterdir() if (path / "complete.json").is_file()), default=-1)


def about_of(folder: RunFolder) -> tuple[RunAbout, str]:
    try:
        return read_about(folder), ""
    except ProblemsError as error:
        return RunAbout(), str(error)
