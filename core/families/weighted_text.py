"""Captions with weights, in A1111's notation: (more), [less], (exactly:1.3). Rules: reference, training, section 1.5."""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import groupby
from typing import Any

import torch

from core.families.clip import end_windows, tokenize
from core.families.components import Components
from core.families.token_count import WINDOW

MORE, LESS = 1.1, 1 / 1.1
# An escaped bracket or backslash, any other backslash, an opening bracket, a number that closes, a closing one, text.
_PARTS = re.compile(r"\\[()\[\]\\]|\\|\(|\[|:([+-]?[.\d]+)\)|\)|\]|[^\\()\[\]:]+|:")

Run = tuple[str, float]
Weights = list[torch.Tensor] | None  # [B, n, 77] for each text encoder


def runs_of(text: str) -> list[Run]:
    """The text in runs of one weight, in order: "a (red:1.3) fox" -> [("a ", 1), ("red", 1.3), (" fox", 1)].

    A bracket that is left open weighs to the end; one without a partner is text. ValueError for a number with two dots.
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
            weigh(round_open.pop(), float(number))
        elif part == ")" and round_open:
            weigh(round_open.pop(), MORE)
        elif part == "]" and square_open:
            weigh(square_open.pop(), LESS)
        else:
            runs.append([part, 1.0])
    for begin in round_open:
        weigh(begin, MORE)
    for begin in square_open:
        weigh(begin, LESS)
    merged = [("".join(run[0] for run in group), weight) for weight, group in groupby(runs, key=lambda run: run[1])]
    return merged or [("", 1.0)]


def weighted_windows(
    tokenizer: Any, captions: Sequence[str], max_token_length: int = WINDOW, *, filled_with_end: bool = False
) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids int64 [B, n, 77] and their weights float32 [B, n, 77]; BOS, EOS and filling weigh 1.

    Each run is cut into tokens on its own, so a word that a bracket divides is two words.
    filled_with_end   EOS is the filling, whatever the model's own is
    """
    end = tokenizer.eos_token_id
    pad = end if filled_with_end else tokenizer.pad_token_id
    ids, weights = zip(*(_one(tokenizer, caption, max_token_length, pad) for caption in captions), strict=True)
    stacked_ids, stacked_weights = torch.stack(ids), torch.stack(weights)
    if stacked_ids.shape[1] > 1 and pad != end:
        end_windows(stacked_ids, end, pad)
    return stacked_ids, stacked_weights


def plain_ids(
    components: Components, captions: Sequence[str], max_token_length: int, mean_kept: bool = False
) -> tuple[list[torch.Tensor], Weights]:
    """Ids for each of the model's text encoders, brackets being text."""
    return tokenize(components, captions, max_token_length), None


def weighted_ids(
    components: Components, captions: Sequence[str], max_token_length: int, mean_kept: bool = False
) -> tuple[list[torch.Tensor], Weights]:
    """Ids and weights for each of the model's text encoders."""
    both = [
        weighted_windows(tokenizer, captions, max_token_length, filled_with_end=mean_kept)
        for tokenizer in components.tokenizers
    ]
    return [ids for ids, _ in both], [weights for _, weights in both]


def weigh(states: torch.Tensor, weights: Weights, encoder: int, mean_kept: bool = False) -> torch.Tensor:
    """States [B, n, 77, C] of one encoder times their weights, as in sd-scripts 0.10.

    mean_kept   each text is then scaled to the mean that it had before, as in sd-scripts 0.9 and A1111
    """
    if weights is None:
        return states
    weighed = states * weights[encoder].unsqueeze(-1).to(states)
    if not mean_kept:
        return weighed
    before, after = (each.float().mean(dim=(1, 2, 3), keepdim=True) for each in (states, weighed))
    return weighed * (before / after).to(states.dtype)


def _one(tokenizer: Any, caption: str, most: int, pad: int) -> tuple[torch.Tensor, torch.Tensor]:
    content: list[int] = []
    weights: list[float] = []
    for text, weight in runs_of(caption):
        own = tokenizer(text, truncation=False, verbose=False)["input_ids"][1:-1]
        content += own
        weights += [weight] * len(own)
    content, weights = content[:most], weights[:most]
    begin, end = tokenizer.bos_token_id, tokenizer.eos_token_id
    rest = most - len(content)
    ids = [begin, *content, end, *[pad] * rest]
    factors = [1.0, *weights, 1.0, *[1.0] * rest]
    windows = range(1, most, WINDOW)
    return (
        torch.tensor([[ids[0], *ids[start : start + WINDOW], ids[-1]] for start in windows]),
        torch.tensor([[1.0, *factors[start : start + WINDOW], 1.0] for start in windows]),
    )
