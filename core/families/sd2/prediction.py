"""Whether an SD 2 model predicts noise or v: its files do not say, but the U-Net itself does."""

from __future__ import annotations

from typing import Any

import torch


@torch.no_grad()
def prediction_of(unet: Any) -> str:
    """ "epsilon" or "v", by one pass on a made-up image of almost pure noise (A1111's test).

    There x_t is the noise, so a model of noise gives it back; one of v gives about -x0, far below it.
    """
    weight = unet.conv_in.weight
    if weight.is_meta:
        return "epsilon"
    x = torch.full((1, weight.shape[1], 8, 8), 0.5, dtype=weight.dtype, device=weight.device)
    context = torch.full((1, 2, unet.config.cross_attention_dim), 0.5, dtype=weight.dtype, device=weight.device)
    timestep = torch.tensor([999], device=weight.device)
    given = unet(x, timestep, encoder_hidden_states=context, return_dict=False)[0]
    return "v" if float((given.float() - x.float()).mean()) < -1 else "epsilon"
