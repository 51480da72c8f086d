"""Captions with weights: their tokens, and the weights of the states that encoders make of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from core.diffusion.text_states import TextStates
from core.families.clip import end_windows, tokenize
from core.families.components import Components
from core.families.prompt_weights import WINDOW_END, Read, Run, runs_of
from core.families.token_count import WINDOW
from core.record.queued import queued

Weights = list[torch.Tensor] | None  # [B, n, 77] for each text encoder


def weighted_windows(
    tokenizer: Any,
    captions: Sequence[str],
    max_token_length: int = WINDOW,
    runs: Read = runs_of,
    *,
    filled_with_end: bool = False,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids int64 [B, n, 77] and their weights float32 [B, n, 77]; BOS, EOS and filling weigh 1.

    Each run is cut into tokens on its own, so a word that a bracket divides is two words.
    filled_with_end   EOS is the padding, whatever the model's own is
    """
    end = tokenizer.eos_token_id
    pad = end if filled_with_end else tokenizer.pad_token_id
    ids, weights = zip(*(_one(tokenizer, runs(caption), max_token_length, pad) for caption in captions), strict=True)
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
    runs: Read | None = None,
    normalize: str = "none",
    filled_with_end: bool = False,
    **how: Any,
) -> TextStates:
    """Captions as the denoiser reads them, by the family's own `encode_ids`, which is given `how`.

    runs             reads (more) and (exactly:1.3) as weights of the states; None: brackets are text
    normalize        see `weigh`
    filled_with_end  see `weighted_windows`
    """
    if runs is None:
        return encode_ids(components, tokenize(components, captions, max_token_length), **how)
    both = [
        weighted_windows(tokenizer, captions, max_token_length, runs, filled_with_end=filled_with_end)
        for tokenizer in components.tokenizers
    ]
    ids, weights = [ids for ids, _ in both], [weights for _, weights in both]
    return encode_ids(components, ids, weights=weights, normalize=normalize, **how)


NORMALIZE: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "original": lambda states: states.float().mean(dim=(1, 2, 3), keepdim=True),
    "abs": lambda states: states.float().abs().mean(dim=(1, 2, 3), keepdim=True),
}


def weigh(states: torch.Tensor, weights: Weights, encoder: int, normalize: str = "none") -> torch.Tensor:
    """States [B, n, 77, C] of one encoder times their weights.

    normalize   "none": as they are, as sd-scripts 0.10 trains. "original": each text is scaled to the mean that it had
                before, as in A1111, sd-scripts' generator and 0.9; that mean is signed. "abs": to the mean size
    """
    if weights is None:
        return states
    weighed = states * queued(weights[encoder].unsqueeze(-1), states.device).to(states.dtype)
    if normalize == "none":
        return weighed
    before, after = (NORMALIZE[normalize](each) for each in (states, weighed))
    return weighed * (before / after).to(states.dtype)


def _one(tokenizer: Any, runs: list[Run], most: int, pad: int) -> tuple[torch.Tensor, torch.Tensor]:
    content: list[int] = []
    weights: list[float] = []
    ended: set[int] = set()  # windows that a BREAK ends: theirs ends with EOS, whatever fills it
    for text, weight in runs:
        if text == WINDOW_END:
            rest = -len(content) % WINDOW
            content += [pad] * rest
            weights += [1.0] * rest
            ended.add(len(content) // WINDOW - 1)
            continue
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
        torch.tensor(
            [
                [ids[0], *ids[start : start + WINDOW], end if number in ended else ids[-1]]
                for number, start in enumerate(windows)
            ]
        ),
        torch.tensor([[1.0, *factors[start : start + WINDOW], 1.0] for start in windows]),
    )
