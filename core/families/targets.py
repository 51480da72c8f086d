"""The layers that a LoRA can train, and their names in the files of kohya's tools, A1111 and ComfyUI."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from core.formats.lora import names
from core.formats.models.text_keys import full_name
from core.record.lazy_torch import nn
from core.settings.layers import OUTER

UNET_PREFIX = "lora_unet"

# Every Linear and convolution inside modules of these classes is hooked. Names of classes as sd-scripts lists them.
UNET_CLASSES = ("Transformer2DModel",)
UNET_CONV_CLASSES = ("ResnetBlock2D", "Downsample2D", "Upsample2D")
TEXT_CLASSES = ("CLIPAttention", "CLIPSdpaAttention", "CLIPMLP")


@dataclass(frozen=True)
class Target:
    """A layer that a network can train.

    name     kohya's layer name in files
    path     dotted path in its part
    parent, attribute   `module` is `parent.attribute`
    """

    name: str
    path: str
    parent: nn.Module
    attribute: str
    module: nn.Module


def is_text_encoder(part: nn.Module) -> bool:
    """Return whether a loaded part is a CLIP text encoder, by its class."""
    return type(part).__name__.startswith("CLIPTextModel")


def text_targets(encoder: nn.Module, prefix: str) -> Iterator[Target]:
    """Yield the layers of a CLIP text encoder. Their names always contain `text_model`, whatever the class of the module.
    prefix: "lora_te", "lora_te1" ..."""
    return _targets(encoder, set(TEXT_CLASSES), lambda path: underscored(prefix, full_name(path)), conv=False)


def unet_targets(unet: nn.Module, *, conv: bool = False, name: Callable[[str], str] = str) -> Iterator[Target]:
    """Yield the layers in a U-Net's attention blocks, in order.

    conv  also those in residual and resampling blocks (C3Lier), which include all 3x3 convolutions
    name  (diffusers' path of a module) -> its path in files
    """
    classes = {*UNET_CLASSES, *(UNET_CONV_CLASSES if conv else ())}
    return _targets(unet, classes, lambda path: underscored(UNET_PREFIX, name(path)), conv=conv)


def outer_targets(unet: nn.Module, family: str) -> Iterator[Target]:
    """Yield the layers outside of a U-Net's blocks, which train only if the settings choose them; none for other denoisers."""
    name = _block_naming(family)
    modules = dict(unet.named_modules()) if type(unet).__name__ == "UNet2DConditionModel" else {}
    for path in OUTER:
        parent, _, attribute = path.rpartition(".")
        if path in modules:
            yield Target(name(path), path, modules[parent], attribute, modules[path])


def norm_targets(unet: nn.Module, family: str) -> Iterator[Target]:
    """Yield the norm layers in a U-Net's blocks, which LyCORIS' train_norm trains; none for other denoisers."""
    classes = {*UNET_CLASSES, *UNET_CONV_CLASSES}
    for target in _targets(unet, classes, _block_naming(family), conv=False, norms=True):
        if target.module.weight is not None:
            yield target


def _block_naming(family: str) -> Callable[[str], str]:
    """Return the function (module path in the U-Net) -> kohya's layer name, as the layers in the family's blocks are named."""
    naming = "sdxl" if family.startswith("sdxl") else family  # the refiner's too
    return lambda path: str(names.kohya_name("unet", path, naming))


def is_norm(module: nn.Module) -> bool:
    """Return whether a module is a LayerNorm or GroupNorm."""
    return isinstance(module, (nn.LayerNorm, nn.GroupNorm))


def underscored(prefix: str, path: str) -> str:
    """Join a prefix and a dotted path to a kohya name: "lora_unet", "mid_block.proj_in" -> `lora_unet_mid_block_proj_in`."""
    return f"{prefix}_{path}".replace(".", "_")


def _targets(
    part: nn.Module, classes: set[str], name: Callable[[str], str], *, conv: bool, norms: bool = False
) -> Iterator[Target]:
    """Yield the layers inside the containers of a part, in order.

    classes  class names of the containers
    name     (path of a module) -> its name in files
    conv     also convolutions larger than 1x1
    norms    norm layers instead of Linear layers and convolutions
    """
    for root, container in part.named_modules():
        if type(container).__name__ not in classes:
            continue
        for inner, module in container.named_modules():
            if not (is_norm(module) if norms else isinstance(module, (nn.Linear, nn.Conv2d))):
                continue
            path = f"{root}.{inner}"
            if isinstance(module, nn.Conv2d) and module.kernel_size != (1, 1) and not conv:
                continue
            parent_path, _, attribute = path.rpartition(".")
            yield Target(name(path), path, part.get_submodule(parent_path), attribute, module)


def one_encoder_targets(part: nn.Module, *, conv: bool = False) -> Iterator[Target]:
    """Yield the layers of the U-Net or text encoder of SD 1.x and 2.x, named by diffusers' paths.
    conv: as in `unet_targets`"""
    return text_targets(part, "lora_te") if is_text_encoder(part) else unet_targets(part, conv=conv)
