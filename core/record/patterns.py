"""User-supplied regular expressions with a time limit."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import regex

from core.record.problems import ProblemsError

PATTERN_SECONDS = 1.0  # for all matches of a pattern in one text
ALL_SECONDS = 20.0  # and in all texts of a change or filter
LONGEST_PATTERN = 2000
# Patterns that call themselves take gigabytes before they fail.
_CALLS = regex.compile(r"\(\?(?:R|[+-]?\d|&|P>)")
_FAULTS = (regex.error, IndexError, ValueError, OverflowError, RecursionError, MemoryError)


class Pattern:
    """A user-supplied regular expression with a time limit. Raises ProblemsError if it is invalid; methods also if it takes too long.

    where     the setting with the expression, for problems
    area      first part of the problems' codes
    seconds   limit of CPU time for all matches of this object together
    """

    def __init__(self, text: str, where: str, area: str = "caption", seconds: float = ALL_SECONDS):
        self._text, self._where, self._area, self._left = text, where, area, seconds
        with self._as_problem("a valid regular expression"):
            if len(text) > LONGEST_PATTERN:
                raise ValueError(f"it is longer than {LONGEST_PATTERN:,} characters")
            if _CALLS.search(text):
                raise ValueError("recursive patterns are not supported")
            self._compiled = regex.compile(text)

    @property
    def groups(self) -> list[str]:
        """Names of the named groups."""
        return list(self._compiled.groupindex)

    def first(self, text: str) -> Any:
        """Return the first match in `text` (a match object of `regex`), or None."""
        return self._with_timeout(lambda seconds: self._compiled.search(text, timeout=seconds))

    def replaced(self, text: str, by: str) -> str:
        r"""Return `text` with each match replaced by `by`, in which \1 is the first group. Raises ProblemsError for an invalid `by`."""
        with self._as_problem("a valid replacement", by):
            return str(self._with_timeout(lambda seconds: self._compiled.sub(by, text, timeout=seconds)))

    def check_replacement(self, by: str, where: str) -> None:
        """Raise ProblemsError if `by` is not a valid replacement for this expression. where: the setting with `by`."""
        Pattern(f"{self._text}|", where, self._area).replaced("", by)

    def _with_timeout(self, use: Callable[[float], Any]) -> Any:
        """Return `use(timeout)` for a timeout of PATTERN_SECONDS, or of the seconds left for this object if fewer. Raises ProblemsError if
        it times out."""
        begin = time.thread_time()  # a busy machine makes no pattern slow
        try:
            return use(max(0.001, min(PATTERN_SECONDS, self._left)))
        except TimeoutError:
            what = f"The regular expression '{self._text[:60]}' takes too long"
            raise ProblemsError.one(what, self._where, "simplify it", f"{self._area}.slow-pattern") from None
        finally:
            self._left -= time.thread_time() - begin

    @contextmanager
    def _as_problem(self, kind: str, text: str = "") -> Iterator[None]:
        """Context that turns errors of `regex` into a ProblemsError "'{text}' is not {kind}: ...".

        kind   such as "a valid replacement"
        text   "" for the expression itself
        """
        try:
            yield
        except _FAULTS as error:
            why = "it is nested too deeply" if isinstance(error, RecursionError | MemoryError) else str(error)
            what = f"'{(text or self._text)[:60]}' is not {kind}: {why}"
            raise ProblemsError.one(what, self._where, "correct or remove it", f"{self._area}.bad-pattern") from None
