"""Captions with weights: their tokens, and the weights of the states that encoders make of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from core.diffusion.text_states import TextStates
from core.families.clip import end_windows, tokenize
from core.families.components import Components
from core.families.token_count import WINDOW
from core.families.word_weights import runs_of
from core.record.queued import queued

Weights = list[torch.Tensor] | None  # [B, n, 77] for each text encoder


def weighted_windows(
    tokenizer: Any, captions: Sequence[str], max_token_length: int = WINDOW, *, filled_with_end: bool = False
) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids int64 [B, n, 77] and their weights float32 [B, n, 77]; BOS, EOS and filling weigh 1.

    Each run is cut into tokens on its own, so a word that a bracket divides is two words.
    filled_with_end   EOS is the padding, whatever the model's own is
    """
    end = tokenizer.eos_token_id
    pad = end if filled_with_end else tokenizer.pad_token_id
    ids, weights = zip(*(_one(tokenizer, caption, max_token_length, pad) for caption in captions), strict=True)
    stacked_ids, stacked_weights = torch.stack(ids), torch.stack(weights)
    if stacked_ids.shape[1] > 1 and pad != end:
        end_windows(stacked_ids, end, pad)
    return stacked_ids, stacked_weights


def read_captions(
    encode_ids: Callable[..., TextStates],
    components: Components,
    captions: Sequence[str],
    *,
    max_token_length: int = WINDOW,
    weighted: bool = False,
    mean_kept: bool = False,
    **how: Any,
) -> TextStates:
    """Captions as the denoiser reads them, by the family's own `encode_ids`, which is given `how`.

    weighted   read (more) and (exactly:1.3) as weights of the states; otherwise brackets are text
    mean_kept  and scale each encoder's states of a text to the mean that they had without them
    """
    if not weighted:
        return encode_ids(components, tokenize(components, captions, max_token_length), mean_kept=mean_kept, **how)
    both = [
        weighted_windows(tokenizer, captions, max_token_length, filled_with_end=mean_kept)
        for tokenizer in components.tokenizers
    ]
    ids, weights = [ids for ids, _ in both], [weights for _, weights in both]
    return encode_ids(components, ids, weights=weights, mean_kept=mean_kept, **how)


def weigh(states: torch.Tensor, weights: Weights, encoder: int, mean_kept: bool = False) -> torch.Tensor:
    """States [B, n, 77, C] of one encoder times their weights, as in sd-scripts 0.10.

    mean_kept   each text is then scaled to the mean that it had before, as in sd-scripts 0.9 and A1111
    """
    if weights is None:
        return states
    weighed = states * queued(weights[encoder].unsqueeze(-1), states.device).to(states.dtype)
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
