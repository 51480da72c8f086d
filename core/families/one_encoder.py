"""SD 1.x and 2.x: one CLIP text encoder, and a U-Net without size conditioning."""

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
    """Encode token ids [B, n, 77] into the U-Net's context [B, T, C], T = 77, 152 or 227, in the encoder's dtype.

    clip_skip  None or 1: the last layer; n: the n-th from the end; always followed by the final layer norm
    join       concatenates the states of the windows (core.families.clip)
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
    """The U-Net's prediction for noisy latents: noise or v, by `components.prediction`.

    noisy_latents  [B, 4, h, w]            timesteps  int or float [B], or one for all
    given          text encoder states and added residuals; these families have no size conditioning
    returns        [B, 4, h, w] in the U-Net's dtype
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
    """The U-Net's down blocks, as Deep Shrink numbers them."""
    return list(unet.down_blocks)
