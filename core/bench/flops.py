"""The arithmetic of one training step, counted on a model without weights."""

from __future__ import annotations

from core.settings.network import NetworkSettings


def step_flops(width: int, height: int, batch: int, network: NetworkSettings) -> int:
    """FLOPs of a forward and backward pass of SD 1.5 with this LoRA, multiply and add counted as two."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    from core.bench.random_model import empty_sd15
    from core.families.clip import last_states
    from core.families.sd1 import FAMILY as sd1
    from core.networks.network import Network

    unet, text_encoder = empty_sd15()
    targets = [*sd1.lora_targets(text_encoder), *sd1.lora_targets(unet, conv=network.conv_rank is not None)]
    lora = Network.create(targets, network, seed=0)
    lora.attach()
    latents = torch.empty(batch, 4, height // 8, width // 8, device="meta")
    ids = torch.zeros(batch, 77, dtype=torch.long, device="meta")
    with FlopCounterMode(display=False) as counter:
        if network.train_text_encoder:
            text = last_states(text_encoder, ids)
        else:
            text = torch.empty(batch, 77, 768, device="meta")
        out = unet(latents, torch.zeros(batch, device="meta"), encoder_hidden_states=text, return_dict=False)[0]
        out.sum().backward()
    return int(counter.get_total_flops())
