"""What a tool is: `plan(settings, workspace)` finds everything that can be wrong and returns what would be done, whose text
says it; `do(settings, plan, context)` does it. Each tool is a module with these two and a row in core/builtin.py."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class FilePlan:
    """What would be done with one file. path: the file that is read; target: the one that is written, if any."""

    sentence: str
    path: Path
    target: Path = Path()

    def __str__(self) -> str:
        return self.sentence
