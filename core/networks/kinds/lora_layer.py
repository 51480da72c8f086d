"""A layer of a LoRA file. Without torch.

<name>.lora_down.weight [r, in(, kh, kw)]    <name>.lora_up.weight [out, r(, 1, 1)]    <name>.alpha, a number
weight change = (alpha / r) * up @ down; a missing alpha means alpha = r
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from math import prod
from typing import TYPE_CHECKING, Any

from core import extensions
from core.formats.lora.names import group_by_module
from core.networks.kinds import NetworkKind, register
from core.networks.kinds.keys import is_number
from core.record.bounded_json import json_or_none
from core.settings.blocks import BlockSize

if TYPE_CHECKING:
    from torch import Tensor

    from core.families.targets import Target
    from core.networks.adapter import Adapter

DOWN, UP, ALPHA = "lora_down.weight", "lora_up.weight", "alpha"
MODULE = "networks.lora"
_fit_shapes = extensions.later("core.networks.kinds.lora_adapter", "fit_shapes")


def size(tensors: Mapping[str, Tensor]) -> BlockSize:
    """Rank and alpha of a layer in a file; without an alpha it equals the rank."""
    rank = tensors[DOWN].shape[0]
    return BlockSize(rank, float(tensors[ALPHA]) if ALPHA in tensors else float(rank))


def flaw(name: str, tensors: Mapping[str, Tensor]) -> str:
    """What is wrong with a layer of a file."""
    if ALPHA in tensors and not is_number(tensors[ALPHA]):
        return f"{name}.{ALPHA} is not a number"
    for key, other in ((DOWN, UP), (UP, DOWN)):
        if key not in tensors:
            continue
        value = tensors[key]
        if other not in tensors:
            return f"{name} has {key} but no {other}"
        if value.ndim not in (2, 4) or not value.is_floating_point() or not value.numel():
            return f"{name}.{key} has an invalid shape"
    if DOWN in tensors and tensors[UP].shape[1] != tensors[DOWN].shape[0]:
        return f"{name} has a {DOWN} of rank {tensors[DOWN].shape[0]} but a {UP} of another rank"
    return ""


def to_peft(tensors: Mapping[str, Tensor], dtype: Any) -> dict[str, Tensor]:
    """The matrices with PEFT's names, with alpha / rank multiplied into B: every layer's alpha is then its rank."""
    found = size(tensors)
    up = (tensors[UP].double() * (found.alpha / found.rank)).to(dtype).contiguous()
    return {"lora_A.weight": tensors[DOWN].to(dtype).contiguous(), "lora_B.weight": up}


def register_lora(made: Callable[[Target, Tensor, Tensor, float], Adapter], **given: Any) -> None:
    """Register a kind whose files are LoRA's. made: (layer, down, up, alpha) -> its adapter; given: further fields of NetworkKind."""

    def from_tensors(target: Target, tensors: Mapping[str, Tensor]) -> Adapter | None:
        shaped = _fit_shapes(tensors[DOWN], tensors[UP], target.module)
        return made(target, shaped[0], shaped[1], size(tensors).alpha) if shaped is not None else None

    register(
        NetworkKind(
            forms=((DOWN, UP),),
            optional=(ALPHA,),
            input_keys=(DOWN,),
            from_tensors=from_tensors,
            size=size,
            flaw=flaw,
            weight_shape=lambda tensors: (tensors[UP].shape[0], *tensors[DOWN].shape[1:]),
            idle=lambda tensors: not tensors[UP].any(),
            to_peft=to_peft,
            misread=(),
            **given,
        )
    )


def sizes_as_metadata(tensors: Mapping[str, Tensor], args: str = "") -> dict[str, str]:
    """ss_network_module, ss_network_dim, ss_network_alpha and ss_network_args of these LoRA tensors: "Dynamic" where layers
    differ; 3x3 convolutions have conv_dim and conv_alpha. args: those that the file had."""
    sizes: dict[bool, set[tuple[int, float]]] = {False: set(), True: set()}
    for layer in group_by_module(tensors).values():
        if DOWN not in layer:  # a norm layer
            continue
        sizes[prod(layer[DOWN].shape[2:]) > 1].add((len(layer[DOWN]), float(layer[ALPHA])))

    def common(conv: bool, place: int) -> str:
        values = {size[place] for size in sizes[conv]}
        return f"{values.pop()}" if len(values) == 1 else "Dynamic"

    plain = not sizes[False]  # a file of convolutions only
    known = _json(args)
    left = {key: value for key, value in known.items() if key not in ("algo", "conv_dim", "conv_alpha")}
    if sizes[True]:
        left |= {"conv_dim": common(True, 0), "conv_alpha": common(True, 1)}
    found = {
        "ss_network_module": MODULE,
        "ss_network_dim": common(plain, 0),
        "ss_network_alpha": common(plain, 1),
    }
    return found | ({"ss_network_args": json.dumps(left)} if left else {})


def _json(text: str) -> dict[str, object]:
    found = json_or_none(text)
    return found if isinstance(found, dict) else {}
