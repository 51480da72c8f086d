"""SDXL's text encoding: the concatenated states of two encoders, and the pooled vector of the second."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch

from core.diffusion.text_states import TextStates
from core.families.clip import Join, join_windows
from core.families.components import Components
from core.families.token_weights import Weights, read_captions, weigh
from core.record.queued import queued

LAYER = 2  # from the end, without the final layer norm, of both encoders


def encode_ids(
    components: Components,
    ids: Sequence[torch.Tensor],
    *,
    clip_skip: int | None = None,
    join: Join = join_windows,
    weights: Weights = None,
    normalize: str = "none",
    layer: int = LAYER,
) -> TextStates:
    """Encode token ids [B, n, 77], one tensor for each text encoder, into the U-Net's context [B, T, 768 + 1280] and pooled
    vector [B, 1280], in the encoders' dtype.

    clip_skip  ignored, as in sd-scripts      join    concatenates the states of the windows (core.families.clip)
    weights    of the tokens, for the states but not the pooled vector      layer   whose states are read, from the end
    """
    first, second = components.text_encoders
    states, _ = read_layer(first, ids[0], layer)
    more, last = read_layer(second, ids[1], layer)
    end = components.tokenizers[1].eos_token_id
    return TextStates(
        torch.cat([join(weigh(states, weights, 0, normalize)), join(weigh(more, weights, 1, normalize))], dim=-1),
        pooled(second, last[:, 0], ids[1][:, 0], end),
    )


encode_captions = partial(read_captions, encode_ids)


def read_layer(encoder: Any, ids: torch.Tensor, layer: int) -> tuple[torch.Tensor, torch.Tensor]:
    """(states of this layer, states of the last layer after the final layer norm), both [B, n, 77, C]."""
    given = encoder(queued(ids.flatten(0, 1), encoder.device), output_hidden_states=True)
    shape = (*ids.shape, -1)
    return given.hidden_states[-layer].view(shape), given.last_hidden_state.view(shape)


def pooled(encoder: Any, last: torch.Tensor, ids: torch.Tensor, end: int) -> torch.Tensor:
    """The projected state [B, P] at the first EOS of the first window.

    transformers can use the position of the highest id instead, which is wrong if tokens were added.
    last  [B, 77, C], after the final layer norm      ids  [B, 77]
    """
    ids = queued(ids, last.device)
    place = (ids == end).int().argmax(dim=-1)
    projection = encoder.text_projection
    state = last[torch.arange(len(ids), device=last.device), place]
    return projection(state.to(projection.weight.dtype)).to(last.dtype)
