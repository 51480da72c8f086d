"""Lists the layers of a model that a network can change, by names and shapes in its header: without torch, for the page.

`core.networks.layers` finds the same layers in built modules; a test compares both.
"""

import re
from collections.abc import Mapping, Sequence
from math import prod
from typing import NamedTuple

from core.families.layouts import layout_of
from core.formats.lora.names import kohya_name
from core.formats.models.checkpoint import Part
from core.formats.models.text_keys import full_name
from core.networks.block_weights import SLOTS, slot_of
from core.settings.layers import OUTER, Layer

TEXT_ENCODERS = {"lora_te": "Text encoder", "lora_te1": "Text encoder 1", "lora_te2": "Text encoder 2"}
OUTSIDE = "Outside of the blocks"
CONTAINER = re.compile(r"(?:^|\.)(attentions|resnets|downsamplers|upsamplers)\.\d+")
TEXT_LAYER = re.compile(r"\.(self_attn|mlp)\.")
Shapes = Mapping[str, Sequence[int]]  # of a part's tensors by diffusers' names


class ListedLayer(NamedTuple):
    """A layer, the title of its block (`block_title`) and the number of parameters of its weight."""

    layer: Layer
    block: str
    parameters: int


def block_title(name: str) -> str:
    """Return the title of a layer's text encoder or block: "Text encoder 1", "IN01", "MID", "OUT11" or OUTSIDE.
    name: kohya's"""
    prefix = name.split("_text_model_")[0]
    if prefix in TEXT_ENCODERS:
        return TEXT_ENCODERS[prefix]
    slot = slot_of(name)
    return OUTSIDE if slot is None else SLOTS[slot]


def listed_layers(family: str, parts: Mapping[str, Shapes]) -> list[ListedLayer]:
    """List the layers of a Stable Diffusion model, text encoders first, then by block from the input on.
    parts: {"unet", "text_encoder" ...: {diffusers' tensor name: shape}}"""
    layers = [
        ListedLayer(layer, OUTSIDE if layer.outer else block_title(layer.name), prod(shape))
        for part in sorted(parts)
        for name, shape in parts[part].items()
        if (layer := _layer(family, part, name, shape)) is not None
    ]
    order = {title: n for n, title in enumerate([*TEXT_ENCODERS.values(), *SLOTS, OUTSIDE])}
    return sorted(layers, key=lambda each: order[each.block])


def layers_of(family: str, parts: Mapping[str, Part]) -> list[ListedLayer]:
    """List the layers of an opened model as `listed_layers`, from the tensors that loading it uses."""
    used = {name: layout_of(family).used(part) for name, part in parts.items()}
    locations = {name: part.locations.items() for name, part in used.items()}
    return listed_layers(
        family, {name: {key: location.entry.shape for key, location in each} for name, each in locations.items()}
    )


def _layer(family: str, part: str, name: str, shape: Sequence[int]) -> Layer | None:
    """Return the layer of a tensor by its name and shape; None if no network changes it."""
    path = name.removesuffix(".weight")
    if path == name or len(shape) < 2:
        return None
    if part.startswith("text_encoder") and TEXT_LAYER.search(path):
        return Layer(kohya_name(part, path, family) or path, full_name(path), unet=False, large_kernel=False)
    container = CONTAINER.search(path) if part == "unet" else None
    large = len(shape) == 4 and tuple(shape[2:]) != (1, 1)
    outer = part == "unet" and path in OUTER
    if container is None and not outer:
        return None
    residual = large or (container is not None and container[1] != "attentions")
    return Layer(kohya_name(part, path, family) or path, path, True, large, residual, outer)
