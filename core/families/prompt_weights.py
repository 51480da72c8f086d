"""Parses prompt weights in A1111's notation: (more), [less], (exactly:1.3). Rules: reference, training, section 1.5.

token_weights.py applies them.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from itertools import groupby
from typing import Any

MORE, LESS = 1.1, 1 / 1.1
UNUSUAL = 5  # larger weights distort images
MOST_OPEN, LARGEST = 100, 1000  # limits that keep weights finite and long texts fast to parse
# An escaped bracket or backslash, any other backslash, an opening bracket, a number that closes, a closing one, text.
_PARTS = re.compile(r"\\[()\[\]\\]|\\|\(|\[|:([+-]?[.\d]+)\)|\)|\]|[^\\()\[\]:]+|:")
# At the end of a round bracket: a colon and a mistyped number after it ("1,2", " 1.2", "high").
_MEANT = re.compile(r":(\s*[^\s:(){}\[\]_,]{1,8}|\s*[+-]?\d[\d.,]{0,7}\s*)$")
_LITERAL = re.compile(r"(\\[()\[\]])|[\\()\[\]]")
FIX = "write a number with one point, such as (word:1.2), or \\( and \\) for literal brackets"

Run = tuple[str, float]
Read = Callable[[str], list[Run]]  # a text -> its runs
WINDOW_END = "\0"  # the text of a run that ends the current window of 75 tokens (BREAK)


@dataclass(frozen=True)
class Fault:
    """A fault in a weight or bracket at [start, end) of a text.

    kind   errors: "weight" (not a number), "nested" (too deep); tolerated: "open" (not closed), "extra" (nothing to close), "text" (looks
           like a weight, but is read as text), "high" (above UNUSUAL)
    """

    start: int
    end: int
    kind: str
    reason: str


def runs_of(text: str) -> list[Run]:
    """Split a text into runs of equal weight, in order: "a (red:1.3) fox" -> [("a ", 1), ("red", 1.3), (" fox", 1)].

    An unclosed bracket applies up to the end of the text; a closing one alone is text. Raises ValueError for an invalid number, one above
    LARGEST, and more than MOST_OPEN nested brackets.
    """
    runs, faults = read_weights(text)
    wrong = next((fault.reason for fault in faults if fault.kind in ("weight", "nested")), "")
    if wrong:
        raise ValueError(wrong)
    return runs


def read_weights(text: str) -> tuple[list[Run], list[Fault]]:
    """Return (the runs of `runs_of`, all faults in weights and brackets). A faulty number counts as 1."""
    runs: list[list[Any]] = []
    faults: list[Fault] = []
    round_open: list[tuple[int, int]] = []  # (index of the first run inside, position of the bracket)
    square_open: list[tuple[int, int]] = []

    def weigh(begin: int, factor: float) -> None:
        """Multiply the weights of all runs from index `begin` on by `factor`."""
        for run in runs[begin:]:
            run[1] *= factor

    for match in _PARTS.finditer(text):
        part, number = match[0], match[1]
        if part.startswith("\\"):
            runs.append([part[1:], 1.0])
        elif part == "(":
            round_open.append((len(runs), match.start()))
        elif part == "[":
            square_open.append((len(runs), match.start()))
        elif number is not None and round_open:
            try:
                factor = _weight(number)
            except ValueError as error:
                faults.append(Fault(match.start(1), match.end(1), "weight", str(error)))
                factor = 1.0
            if abs(factor) > UNUSUAL:
                faults.append(
                    Fault(match.start(1), match.end(1), "high", f"the weight {number} is far from the usual ones")
                )
            weigh(round_open.pop()[0], factor)
        elif part == ")" and round_open:
            begin, start = round_open.pop()
            weigh(begin, MORE)
            if meant := _MEANT.search(text, max(start, match.start() - 12), match.start()):
                faults.append(Fault(meant.start(), match.start(), "text", f"'{meant[0]}' is text here, not a weight"))
        elif part == "]" and square_open:
            weigh(square_open.pop()[0], LESS)
        else:
            if part[-1] in ")]":
                faults.append(
                    Fault(match.end() - 1, match.end(), "extra", f"no bracket is open before this '{part[-1]}'")
                )
            runs.append([part, 1.0])
        if len(round_open) + len(square_open) > MOST_OPEN:
            faults.append(Fault(match.start(), match.end(), "nested", f"more than {MOST_OPEN} brackets are nested"))
            break
    for opened, sign, factor in ((round_open, "(", MORE), (square_open, "[", LESS)):
        for begin, start in opened:
            weigh(begin, factor)
            faults.append(Fault(start, start + 1, "open", f"this '{sign}' is not closed: it weighs all that follows"))
    merged = [("".join(run[0] for run in group), weight) for weight, group in groupby(runs, key=lambda run: run[1])]
    return merged or [("", 1.0)], faults


def escape_brackets(text: str) -> str:
    r"""Escape the brackets and backslashes of a text, so that a prompt reads them as text: fox_(animal) -> fox_\(animal\).

    Brackets that are already escaped stay.
    """
    return _LITERAL.sub(lambda match: match[1] or "\\" + match[0], text)


def unescape_brackets(text: str) -> str:
    r"""Return a text with plain brackets for escaped ones: fox_\(animal\) -> fox_(animal)."""
    return re.sub(r"\\([()\[\]])", r"\1", text)


def weight_error(text: str) -> str:
    """Return the first error in the text's weights, such as "the weight '1.2.3' is not a number"; "" if there is none."""
    try:
        runs_of(text)
    except ValueError as error:
        return str(error)
    return ""


def _weight(number: str) -> float:
    """Parse a weight. Raises ValueError if it is not a number or its absolute value is above LARGEST."""
    try:
        weight = float(number)
    except ValueError:
        raise ValueError(f"the weight '{number[:20]}' is not a number") from None
    if abs(weight) > LARGEST:
        raise ValueError(f"the weight {number[:20]} is above {LARGEST}")
    return weight
