"""What is read of a prompt: its parts between AND, and their runs of one weight between BREAKs. Pure."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

from core.families.token_count import WINDOW
from core.families.word_weights import WINDOW_END, Read, Run, runs_of

BREAK, AND = "BREAK", " AND "
_WEIGHT = re.compile(r"\s*:\s*([-+]?(?:\d{1,9}\.?\d{0,9}|\.\d{1,9}))\s*$")  # at the end of a part


def parts_of(prompt: str) -> list[str]:
    """The prompts between AND: "a fox AND a dog" -> ["a fox", "a dog"]."""
    return [part.strip() for part in prompt.split(AND)] if AND in prompt else [prompt]


def weighted_parts(prompt: str) -> list[tuple[str, float]]:
    """The same with how much each counts: "a fox AND a dog :0.5" -> [("a fox", 1.0), ("a dog", 0.5)]."""
    found = []
    for part in parts_of(prompt):
        match = _WEIGHT.search(part)
        found.append((part[: match.start()], float(match[1])) if match else (part, 1.0))
    return found


def prompt_runs(text: str) -> list[Run]:
    """As `runs_of`; what follows BREAK begins a window of its own."""
    found: list[Run] = []
    for run, weight in runs_of(text):
        first, *rest = run.split(BREAK)
        found += [(first, weight)]
        for part in rest:
            found += [(WINDOW_END, 1.0), (part, weight)]
    return found


def tokens_read(texts: Sequence[str], count: Callable[[str], int], runs: Read | None, most: int | None = None) -> int:
    """The number of tokens these texts are padded to: 75, 150, 225 ...

    count   content tokens of a plain text      runs   None: brackets and weights are tokens too
    most    not more than so many
    """
    windows = max(-(-_length(text, count, runs) // WINDOW) for text in texts)
    found = WINDOW * max(1, windows)
    return min(found, most) if most else found


def _length(text: str, count: Callable[[str], int], runs: Read | None) -> int:
    length = 0
    for run, _ in runs(text) if runs else [(text, 1.0)]:
        length = -(-length // WINDOW) * WINDOW if run == WINDOW_END else length + count(run)
    return length
