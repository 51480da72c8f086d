"""Keys of a layer in the files of the kinds that turn, scale or decompose the weight, as LyCORIS and kohya write them, and what is
read from their shapes alone. Without torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from core.settings.blocks import BlockSize

if TYPE_CHECKING:
    from torch import Tensor

ALPHA = "alpha"
DORA_SCALE = "dora_scale"
WEIGHT, ON_INPUT = "weight", "on_input"  # of (IA)^3
A1, A2, B1, B2 = GLORA = "a1.weight", "a2.weight", "b1.weight", "b2.weight"


def glora_size(tensors: Mapping[str, Tensor]) -> BlockSize:
    """Rank and alpha of a layer of GLoRA; without an alpha it equals the rank."""
    rank = tensors[A2].shape[0]
    return BlockSize(rank, float(tensors[ALPHA]) if ALPHA in tensors else float(rank))


def without_scale(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of the kind that DoRA decomposes."""
    return {key: value for key, value in tensors.items() if key != DORA_SCALE}
