"""SDXL's U-Net as training and samplers call it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from core.diffusion.text_states import Conditioning
from core.families.components import Components
from core.families.targets import Target, is_text_encoder, text_targets, unet_targets
from core.formats.models.sd_keys import unet_to_ldm


def predict(
    components: Components,
    noisy_latents: torch.Tensor,
    timesteps: torch.Tensor,
    given: Conditioning,
) -> torch.Tensor:
    """The U-Net's prediction for noisy latents: noise or v, by `components.prediction`.

    noisy_latents  [B, 4, h, w]            timesteps  int or float [B], or one for all
    given          text encoder states with pooled vectors, size conditioning, and added residuals
    returns        [B, 4, h, w] in the U-Net's dtype

    The U-Net embeds each size as 256 cosines and sines in fp32 and appends them to the pooled vector.
    """
    text, sizes = given.texts, given.sizes
    assert text.pooled is not None and sizes is not None, "SDXL reads pooled texts and sizes"
    unet = components.denoiser
    dtype = unet.conv_in.weight.dtype
    return unet(
        noisy_latents.to(dtype),
        timesteps,
        encoder_hidden_states=text.context.to(dtype),
        added_cond_kwargs={"text_embeds": text.pooled.to(dtype), "time_ids": sizes.float()},
        return_dict=False,
        **given.added,
    )[0]


def lora_targets(part: nn.Module, *, conv: bool = False) -> Iterator[Target]:
    """The layers of the U-Net or of a text encoder (the second is the one with a projection). conv: also those in the U-Net's
    resnets and up/downsamplers (C3Lier)"""
    if is_text_encoder(part):
        return text_targets(part, "lora_te2" if hasattr(part, "text_projection") else "lora_te1")
    return unet_targets(part, conv=conv, name=lambda path: unet_to_ldm(path, "sdxl"))


def input_blocks(unet: Any) -> list[nn.Module]:
    """The U-Net's input blocks, numbered as in the original model: the first convolution, then each layer and downsampler."""
    found = [unet.conv_in]
    for block in unet.down_blocks:
        found += [*block.resnets, *(block.downsamplers or [])]
    return found
