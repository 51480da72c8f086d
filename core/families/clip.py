"""Encodes token ids with a CLIP text encoder, in windows of 75 tokens.

A long text is split into windows, which the encoder reads one by one; `join_windows` or `join_whole` concatenates their states.
"""

from collections.abc import Callable
from typing import Any

from core.families.components import Components
from core.families.token_count import WINDOW
from core.record.lazy_torch import Tensor, torch
from core.record.queued import queued

Join = Callable[[Tensor], Tensor]  # [B, n, 77, C] -> [B, T, C]


def count_tokens(components: Components, caption: str) -> int:
    """Return the number of a caption's tokens without BOS and EOS. All tokenizers of a model count the same."""
    return len(components.tokenizers[0](caption, truncation=False, verbose=False)["input_ids"]) - 2


def end_windows(ids: Tensor, end: int, pad: int) -> None:
    """End full windows with EOS and start empty ones with it, in place; for tokenizers whose padding is not EOS.

    ids        int64 [..., 77]
    end, pad   ids of EOS and padding
    """
    full = (ids[..., -2] != end) & (ids[..., -2] != pad)
    ids[..., -1] = torch.where(full, end, ids[..., -1])
    ids[..., 1] = torch.where(ids[..., 1] == pad, end, ids[..., 1])


def in_windows(read: Callable[[Tensor], Tensor], ids: Tensor) -> Tensor:
    """Apply `read` ([N, 77] -> [N, ...]) to all windows of ids [B, n, 77] at once; return [B, n, ...]."""
    states = read(ids.flatten(0, 1))
    return states.view(*ids.shape[:2], *states.shape[1:])


def last_states(encoder: Any, ids: Tensor, clip_skip: int | None = None) -> Tensor:
    """Return the hidden states that SD 1 and 2 read, always after the final layer norm.

    ids        [N, 77]
    clip_skip  None or 1: the last layer; n: the n-th from the end
    returns    [N, 77, C] in the encoder's dtype, with gradients
    """
    ids = queued(ids, encoder.device)
    if clip_skip is None or clip_skip == 1:
        return encoder(ids).last_hidden_state
    return encoder.final_layer_norm(encoder(ids, output_hidden_states=True).hidden_states[-clip_skip])


def join_windows(states: Tensor) -> Tensor:
    """Concatenate windows as sd-scripts does in training: BOS of the first, 75 tokens of each, EOS of the last.

    [B, n, 77, C] -> [B, 75 n + 2, C]
    """
    first, contents, last = states[:, 0, :1], states[:, :, 1 : 1 + WINDOW].flatten(1, 2), states[:, -1, -1:]
    return torch.cat([first, contents, last], dim=1)


def join_whole(states: Tensor) -> Tensor:
    """Concatenate whole windows, each with BOS and EOS, as A1111, ComfyUI and sd-scripts do when sampling.

    [B, n, 77, C] -> [B, 77 n, C]
    """
    return states.flatten(1, 2)
