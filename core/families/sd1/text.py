"""Captions -> token ids -> states that the U-Net reads, in windows of 75 tokens as sd-scripts joins them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from core.families.sd1.components import Components

WINDOW = 75  # content tokens of one pass through CLIP, between BOS and EOS


def _tokenizer(source: Any) -> Any:
    return source.tokenizer if isinstance(source, Components) else source


def _text_encoder(source: Any) -> Any:
    return source.text_encoder if isinstance(source, Components) else source


def count_tokens(tokenizer: Any, caption: str) -> int:
    """Content tokens of a caption, without BOS and EOS. One window holds 75."""
    return len(_tokenizer(tokenizer)(caption, truncation=False, verbose=False)["input_ids"]) - 2


def tokenize(tokenizer: Any, captions: Sequence[str], max_token_length: int = 75) -> torch.Tensor:
    """Token ids, padded with EOS and cut at the length.

    tokenizer         CLIPTokenizer, or Components
    max_token_length  75, 150 or 225 content tokens
    returns           int64 [B, n, 77], n = max_token_length / 75 windows, each from BOS to EOS or padding
    """
    count, rest = divmod(max_token_length, WINDOW)
    assert count >= 1 and rest == 0, f"max_token_length is {max_token_length}"
    found = _tokenizer(tokenizer)(
        list(captions), padding="max_length", truncation=True, max_length=max_token_length + 2
    )
    ids = torch.tensor(found["input_ids"], dtype=torch.int64).view(len(captions), max_token_length + 2)
    windows = [
        torch.cat([ids[:, :1], ids[:, start : start + WINDOW], ids[:, -1:]], dim=1)
        for start in range(1, max_token_length, WINDOW)
    ]
    return torch.stack(windows, dim=1)


def encode_text(text_encoder: Any, ids: torch.Tensor, *, clip_skip: int | None = None) -> torch.Tensor:
    """States of the text encoder: each window on its own, then joined as one text.

    text_encoder  CLIPTextModel, or Components; gradients flow unless the caller turns them off
    ids           int64 [B, n, 77]
    clip_skip     None or 1: the last layer; n: the n-th from the end. The final layer norm follows in every case
    returns       [B, T, C], T = 77, 152 or 227, in the encoder's type
    """
    encoder = _text_encoder(text_encoder)
    batch, count, length = ids.shape
    flat = ids.reshape(batch * count, length).to(encoder.device)
    if clip_skip is None or clip_skip == 1:
        states = encoder(flat).last_hidden_state
    else:
        hidden = encoder(flat, output_hidden_states=True).hidden_states
        states = encoder.final_layer_norm(hidden[-clip_skip])
    return _join_windows(states.view(batch, count * length, -1), length)


def _join_windows(states: torch.Tensor, length: int) -> torch.Tensor:
    """BOS of the first window, 75 contents of each, the last state of the last. [B, n*77, C] -> [B, n*75+2, C]."""
    if states.shape[1] == length:
        return states
    contents = [states[:, start : start + WINDOW] for start in range(1, states.shape[1], length)]
    return torch.cat([states[:, :1], *contents, states[:, -1:]], dim=1)
