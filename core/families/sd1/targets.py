"""Which layers a LoRA hooks, and what kohya tools, A1111 and ComfyUI call them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from torch import nn

from core.formats.text_keys import full_name

UNET_PREFIX = "lora_unet"
TEXT_PREFIXES = ["lora_te"]

# Every Linear and convolution inside modules of these classes is hooked. Names of classes as sd-scripts lists them.
UNET_CLASSES = ("Transformer2DModel",)
UNET_CONV_CLASSES = ("ResnetBlock2D", "Downsample2D", "Upsample2D")
TEXT_CLASSES = ("CLIPAttention", "CLIPSdpaAttention", "CLIPMLP")


@dataclass(frozen=True)
class Target:
    """One layer. `parent` holds it under `attribute`; `path` is its dotted path in the part."""

    name: str
    path: str
    parent: nn.Module
    attribute: str
    module: nn.Module

    @property
    def is_wide_convolution(self) -> bool:
        """3x3: these have a rank of their own (conv_rank)."""
        return isinstance(self.module, nn.Conv2d) and self.module.kernel_size != (1, 1)


def module_name(prefix: str, path: str) -> str:
    """kohya's name: `lora_unet`, `mid_block.attentions.0.proj_in` -> `lora_unet_mid_block_attentions_0_proj_in`."""
    path = path if prefix == UNET_PREFIX else full_name(path)
    return f"{prefix}_{path}".replace(".", "_")


def lora_targets(part: nn.Module, *, conv: bool = False) -> Iterator[Target]:
    """The layers of a U-Net or CLIP text model, in the order of the model.

    conv  also the U-Net's resnets and samplers (C3Lier): their 3x3 convolutions, and the Linear and 1x1 layers in them
    """
    if type(part).__name__.startswith("CLIPTextModel"):
        prefix, classes = TEXT_PREFIXES[0], set(TEXT_CLASSES)
    else:
        prefix, classes = UNET_PREFIX, {*UNET_CLASSES, *(UNET_CONV_CLASSES if conv else ())}
    for root, container in part.named_modules():
        if type(container).__name__ not in classes:
            continue
        for inner, module in container.named_modules():
            if not isinstance(module, (nn.Linear, nn.Conv2d)):
                continue
            path = f"{root}.{inner}"
            if isinstance(module, nn.Conv2d) and module.kernel_size != (1, 1) and not conv:
                continue
            parent_path, _, attribute = path.rpartition(".")
            yield Target(module_name(prefix, path), path, part.get_submodule(parent_path), attribute, module)
