"""SDXL's layers under the names of LoRA files: the original blocks of the U-Net, `lora_te1` and `lora_te2`."""

from __future__ import annotations

from collections.abc import Iterator

from torch import nn

from core.families.targets import Target, is_text_encoder, text_targets, unet_targets
from core.formats.sd_keys import unet_to_ldm


def lora_targets(part: nn.Module, *, conv: bool = False) -> Iterator[Target]:
    """The layers of the U-Net or of one of the text encoders (the second is the one with a projection).

    conv  also the U-Net's resnets and samplers (C3Lier)
    """
    if is_text_encoder(part):
        return text_targets(part, "lora_te2" if hasattr(part, "text_projection") else "lora_te1")
    return unet_targets(part, conv=conv, name=lambda path: unet_to_ldm(path, "sdxl"))
