"""Variants within a prompt: {red|blue}, {2$$ and $$a|b|c}, {e$$a|b} for each in turn, and __name__ for a line of a file.

The notation and the draws are those of sd-scripts' generator (reference: generation, section 4), so that a seed gives the
same words there; __name__ is that of A1111's extension Dynamic Prompts. Nesting is resolved from the inside out. Pure:
files are read by whoever hands in `Files`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import combinations, product
from random import Random

MOST = 10_000  # prompts of one line
DEEPEST, LONGEST = 50, 100_000  # groups that make groups again; characters of a prompt
# Within a group without braces: e$$, a number or a range, a separator; the rest are the variants.
_GROUP = re.compile(r"\{(?:([eE])\$\$)?(?:(\d{1,9})(?:-(\d{1,9}))?\$\$)?(?:(?:\$\$)?([^|{}$]+)\$\$)?([^{}]+)\}")
_FILE = re.compile(r"__([A-Za-z0-9*][\w\-./*]*?)__")
_ESCAPED = {r"\{": "\ue000", r"\}": "\ue001"}

Files = Callable[[str], Sequence[str]]  # name -> its lines; WildcardError where there is none


class WildcardError(ValueError):
    """What is wrong with a prompt's variants, in the words of a message."""


@dataclass(frozen=True)
class Group:
    """One group: from `low` to `high` of the variants, joined; each combination in turn, or one drawn."""

    variants: tuple[str, ...]
    low: int = 1
    high: int = 1
    joined: str = ", "
    each: bool = False

    def draw(self, by: Random) -> str:
        number = by.randint(self.low, self.high)
        return self.joined.join(by.sample(self.variants, number))

    def count(self) -> int:
        return sum(math.comb(len(self.variants), number) for number in range(self.low, self.high + 1))

    def all(self) -> list[str]:
        numbers = range(self.low, self.high + 1)
        return [self.joined.join(chosen) for number in numbers for chosen in combinations(self.variants, number)]


def no_files(name: str) -> Sequence[str]:
    raise WildcardError(f"there is no wildcard file '{name}'")


def has_variants(text: str) -> bool:
    hidden = _hidden(text)
    return bool(_GROUP.search(hidden) or _FILE.search(hidden))


def variants(text: str, seeds: Sequence[int], files: Files = no_files) -> list[tuple[str, int]]:
    """The prompts of a line, each with its seed, of which its words are drawn too.

    seeds    one for each image
    returns  one for each seed; with {e$$...} each combination once instead, all with the first seed
    """
    hidden = _hidden(text)
    groups = [_group(match) for match in _GROUP.finditer(hidden)]
    if not any(group.each for group in groups):
        return [(_shown(_drawn(hidden, partial(Random, seed), files)), seed) for seed in seeds]
    by = Random(seeds[0])
    return [(_shown(_drawn(one, lambda: by, files)), seeds[0]) for one in _in_turn(hidden)]


def problem_of(text: str, files: Files = no_files) -> str:
    """What is wrong with a text's variants; empty for nothing. Every variant is looked at, not only those drawn."""
    try:
        for match in _GROUP.finditer(_hidden(text)):
            _group(match)
        for match in _FILE.finditer(_hidden(text)):
            _follow(match[1], files, ())
        variants(text, [0], files)
    except WildcardError as error:
        return str(error)
    return ""


def _follow(name: str, files: Files, through: tuple[str, ...]) -> None:
    """Raise if a file names itself, also by way of others, or one that does not exist."""
    if name in through:
        raise WildcardError(f"the wildcard file '{name}' contains itself: {' > '.join((*through, name))}")
    for line in files(name):
        for match in _FILE.finditer(line):
            _follow(match[1], files, (*through, name))


def _hidden(text: str) -> str:
    for escaped, mark in _ESCAPED.items():
        text = text.replace(escaped, mark)
    return text


def _shown(text: str) -> str:
    return text.replace("\ue000", "{").replace("\ue001", "}")


def _group(match: re.Match[str]) -> Group:
    each, first, second, joined, rest = match.groups()
    found = tuple(rest.split("|"))
    low, high = sorted((int(first or 1), int(second or first or 1)))
    if low > len(found):
        raise WildcardError(f"{_shown(match[0])[:60]} asks for {low} of {len(found)} variants")
    return Group(found, low, min(high, len(found)), ", " if joined is None else joined, bool(each))


def _in_turn(text: str) -> Iterator[str]:
    """The text with each combination of its {e$$...}; other groups are left."""
    matches = [match for match in _GROUP.finditer(text) if match[1]]
    groups = [_group(match) for match in matches]
    number = math.prod(group.count() for group in groups)
    if number > MOST:
        raise WildcardError(f"it has {number:,} combinations; {MOST:,} is the limit")
    for chosen in product(*(group.all() for group in groups)):
        yield _replaced(text, matches, chosen)


def _drawn(text: str, start: Callable[[], Random], files: Files) -> str:
    """start: gives what each level of nesting draws by; the recorded generator starts it anew, but not where it enumerates"""
    for _ in range(DEEPEST):
        by = start()
        named = list(_FILE.finditer(text))
        if named:
            text = _replaced(text, named, [by.choice(files(match[1])) for match in named])
            continue
        matches = list(_GROUP.finditer(text))
        if not matches:
            return text
        drawn = [_group(match).draw(by) for match in reversed(matches)]  # from the last place backwards
        text = _replaced(text, matches, drawn[::-1])
        if len(text) > LONGEST:
            raise WildcardError(f"it has more than {LONGEST:,} characters")
    raise WildcardError(f"more than {DEEPEST} groups are nested")


def _replaced(text: str, matches: Sequence[re.Match[str]], texts: Sequence[str]) -> str:
    for match, new in zip(reversed(matches), reversed(texts), strict=True):
        text = text[: match.start()] + new + text[match.end() :]
    return text
