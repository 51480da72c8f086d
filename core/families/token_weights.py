"""Prompt weighting: the weight of each token, and text encoder states multiplied by it. prompt_weights.py parses the text."""

from collections.abc import Callable, Sequence
from typing import Any

import torch

from core.diffusion.text_states import TextStates
from core.families.clip import end_windows
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
    """Return (token ids int64 [B, n, 77], token weights float32 [B, n, 77]), n = max_token_length / 75 windows.

    runs              parser of a caption into [(text, weight)]
    filled_with_end   pad with EOS instead of the tokenizer's padding token
    BOS, EOS and padding have weight 1. Each run is tokenized separately, so a bracket within a word splits it into two words.
    """
    end = tokenizer.eos_token_id
    pad = end if filled_with_end else tokenizer.pad_token_id
    ids, weights = zip(
        *(_caption_windows(tokenizer, runs(caption), max_token_length, pad) for caption in captions), strict=True
    )
    stacked_ids, stacked_weights = torch.stack(ids), torch.stack(weights)
    if stacked_ids.shape[1] > 1 and pad != end:
        end_windows(stacked_ids, end, pad)
    return stacked_ids, stacked_weights


def tokenize(components: Components, captions: Sequence[str], max_token_length: int = WINDOW) -> list[torch.Tensor]:
    """Return the ids of plain captions for each tokenizer of the model: int64 [B, n, 77], n = max_token_length / 75 windows.

    Each window goes from BOS to EOS or padding (reference: training, section 1.4).
    """
    return [
        weighted_windows(tokenizer, captions, max_token_length, lambda caption: [(caption, 1.0)])[0]
        for tokenizer in components.tokenizers
    ]


def read_captions(
    encode_ids: Callable[..., TextStates],
    components: Components,
    captions: Sequence[str],
    *,
    max_token_length: int = WINDOW,
    runs: Read | None = None,
    normalize: str = "none",
    filled_with_end: bool = False,
    **options: Any,
) -> TextStates:
    """Return the text encoder states of captions, computed by `encode_ids` of the family with the arguments `options`.

    runs             parser of weights such as (more) and (exactly:1.3); None: brackets are text
    normalize        see `weigh`
    filled_with_end  see `weighted_windows`
    """
    if runs is None:
        return encode_ids(components, tokenize(components, captions, max_token_length), **options)
    windows = [
        weighted_windows(tokenizer, captions, max_token_length, runs, filled_with_end=filled_with_end)
        for tokenizer in components.tokenizers
    ]
    ids, weights = [ids for ids, _ in windows], [weights for _, weights in windows]
    return encode_ids(components, ids, weights=weights, normalize=normalize, **options)


NORMALIZE: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "original": lambda states: states.float().mean(dim=(1, 2, 3), keepdim=True),
    "abs": lambda states: states.float().abs().mean(dim=(1, 2, 3), keepdim=True),
}


def weigh(states: torch.Tensor, weights: Weights, encoder: int, normalize: str = "none") -> torch.Tensor:
    """Multiply one text encoder's states [B, n, 77, C] by their token weights; None for `weights` changes nothing.

    weights     [B, n, 77] of each text encoder
    encoder     index of the text encoder in `weights`
    normalize   how each text is scaled afterwards. "none": not, as in training with sd-scripts 0.10; "original": to its former mean, as
                in A1111, sd-scripts' generator and 0.9; "abs": to its former mean absolute value
    """
    if weights is None:
        return states
    weighed = states * queued(weights[encoder].unsqueeze(-1), states.device).to(states.dtype)
    if normalize == "none":
        return weighed
    before, after = (NORMALIZE[normalize](each) for each in (states, weighed))
    return weighed * (before / after).to(states.dtype)


def _caption_windows(tokenizer: Any, runs: list[Run], max_tokens: int, pad: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return (token ids [n, 77], weights [n, 77]) of one caption.

    max_tokens   without BOS and EOS, a multiple of 75; further tokens are cut off
    pad          id of the padding token
    """
    content: list[int] = []
    weights: list[float] = []
    ended: set[int] = set()  # windows that a BREAK ends: they end with EOS, whatever the padding
    for text, weight in runs:
        if text == WINDOW_END:
            rest = -len(content) % WINDOW
            content += [pad] * rest
            weights += [1.0] * rest
            ended.add(len(content) // WINDOW - 1)
            continue
        ids_of_run = tokenizer(text, truncation=False, verbose=False)["input_ids"][1:-1]
        content += ids_of_run
        weights += [weight] * len(ids_of_run)
    content, weights = content[:max_tokens], weights[:max_tokens]
    begin, end = tokenizer.bos_token_id, tokenizer.eos_token_id
    rest = max_tokens - len(content)
    ids = [begin, *content, end, *[pad] * rest]
    factors = [1.0, *weights, 1.0, *[1.0] * rest]
    windows = range(1, max_tokens, WINDOW)
    return (
        torch.tensor(
            [
                [ids[0], *ids[start : start + WINDOW], end if number in ended else ids[-1]]
                for number, start in enumerate(windows)
            ]
        ),
        torch.tensor([[1.0, *factors[start : start + WINDOW], 1.0] for start in windows]),
    )
