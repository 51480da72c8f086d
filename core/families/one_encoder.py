"""SD 1.x and 2.x: texts by one CLIP encoder, and a U-Net that reads nothing but them."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch

from core.diffusion.text_states import Conditioning, TextStates
from core.families.clip import Join, in_windows, join_windows, last_states
from core.families.components import Components
from core.families.token_weights import Weights, read_captions, weigh


def encode_ids(
    components: Components,
    ids: Sequence[torch.Tensor],
    *,
    clip_skip: int | None = None,
    join: Join = join_windows,
    weights: Weights = None,
    normalize: str = "none",
) -> TextStates:
    """Token ids [B, n, 77] of one text encoder as the U-Net reads them: context [B, T, C], T = 77, 152 or 227, in the
    encoder's type.

    clip_skip  None or 1: the last layer; n: the n-th from the end; the final layer norm follows in every case
    join       how the states of the windows become one text
    """
    (encoder,), (own,) = components.text_encoders, ids
    states = in_windows(partial(last_states, encoder, clip_skip=clip_skip), own)
    return TextStates(join(weigh(states, weights, 0, normalize)))


encode_captions = partial(read_captions, encode_ids)


def predict(
    components: Components,
    noisy_latents: torch.Tensor,
    timesteps: torch.Tensor,
    given: Conditioning,
) -> torch.Tensor:
    """What the model makes of noisy latents: noise or v, by `components.prediction`.

    noisy_latents  [B, 4, h, w]            timesteps  int or float [B] (or one for all)
    given          its texts, and what is added; these families know nothing of an image's size
    returns        [B, 4, h, w] in the U-Net's type
    """
    unet = components.denoiser
    dtype = unet.conv_in.weight.dtype
    return unet(
        noisy_latents.to(dtype),
        timesteps,
        encoder_hidden_states=given.texts.context.to(dtype),
        return_dict=False,
        **given.added,
    )[0]


def input_blocks(unet: Any) -> list[Any]:
    """The blocks of the way down: Deep Shrink counts these."""
    return list(unet.down_blocks)
