"""The parts of a prompt between AND, and their runs of equal weight between BREAKs. Pure."""

import re
from collections.abc import Callable, Iterator, Sequence

from core.families.prompt_weights import WINDOW_END, Read, Run, runs_of
from core.families.token_count import WINDOW

# The words alone, as in A1111. sd-scripts splits at " AND ", and at BREAK also within a word.
BREAK, AND, BREAK_ANYWHERE = re.compile(r"\bBREAK\b"), re.compile(r"\sAND\s"), re.compile("BREAK")
_WEIGHT = re.compile(r"[-+]?(?:\d{1,9}\.?\d{0,9}|\.\d{1,9})")  # after the last colon of a part


def parts_of(prompt: str) -> list[str]:
    """The prompts between AND: "a fox AND a dog" -> ["a fox", "a dog"]."""
    return [part.strip() for part in AND.split(prompt)] if AND.search(prompt) else [prompt]


def placed_parts(prompt: str) -> Iterator[tuple[int, str]]:
    """(start, text) of each prompt between AND."""
    start = 0
    for joint in AND.finditer(prompt):
        yield start, prompt[start : joint.start()]
        start = joint.end()
    yield start, prompt[start:]


def weighted_parts(prompt: str) -> list[tuple[str, float]]:
    """The prompts between AND with their weights: "a fox AND a dog :0.5" -> [("a fox", 1.0), ("a dog", 0.5)]."""
    parts = []
    for part in parts_of(prompt):
        head, _, number = part.rpartition(":")
        weighs = _WEIGHT.fullmatch(number.strip()) if ":" in part else None
        parts.append((head.rstrip(), float(weighs[0])) if weighs else (part, 1.0))
    return parts


def prompt_runs(text: str, read: Read = runs_of, at: re.Pattern[str] = BREAK) -> list[Run]:
    """The runs of a text by `read`, with a new window after each match of `at`."""
    runs: list[Run] = []
    for run, weight in read(text):
        first, *others = at.split(run)
        runs += [(first, weight)]
        for part in others:
            runs += [(WINDOW_END, 1.0), (part, weight)]
    return runs


def tokens_read(texts: Sequence[str], count: Callable[[str], int], runs: Read | None, most: int | None = None) -> int:
    """The number of tokens that these texts are padded to: 75, 150, 225 ...

    count   content tokens of a plain text      runs   None: brackets and weights are tokens too
    most    upper limit
    """
    tokens = WINDOW * max(len(windows_of(text, count, runs)) for text in texts)
    return min(tokens, most) if most else tokens


def windows_of(text: str, count: Callable[[str], int], runs: Read | None = prompt_runs) -> list[int]:
    """The content tokens in each window of a text: at least one window, at most 75 tokens each."""
    full: list[int] = []
    last = 0
    for run, _ in runs(text) if runs else [(text, 1.0)]:
        if run == WINDOW_END:
            if last:
                full.append(last)
            last = 0
            continue
        windows, last = divmod(last + count(run), WINDOW)
        full += [WINDOW] * windows
    return [*full, last] if last or not full else full
