"""Keys of a layer in the files of the kinds that turn, scale or decompose the weight, as LyCORIS and kohya write them, and what is
read from their shapes alone. Without torch."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

from core.settings.blocks import BlockSize

if TYPE_CHECKING:
    from torch import Tensor

ALPHA = "alpha"
DORA_SCALE = "dora_scale"
WEIGHT, ON_INPUT = "weight", "on_input"  # of (IA)^3
OFT_BLOCKS, RESCALE = "oft_blocks", "rescale"  # of OFT, diag-OFT and BOFT
NORM, NORM_BIAS = "w_norm", "b_norm"  # of norm layers, in files of any kind
BIAS = "diff_b"  # the change of a layer's bias, in files of any kind
A1, A2, B1, B2 = GLORA = "a1.weight", "a2.weight", "b1.weight", "b2.weight"


def is_number(value: Tensor) -> bool:
    """Whether it is one finite number; also of fp8, of which torch has no isfinite."""
    return value.numel() == 1 and math.isfinite(float(value))


def glora_size(tensors: Mapping[str, Tensor]) -> BlockSize:
    """Rank and alpha of a layer of GLoRA; without an alpha it equals the rank."""
    rank = tensors[A2].shape[0]
    return BlockSize(rank, float(tensors[ALPHA]) if ALPHA in tensors else float(rank))


def without_scale(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of the kind that DoRA decomposes."""
    return {key: value for key, value in tensors.items() if key != DORA_SCALE}


def oft_flaw(name: str, tensors: Mapping[str, Tensor]) -> str:
    """What is wrong with a layer of OFT, diag-OFT or BOFT."""
    if OFT_BLOCKS not in tensors:
        return f"{name} has no {OFT_BLOCKS}"
    blocks, rescale = tensors[OFT_BLOCKS], tensors.get(RESCALE)
    if blocks.ndim not in (3, 4) or blocks.shape[-1] != blocks.shape[-2] or not blocks.is_floating_point():
        return f"{name}.{OFT_BLOCKS} has an invalid shape"
    if ALPHA in tensors and not is_number(tensors[ALPHA]):
        return f"{name}.{ALPHA} is not a number"
    width = blocks.shape[-3] * blocks.shape[-1]
    return f"{name}.{RESCALE} has an invalid shape" if rescale is not None and rescale.numel() != width else ""


def oft_idle(tensors: Mapping[str, Tensor]) -> bool:
    """Whether a layer of OFT, diag-OFT or BOFT has no effect."""
    return not tensors[OFT_BLOCKS].any() and (RESCALE not in tensors or bool((tensors[RESCALE] == 1).all()))


def constraint(tensors: Mapping[str, Tensor]) -> float:
    """The limit of the angles, as a share of the output width, that files have as alpha; 0 is none."""
    return float(tensors[ALPHA]) if ALPHA in tensors else 0.0
