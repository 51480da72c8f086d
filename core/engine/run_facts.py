"""What the list of runs shows of a run, kept in a small file of its folder, so that no journal has to be read for it.

The file is written when a run ends, and by whoever lists a run without it. It counts as long as journal and settings are the
files that it was made of, by size and time, and the same of the saved models are there: neither the order of times nor the
clock matters. Any other file is ignored and made again.
"""

from __future__ import annotations

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

FILE = "summary.json"
VERSION = 1  # raised when other facts are kept, or the same journal gives others
MAX_BYTES = 4_000_000
Stamps = tuple[int, ...]
Seconds = Annotated[FiniteFloat, Field(ge=0, lt=2**40)]


@dataclass(frozen=True)
class RunFacts:
    """What journal and settings of a run say.

    of       the files they were read from (`stamps`)     state   the last one in the journal
    sample   file of the newest sample                    files, gone   saved models that are there, and that are not
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
        """Whether the settings are gone."""
        return self.of[2:] == (-1, -1)

    def is_current(self, folder: RunFolder) -> bool:
        """Whether reading everything again would find the same."""
        return (self.version, self.of) == (VERSION, stamps(folder)) and present(
            folder, (*self.files, *self.gone)
        ) == self.files


_FACTS = TypeAdapter(RunFacts)


def stamps(folder: RunFolder) -> Stamps:
    """Size and time of journal and settings, -1 for what is missing. To be taken before they are read."""
    return (*_stamp(folder.journal_file), *_stamp(folder.job_file))


def _stamp(path: Path) -> tuple[int, int]:
    try:
        found = os.stat(path)
    except OSError:
        return -1, -1
    return (found.st_size, found.st_mtime_ns) if stat.S_ISREG(found.st_mode) else (-1, -1)


def present(folder: RunFolder, files: Iterable[str]) -> tuple[str, ...]:
    """Those of these files of a run that are there; the folder of models is listed once for it."""
    names, models = set[str](), folder.checkpoints
    with suppress(OSError), os.scandir(models) as found:
        beginning = f"{models.name}/"
        names = {beginning + each.name for each in found if not each.is_symlink()}
    return tuple(file for file in files if file in names or os.path.exists(folder.path / file))


def read_facts(folder: RunFolder) -> RunFacts | None:
    """The facts in the folder; None where there are none, or they no longer stand."""
    try:
        found = _FACTS.validate_json(read_regular(folder.path / FILE, MAX_BYTES), strict=True)
    except (ProblemsError, ValueError):
        return None
    return found if found.is_current(folder) else None


def write_facts(folder: RunFolder, facts: RunFacts) -> None:
    """Keep them in the folder, where it can be written. Nothing is lost with them, so the disk is not waited for. A run without any
    event is left alone: the time of its folder says when it began."""
    with suppress(OSError, ValueError):  # a name that is no Unicode
        data = _FACTS.dump_json(facts, warnings=False)
        if facts.started and folder.there:  # a folder that was deleted meanwhile would come back
            atomic.write_bytes(folder.path / FILE, data, synced=False)
