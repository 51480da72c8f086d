"""The interface of a tool: a module with two functions, and a row in core/builtin.py.

`plan(settings, workspace)` raises all problems and returns a plan, whose str() describes it; `do(settings, plan, context)` carries
it out.
"""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class FilePlan:
    """The plan of a tool on one file. `sentence`: description; `path`: file to read; `target`: file to write, Path() for none."""

    sentence: str
    path: Path
    target: Path = Path()

    def __str__(self) -> str:
        return self.sentence
