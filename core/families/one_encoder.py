"""SD 1.x and 2.x: texts by one CLIP encoder, and a U-Net that reads nothing but them."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch

from core.diffusion.text_states import TextStates
from core.families.clip import Join, in_windows, join_windows, last_states
from core.families.components import Components
from core.families.token_count import WINDOW
from core.families.weighted_text import Weights, plain_ids, weigh, weighted_ids


def encode_captions(
    components: Components,
    captions: Sequence[str],
    *,
    max_token_length: int = WINDOW,
    clip_skip: int | None = None,
    join: Join = join_windows,
    weighted: bool = False,
    mean_kept: bool = False,
) -> TextStates:
    """Captions as the U-Net reads them: context [B, T, C], T = 77, 152 or 227, in the encoder's type.

    clip_skip  None or 1: the last layer; n: the n-th from the end; the final layer norm follows in every case
    join       how the states of the windows become one text
    weighted   read (more) and (exactly:1.3) as weights of the states
    mean_kept  and scale each text to the mean that it had without them
    """
    ids, weights = (weighted_ids if weighted else plain_ids)(components, captions, max_token_length, mean_kept)
    return encode_ids(components, ids, clip_skip=clip_skip, join=join, weights=weights, mean_kept=mean_kept)


def encode_ids(
    components: Components,
    ids: Sequence[torch.Tensor],
    *,
    clip_skip: int | None = None,
    join: Join = join_windows,
    weights: Weights = None,
    mean_kept: bool = False,
) -> TextStates:
    """The same of token ids [B, n, 77], one tensor for each text encoder, with their weights."""
    (encoder,), (own,) = components.text_encoders, ids
    states = in_windows(partial(last_states, encoder, clip_skip=clip_skip), own)
    return TextStates(join(weigh(states, weights, 0, mean_kept)))


def predict(
    components: Components,
    noisy_latents: torch.Tensor,
    timesteps: torch.Tensor,
    text: TextStates,
    sizes: torch.Tensor | None = None,
) -> torch.Tensor:
    """What the model makes of noisy latents: noise or v, by `components.prediction`.

    noisy_latents  [B, 4, h, w]            timesteps  int or float [B] (or one for all)
    text           of B texts              sizes      not read: these families know nothing of an image's size
    returns        [B, 4, h, w] in the U-Net's type
    """
    unet = components.denoiser
    dtype = unet.conv_in.weight.dtype
    return unet(noisy_latents.to(dtype), timesteps, encoder_hidden_states=text.context.to(dtype), return_dict=False)[0]
