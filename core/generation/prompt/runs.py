"""Splits prompts at AND, at BREAK, and into windows of 75 tokens."""

import re
from collections.abc import Callable, Iterator, Sequence

from core.families.prompt_weights import WINDOW_END, Read, Run, runs_of
from core.families.token_count import WINDOW

# The words alone, as in A1111. sd-scripts splits at " AND ", and at BREAK also within a word.
BREAK, AND, BREAK_ANYWHERE = re.compile(r"\bBREAK\b"), re.compile(r"\s?\bAND\b\s?"), re.compile("BREAK")
_WEIGHT = re.compile(r"[-+]?(?:\d{1,9}\.?\d{0,9}|\.\d{1,9})")  # after the last colon of a part


def parts_of(prompt: str) -> list[str]:
    """Split a prompt at AND: "a fox AND a dog" -> ["a fox", "a dog"]."""
    return [part.strip() for part in AND.split(prompt)] if AND.search(prompt) else [prompt]


def placed_parts(prompt: str) -> Iterator[tuple[int, str]]:
    """Yield (start, text) of each prompt between AND."""
    start = 0
    for joint in AND.finditer(prompt):
        yield start, prompt[start : joint.start()]
        start = joint.end()
    yield start, prompt[start:]


def weighted_parts(prompt: str) -> list[tuple[str, float]]:
    """Split a prompt at AND into (text, weight): "a fox AND a dog :0.5" -> [("a fox", 1.0), ("a dog", 0.5)]."""
    parts = []
    for part in parts_of(prompt):
        head, _, number = part.rpartition(":")
        weight_match = _WEIGHT.fullmatch(number.strip()) if ":" in part else None
        parts.append((head.rstrip(), float(weight_match[0])) if weight_match else (part, 1.0))
    return parts


def prompt_runs(text: str, read: Read = runs_of, separator: re.Pattern[str] = BREAK) -> list[Run]:
    """Split a text into runs of equal weight, with a window end at each BREAK.

    read        splits a text into (run, weight)
    separator   the pattern of BREAK
    """
    runs: list[Run] = []
    for run, weight in read(text):
        first, *others = separator.split(run)
        runs += [(first, weight)]
        for part in others:
            runs += [(WINDOW_END, 1.0), (part, weight)]
    return runs


def tokens_read(
    texts: Sequence[str], count: Callable[[str], int], runs: Read | None, max_tokens: int | None = None
) -> int:
    """Return the number of content tokens to which texts encoded together are padded: 75, 150, 225 ...

    count        counts the content tokens of a plain text
    runs         splits a text into runs of equal weight; None: brackets and weights count as text
    max_tokens   upper limit; None: no limit
    """
    tokens = WINDOW * max(len(windows_of(text, count, runs)) for text in texts)
    return min(tokens, max_tokens) if max_tokens else tokens


def windows_of(text: str, count: Callable[[str], int], runs: Read | None = prompt_runs) -> list[int]:
    """Return the number of content tokens in each window of a text: at least one window, at most 75 tokens each.

    count   counts the content tokens of a plain text
    runs    splits a text into runs of equal weight; None: brackets and weights count as text
    """
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
