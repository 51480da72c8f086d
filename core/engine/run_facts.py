"""The facts that the list of runs shows of a run, cached in summary.json of its folder, so that no journal must be read.

The file is written when a run ends, or when a run without it is listed. It is valid while journal and job.json have the same
size and time and the same saved models exist; any other file is ignored and rewritten.
"""

import os
import stat
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
from core.record.regular import read_regular
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

    of       `stamps` of the files they come from     state   the last one in the journal
    sample   file of the newest sample      files, gone   saved models that exist, and that were deleted
    best     lowest loss on held-out images and its step
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
        """Whether job.json is missing."""
        return self.of[2:] == (-1, -1)

    def is_current(self, folder: RunFolder) -> bool:
        """Whether the facts are still valid: the files they come from are unchanged."""
        return (self.version, self.of) == (VERSION, stamps(folder)) and present(
            folder, (*self.files, *self.gone)
        ) == self.files


_FACTS = TypeAdapter(RunFacts)


def stamps(folder: RunFolder) -> Stamps:
    """Size and time of journal and job.json, -1 for missing files. To be taken before they are read."""
    return (*_stamp(folder.journal_file), *_stamp(folder.job_file))


def _stamp(path: Path) -> Stamp:
    try:
        status = os.stat(path)
    except OSError:
        return -1, -1
    return stamp_of(status) if stat.S_ISREG(status.st_mode) else (-1, -1)


def present(folder: RunFolder, files: Iterable[str]) -> tuple[str, ...]:
    """Return those of a run's files that exist. Lists the folder of models only once."""
    names, models = set[str](), folder.checkpoints
    with suppress(OSError), os.scandir(models) as entries:
        beginning = f"{models.name}/"
        names = {beginning + each.name for each in entries if not each.is_symlink()}
    return tuple(file for file in files if file in names or os.path.exists(folder.path / file))


def read_facts(folder: RunFolder) -> RunFacts | None:
    """Return the facts in summary.json; None without valid ones."""
    try:
        facts = _FACTS.validate_json(read_regular(folder.path / FILE, MAX_BYTES), strict=True)
    except (ProblemsError, ValueError):
        return None
    return facts if facts.is_current(folder) else None


def write_facts(folder: RunFolder, facts: RunFacts) -> None:
    """Write summary.json, without fsync since it can be rebuilt; errors are ignored. Nothing is written into a deleted folder, nor
    for a run without events: its start is read from its folder's time, which writing would change."""
    with suppress(OSError, ValueError):  # a name that is not Unicode
        data = _FACTS.dump_json(facts, warnings=False)
        if facts.started and folder.there:  # a folder that was deleted meanwhile would come back
            atomic.write_bytes(folder.path / FILE, data, synced=False)
