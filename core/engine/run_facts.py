"""Facts of a run for the list of runs, cached in summary.json of the run's folder so that its journal need not be read.

The file is written when a run ends, or when a run without it is listed. It is valid while journal and job.json have the same
size and time and the same saved models exist; an invalid file is ignored and rewritten.
"""

import os
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

from pydantic import Field, FiniteFloat, TypeAdapter

from core.engine.run_labels import RunLabels
from core.record import atomic
from core.record.best import Best
from core.record.problems import ProblemsError
from core.record.regular import check_regular, read_regular
from core.record.run_folder import RunFolder
from core.record.stamps import Stamp, stamp_of

FILE = "summary.json"
VERSION = 1  # raised when other facts are kept, or the same journal gives others
MAX_BYTES = 4_000_000
Stamps = tuple[int, ...]
Seconds = Annotated[FiniteFloat, Field(ge=0, lt=2**40)]


@dataclass(frozen=True)
class RunFacts:
    """Facts of a run, from its journal and settings.

    of             `stamps` of journal and job.json when they were read
    state          last state in the journal
    message, fix   of that state
    started        in seconds since 1970
    seconds        that the run worked
    sample         file of the newest sample
    files, gone    saved models that exist, and that were deleted
    best           (lowest loss on held-out images, its step)
    Files are relative to the run folder.
    """

    of: Stamps
    state: str = ""
    message: str = ""
    fix: str = ""
    step: int = 0
    total: int = 0
    started: Seconds = 0.0
    seconds: Seconds = 0.0
    sample: str = ""
    files: tuple[str, ...] = ()
    gone: tuple[str, ...] = ()
    best: tuple[FiniteFloat, int] | None = None
    best_file: Best | None = None
    words: RunLabels = field(default_factory=RunLabels)
    version: int = VERSION

    @property
    def damaged(self) -> bool:
        """Whether job.json was missing."""
        return self.of[2:] == (-1, -1)

    def is_current(self, folder: RunFolder) -> bool:
        """Whether the facts are still valid: journal, job.json and the existing saved models have not changed."""
        return (self.version, self.of) == (VERSION, stamps(folder)) and existing_files(
            folder, (*self.files, *self.gone)
        ) == self.files


_FACTS = TypeAdapter(RunFacts)


def stamps(folder: RunFolder) -> Stamps:
    """Return (size, time) of the journal and of job.json, four integers, -1 for a missing file. Take them before reading the files."""
    return (*_stamp(folder.journal_file), *_stamp(folder.job_file))


def _stamp(path: Path) -> Stamp:
    """Return (size, modification time in ns) of a regular file, else (-1, -1)."""
    try:
        return stamp_of(check_regular(path))
    except ProblemsError:
        return -1, -1


def existing_files(folder: RunFolder, files: Iterable[str]) -> tuple[str, ...]:
    """Return the existing ones of `files`, relative to the run folder. Lists the folder of checkpoints only once."""
    names, models = set[str](), folder.checkpoints
    with suppress(OSError), os.scandir(models) as entries:
        beginning = f"{models.name}/"
        names = {beginning + each.name for each in entries if not each.is_symlink()}
    return tuple(file for file in files if file in names or os.path.exists(folder.path / file))


def read_facts(folder: RunFolder) -> RunFacts | None:
    """Return the facts in summary.json; None if it is missing or not current."""
    try:
        facts = _FACTS.validate_json(read_regular(folder.path / FILE, MAX_BYTES), strict=True)
    except (ProblemsError, ValueError):
        return None
    return facts if facts.is_current(folder) else None


def write_facts(folder: RunFolder, facts: RunFacts) -> None:
    """Write summary.json, without fsync since it can be rebuilt; errors are ignored.

    Not written for a deleted run, nor for a run without events, whose start is read from the time of its folder, which writing
    would change.
    """
    with suppress(OSError, ValueError):  # a name that is not Unicode
        data = _FACTS.dump_json(facts, warnings=False)
        if facts.started and folder.exists:  # a folder that was deleted meanwhile would come back
            atomic.write_bytes(folder.path / FILE, data, synced=False)
