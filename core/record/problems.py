"""What went wrong, where, and how to fix it: the one form of every error shown to the user."""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

T = TypeVar("T")

# Text quoted from a file can be as long as the file.
_LIMITS = (("what", 1500), ("where", 1000), ("fix", 1500))
LEVELS = ("error", "warning", "advice")  # the worst first
MOST = 200  # problems listed at once
# Begins a fix: Windows denies reading, replacing or moving a file, or a folder with one, that a program has open.
IN_USE = "close programs that use it, or " if os.name == "nt" else ""


HALF_PAIR = re.compile("[\ud800-\udfff]")
_BREAKS = re.compile("\r\n|[\n\v\f\r\x1c-\x1e\x85\u2028\u2029]")
# Half surrogates, and signs that steer a terminal or turn the direction of writing: names of files may contain them.
UNSEEN = re.compile("[\ud800-\udfff\0-\x08\x0e-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")


def one_line(text: str) -> str:
    """Return untrusted text as one line: line breaks become U+23CE, control and direction characters U+FFFD."""
    return text if text.isprintable() else UNSEEN.sub("\ufffd", _BREAKS.sub("\u23ce", text))


def whole_text(text: str) -> str:
    """Return `text` with half surrogate pairs, which cannot be written to a file, replaced by U+FFFD."""
    return HALF_PAIR.sub("\ufffd", text)


def _readable(text: str, limit: int) -> str:
    """Return `text` as one line, its middle left out beyond `limit` characters."""
    text = one_line(text)
    return text if len(text) <= limit else f"{text[: limit // 2]} ... {text[-limit // 2 :]}"


@dataclass(frozen=True)
class Problem:
    """An error, warning or advice for the user.

    what   what is wrong: one clause without a final full stop
    where  the file, image or setting; of a setting its dotted name, by which the page marks the field
    fix    what to do: begins with a verb in lower case
    level  "error" blocks a start; "warning" means worse results; "advice" means neither
    remedy dotted name of a setting that a button turns on as a fix ("dataset.skip_broken"); "" for none
    code   stable identifier ("dataset.no-images"), compared by code and tests instead of the texts
    """

    what: str
    where: str = ""
    fix: str = ""
    level: str = "error"
    remedy: str = ""
    code: str = ""

    def __post_init__(self) -> None:
        for name, limit in _LIMITS:
            text = getattr(self, name)
            if len(text) > limit or not text.isprintable():
                object.__setattr__(self, name, _readable(text, limit))

    def __str__(self) -> str:
        """Return `what`, `where` and `fix` on a line each, without empty ones."""
        lines = [self.what]
        if self.where:
            lines.append(f"  where: {self.where}")
        if self.fix:
            lines.append(f"  fix:   {self.fix}")
        return "\n".join(lines)

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


class ProblemsError(Exception):
    """Raised with all problems of a request, of which nothing was started or written. problems: at most MOST, and one that counts the
    others."""

    def __init__(self, problems: Iterable[Problem]):
        self.problems = limited(list(problems))
        super().__init__("\n".join(str(problem) for problem in self.problems))

    @classmethod
    def one(cls, what: str, where: str = "", fix: str = "", code: str = "") -> ProblemsError:
        """Return an error with a single problem of level "error"."""
        return cls([Problem(what, where, fix, code=code)])

    @property
    def codes(self) -> list[str]:
        """Codes of the problems."""
        return [problem.code for problem in self.problems]


def collected(problems: list[Problem], function: Callable[..., T], *arguments: Any) -> T | None:
    """Return `function(*arguments)`; if it raises ProblemsError, add the problems to `problems` and return None."""
    try:
        return function(*arguments)
    except ProblemsError as error:
        problems.extend(error.problems)
        return None


def limited(problems: list[Problem]) -> list[Problem]:
    """Return the first MOST problems and, if there are more, a last one with the number of the others."""
    more = len(problems) - MOST
    if more <= 0:
        return problems
    return [
        *problems[:MOST],
        Problem(
            f"{more:,} more problems are not listed", problems[MOST].where, "fix these first", code="problems.more"
        ),
    ]


def errors(problems: Iterable[Problem]) -> list[Problem]:
    """Return the problems of level "error", which block a start."""
    return [problem for problem in problems if problem.level == "error"]


def errors_first(problems: Iterable[Problem]) -> list[Problem]:
    """Return the problems without duplicates, sorted by level; within a level the order stays."""
    once = {
        (problem.code or problem.what, problem.what, problem.where): problem for problem in reversed(list(problems))
    }
    return sorted(reversed(once.values()), key=lambda problem: LEVELS.index(problem.level))


def with_fixes(error: ProblemsError) -> str:
    """Return the problems of `error` as one line: "what: fix; what: fix"."""
    return "; ".join(f"{problem.what}: {problem.fix}" if problem.fix else problem.what for problem in error.problems)


def at_setting(setting: str, problems: Iterable[Problem]) -> list[Problem]:
    """Return problems of a file as problems of the setting that names the file: `where` becomes `setting`, `what` names the file."""
    return [
        each if each.where == setting else replace(each, what=_with_file(each.what, each.where), where=setting)
        for each in problems
    ]


@contextmanager
def problems_at(setting: str) -> Iterator[None]:
    """Context that turns the problems of ProblemsErrors, which are about a file, into problems of `setting` (`at_setting`)."""
    try:
        yield
    except ProblemsError as error:
        raise ProblemsError(at_setting(setting, error.problems)) from error


def _with_file(what: str, file: str) -> str:
    """Return `what` with the path `file`: in place of the file's name if that occurs, else appended."""
    name = Path(file).name
    if file in what:
        return what
    return what.replace(name, file) if "." in name and name in what else f"{what}: {file}"


def raise_any(problems: Iterable[Problem]) -> None:
    """Raise ProblemsError with the problems, of whatever level; do nothing without any."""
    raised = list(problems)
    if raised:
        raise ProblemsError(raised)


def raise_if_errors(problems: Iterable[Problem]) -> None:
    """Raise ProblemsError with the problems of level "error", if there are any."""
    raise_any(errors(problems))


def unwritten(error: OSError, what: str, where: str, rest: str = "", then: str = "start again") -> ProblemsError:
    """Return the ProblemsError for a failed write.

    what    begins the message unless the disk is full: "The cache cannot be written"
    where   the file or setting
    rest    continues it with what happened to other files, "nothing was kept of the zip"; "" for none
    then    what to do once space is free, for the fix
    """
    rest = f"; {rest}" if rest else ""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        what = "The disk is full" if error.errno == errno.ENOSPC else "Your disk quota is used up"
        return ProblemsError.one(f"{what}{rest}", where, f"free some space and {then}", "disk.full")
    if error.errno == errno.EFBIG:
        what = f"A file is too large for this disk or for the limit on file sizes{rest}"
        fix = f"choose another disk and {then}: one formatted as FAT32 holds files of up to 4 GB"
        return ProblemsError.one(what, where, fix, "disk.file-too-large")
    what = f"{what} ({error.strerror or error}){rest}"
    fix = f"{IN_USE if isinstance(error, PermissionError) else ''}check the folder's permissions"
    return ProblemsError.one(what, where, fix, "file.unwritable")


@contextmanager
def write_errors(what: str, where: str, rest: str = "", then: str = "start again") -> Iterator[None]:
    """Context that turns an OSError into the ProblemsError of `unwritten`, whose arguments it takes."""
    try:
        yield
    except OSError as error:
        raise unwritten(error, what, where, rest, then) from error
