"""Stable Diffusion 2.x: as 1.x, but with OpenCLIP ViT-H, of which the second last layer is read; epsilon or v prediction."""

from dataclasses import replace
from typing import Any

import torch

from core.families import sd1
from core.families.layouts import LAYOUTS


@torch.no_grad()
def prediction_of(unet: Any) -> str:
    """Return "epsilon" or "v", detected by one pass on a synthetic image of almost pure noise (A1111's test).

    There x_t is the noise: an epsilon model returns it, a v model returns about -x0, far below it. Inpainting models, whose input has more
    channels, all predict epsilon.
    """
    weight = unet.conv_in.weight
    if weight.is_meta or weight.shape[1] != unet.config.out_channels:
        return "epsilon"
    x = torch.full((1, weight.shape[1], 8, 8), 0.5, dtype=weight.dtype, device=weight.device)
    context = torch.full((1, 2, unet.config.cross_attention_dim), 0.5, dtype=weight.dtype, device=weight.device)
    timestep = torch.tensor([999], device=weight.device)
    output = unet(x, timestep, encoder_hidden_states=context, return_dict=False)[0]
    return "v" if float((output.float() - x.float()).mean()) < -1 else "epsilon"


FAMILY = replace(sd1.FAMILY, layout=LAYOUTS["sd2"])
