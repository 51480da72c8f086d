"""Stable Diffusion 1.x: U-Net, VAE and CLIP-L; epsilon prediction unless a file states v. SD 2.x uses its functions."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch

from core.diffusion.text_states import Conditioning, TextStates
from core.families.base import Family
from core.families.clip import Join, in_windows, join_windows, last_states
from core.families.components import Components
from core.families.layouts import LAYOUTS
from core.families.targets import one_encoder_targets
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
    """Encode token ids into the U-Net's context [B, T, C], T = 77, 152 or 227, in the encoder's dtype.

    ids        one tensor [B, n, 77]
    clip_skip  None or 1: the last layer; n: the n-th from the end; always followed by the final layer norm
    join       concatenates the states of the windows (core.families.clip)
    weights, normalize   token weights: see core.families.token_weights.weigh
    """
    (encoder,), (encoder_ids,) = components.text_encoders, ids
    states = in_windows(partial(last_states, encoder, clip_skip=clip_skip), encoder_ids)
    return TextStates(join(weigh(states, weights, 0, normalize)))


def predict(
    components: Components,
    noisy_latents: torch.Tensor,
    timesteps: torch.Tensor,
    conditioning: Conditioning,
    **inputs: Any,
) -> torch.Tensor:
    """Return the U-Net's prediction for noisy latents: noise or v, by `components.prediction`.

    noisy_latents  [B, 4, h, w]
    timesteps      int or float [B], or one for all
    conditioning   text encoder states and added residuals; sizes are not used
    inputs         further arguments of the U-Net
    returns        [B, 4, h, w] in the U-Net's dtype
    """
    unet = components.denoiser
    dtype = unet.conv_in.weight.dtype
    return unet(
        noisy_latents.to(dtype),
        timesteps,
        encoder_hidden_states=conditioning.texts.context.to(dtype),
        return_dict=False,
        **inputs,
        **conditioning.added,
    )[0]


FAMILY = Family(
    LAYOUTS["sd1"],
    encode_captions=partial(read_captions, encode_ids),
    encode_ids=encode_ids,
    predict=predict,
    lora_targets=one_encoder_targets,
    input_blocks=lambda unet: list(unet.down_blocks),
)
