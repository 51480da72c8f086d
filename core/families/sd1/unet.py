"""The U-Net as training and samplers call it."""

from __future__ import annotations

from typing import Any

import torch


def predict(
    components: Any, noisy_latents: torch.Tensor, timesteps: torch.Tensor, text_states: torch.Tensor
) -> torch.Tensor:
    """What the model makes of noisy latents: noise or v, by `components.prediction`.

    noisy_latents  [B, 4, h, w]            timesteps  int or float [B] (or one for all)
    text_states    [B, T, C]               returns    [B, 4, h, w] in the U-Net's type
    """
    unet = components.unet
    dtype = unet.conv_in.weight.dtype
    return unet(noisy_latents.to(dtype), timesteps, encoder_hidden_states=text_states.to(dtype), return_dict=False)[0]
