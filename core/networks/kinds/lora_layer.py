"""A layer of a LoRA file. Without torch.

<name>.lora_down.weight [r, in(, kh, kw)]    <name>.lora_up.weight [out, r(, 1, 1)]    <name>.alpha, a number
weight change = (alpha / r) * up @ down; a missing alpha means alpha = r
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from core.settings.blocks import BlockSize

if TYPE_CHECKING:
    from torch import Tensor

DOWN, UP, ALPHA = "lora_down.weight", "lora_up.weight", "alpha"


def size(tensors: Mapping[str, Tensor]) -> BlockSize:
    """Rank and alpha of a layer in a file; without an alpha it equals the rank."""
    rank = tensors[DOWN].shape[0]
    return BlockSize(rank, float(tensors[ALPHA]) if ALPHA in tensors else float(rank))


def flaw(name: str, tensors: Mapping[str, Tensor]) -> str:
    """What is wrong with a layer of a file."""
    if ALPHA in tensors and not (tensors[ALPHA].numel() == 1 and tensors[ALPHA].isfinite().all()):
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
