"""Weights within a text, in A1111's notation: (more), [less], (exactly:1.3). Rules: reference, training, section 1.5."""

from __future__ import annotations

import re
from collections.abc import Callable
from itertools import groupby
from typing import Any

MORE, LESS = 1.1, 1 / 1.1
MOST_OPEN, LARGEST = 100, 1000  # within them a weight stays finite, and a text of any length takes no time
# An escaped bracket or backslash, any other backslash, an opening bracket, a number that closes, a closing one, text.
_PARTS = re.compile(r"\\[()\[\]\\]|\\|\(|\[|:([+-]?[.\d]+)\)|\)|\]|[^\\()\[\]:]+|:")
FIX = "write a number with one point, such as (word:1.2), or \\( and \\) for literal brackets"

Run = tuple[str, float]
Read = Callable[[str], list[Run]]  # a text -> its runs
WINDOW_END = "\0"  # the text of a run that stands for the end of a window: what follows begins the next


def runs_of(text: str) -> list[Run]:
    """The text in runs of one weight, in order: "a (red:1.3) fox" -> [("a ", 1), ("red", 1.3), (" fox", 1)].

    A bracket that is left open weighs to the end; one without a partner is text. ValueError for a number with two points
    or beyond all use, and for brackets nested without end.
    """
    runs: list[list[Any]] = []
    round_open: list[int] = []
    square_open: list[int] = []

    def weigh(begin: int, factor: float) -> None:
        for run in runs[begin:]:
            run[1] *= factor

    for match in _PARTS.finditer(text):
        part, number = match[0], match[1]
        if part.startswith("\\"):
            runs.append([part[1:], 1.0])
        elif part == "(":
            round_open.append(len(runs))
        elif part == "[":
            square_open.append(len(runs))
        elif number is not None and round_open:
            weigh(round_open.pop(), _weight(number))
        elif part == ")" and round_open:
            weigh(round_open.pop(), MORE)
        elif part == "]" and square_open:
            weigh(square_open.pop(), LESS)
        else:
            runs.append([part, 1.0])
        if len(round_open) + len(square_open) > MOST_OPEN:
            raise ValueError(f"more than {MOST_OPEN} brackets are nested")
    for begin in round_open:
        weigh(begin, MORE)
    for begin in square_open:
        weigh(begin, LESS)
    merged = [("".join(run[0] for run in group), weight) for weight, group in groupby(runs, key=lambda run: run[1])]
    return merged or [("", 1.0)]


def wrong_weight(text: str) -> str:
    """What is wrong with a weight in the text: "the weight '1.2.3' is not a number"; empty without errors."""
    try:
        runs_of(text)
    except ValueError as error:
        return str(error)
    return ""


def _weight(number: str) -> float:
    try:
        weight = float(number)
    except ValueError:
        raise ValueError(f"the weight '{number[:20]}' is not a number") from None
    if abs(weight) > LARGEST:
        raise ValueError(f"the weight {number[:20]} is above {LARGEST}")
    return weight
