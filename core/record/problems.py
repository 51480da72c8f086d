"""What went wrong, where, and how to mend it: the one form in which a person meets an error."""

from __future__ import annotations

import errno
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class Problem:
    """One thing a person can act on.

    what   one sentence: what is wrong
    where  the file, setting or picture it is about
    fix    one sentence: what to do
    level  "error" blocks a start, "advice" does not
    """

    what: str
    where: str = ""
    fix: str = ""
    level: str = "error"

    def __str__(self) -> str:
        lines = [self.what]
        if self.where:
            lines.append(f"  where: {self.where}")
        if self.fix:
            lines.append(f"  fix:   {self.fix}")
        return "\n".join(lines)

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


class ProblemsError(Exception):
    """Everything that is wrong with a request, listed at once. Nothing was started or written."""

    def __init__(self, problems: Iterable[Problem]):
        self.problems = list(problems)
        super().__init__("\n".join(str(problem) for problem in self.problems))

    @classmethod
    def one(cls, what: str, where: str = "", fix: str = "") -> ProblemsError:
        return cls([Problem(what, where, fix)])


def errors(problems: Iterable[Problem]) -> list[Problem]:
    """Those that block a start."""
    return [problem for problem in problems if problem.level == "error"]


def raise_if_errors(problems: Iterable[Problem]) -> None:
    found = errors(problems)
    if found:
        raise ProblemsError(found)


def unwritten(error: OSError, what: str, where: str, kept: str = "", then: str = "start again") -> ProblemsError:
    """Why something could not be written.

    what   begins the sentence unless the disk is full: "The cache cannot be written"
    kept   what became of the rest, such as "nothing was kept of the zip"
    then   what to do once there is space
    """
    rest = f"; {kept}" if kept else ""
    if error.errno == errno.ENOSPC:
        return ProblemsError.one(f"The disk is full{rest}", where, f"free some space and {then}")
    return ProblemsError.one(f"{what} ({error.strerror or error}){rest}", where, "check the folder's permissions")
