"""What becomes of a captioner's text: cleaned, and joined with the caption that is there. Pure functions."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from typing import Any

import regex

from core.record.problems import Problem, ProblemsError
from core.settings.caption import CaptioningSettings

PATTERN_SECONDS = 1.0  # for all matches of a pattern in one caption
ALL_SECONDS = 20.0  # and in all captions of a change or filter
LONGEST_PATTERN = 2000
# Patterns that call themselves take gigabytes before they fail.
_CALLS = regex.compile(r"\(\?(?:R|[+-]?\d|&|P>)")
_FAULTS = (regex.error, IndexError, ValueError, OverflowError, RecursionError, MemoryError)


def combined(existing: str, new: str, settings: CaptioningSettings, separator: str = "") -> str:
    """The caption to write. existing: the caption of the file, "" for none; separator: what divides the new one, where that is
    not the job's separator. A caption that gets nothing new stays to the letter."""
    separator = separator or settings.separator
    new = cleaned(new, settings, separator)
    how = settings.existing
    if not existing or how in ("missing", "keep", "replace"):
        return new
    if how == "line":
        lines = existing.split("\n")
        return existing if new in (line.strip() for line in lines) else f"{existing}\n{new}"
    there = parts_of(existing, separator)
    known = {comparable(part) for part in there}
    found = {comparable(part): part for part in reversed(parts_of(new, separator))}
    added = [part for form, part in reversed(found.items()) if form not in known]
    if not added:
        return existing
    return separator.join([*there, *added] if how == "append" else [*added, *there])


def cleaned(text: str, settings: CaptioningSettings, separator: str = "") -> str:
    """A captioner's text without the phrases to remove, with prefix and suffix; "" stays empty."""
    separator = separator or settings.separator
    for pattern in settings.remove_words:
        text = removed(pattern, text)
    lines = parts_of(text, separator) if "\n" in separator else [text]  # its line breaks are meant
    text = separator.join(line for each in lines if (line := " ".join(each.split()).strip(" ,")))
    return separator.join(part for part in (settings.prefix, text, settings.suffix) if part) if text else ""


class Pattern:
    """A regular expression as a person wrote it, used within limits of time. Raises ProblemsError, also from its methods.

    where   the setting that it comes from
    """

    def __init__(self, text: str, where: str):
        self._text, self._where, self._left = text, where, ALL_SECONDS
        with self._in_words("a valid regular expression"):
            if len(text) > LONGEST_PATTERN:
                raise ValueError(f"it is longer than {LONGEST_PATTERN:,} characters")
            if _CALLS.search(text):
                raise ValueError("recursive patterns are not supported")
            self._compiled = regex.compile(text)

    @property
    def groups(self) -> list[str]:
        """The names of its groups."""
        return list(self._compiled.groupindex)

    def first(self, text: str) -> Any:
        """The first match in the text, None without one."""
        return self._timed(lambda seconds: self._compiled.search(text, timeout=seconds))

    def replaced(self, text: str, by: str) -> str:
        """The text with each match replaced; \\1 in `by` is the first group."""
        with self._in_words("a valid replacement", by):
            return str(self._timed(lambda seconds: self._compiled.sub(by, text, timeout=seconds)))

    def check_replacement(self, by: str, where: str) -> None:
        """What is wrong with a replacement, before any caption matches."""
        Pattern(f"{self._text}|", where).replaced("", by)

    def _timed(self, use: Callable[[float], Any]) -> Any:
        begin = time.monotonic()
        try:
            return use(max(0.001, min(PATTERN_SECONDS, self._left)))
        except TimeoutError:
            what = f"The regular expression '{self._text[:60]}' takes too long"
            raise ProblemsError.one(what, self._where, "simplify it", "caption.slow-pattern") from None
        finally:
            self._left -= time.monotonic() - begin

    @contextmanager
    def _in_words(self, kind: str, text: str = "") -> Iterator[None]:
        try:
            yield
        except _FAULTS as error:
            why = "it is nested too deeply" if isinstance(error, RecursionError | MemoryError) else str(error)
            what = f"'{(text or self._text)[:60]}' is not {kind}: {why}"
            raise ProblemsError.one(what, self._where, "correct or remove it", "caption.bad-pattern") from None


def removed(pattern: str, text: str, by: str = "") -> str:
    """The text with each match of a regular expression replaced. Raises ProblemsError."""
    return Pattern(pattern, pattern).replaced(text, by)


def pattern_problems(patterns: Sequence[str], where: str, by: str = "", by_where: str = "") -> list[Problem]:
    """One error for each that is not a regular expression, or that the replacement `by` does not fit."""
    found: list[Problem] = []
    for pattern in patterns:
        try:
            Pattern(pattern, where).check_replacement(by, by_where or where)
        except ProblemsError as error:
            found += error.problems
    return found


def parts_of(text: str, separator: str) -> list[str]:
    """The parts of a caption that are not blank, divided at the separator without its spaces."""
    return [part.strip() for part in text.split(separator.strip() or separator) if part.strip()]


@lru_cache(maxsize=1 << 16)
def comparable(part: str) -> str:
    """A tag in the form in which two spellings of it are the same: case, underscores, escapes and spaces do not count."""
    return re.sub(r"[\s_]+", " ", part.replace("\\", "")).strip().casefold()
