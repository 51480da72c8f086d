"""LoRA-FA (Zhang et al. 2023, arXiv:2308.03303): LoRA whose first matrix is frozen, in LoRA's file format."""

from __future__ import annotations

from typing import TYPE_CHECKING

from core.networks.kinds.lora import network_args
from core.networks.kinds.lora_layer import register_lora

if TYPE_CHECKING:
    from torch import Tensor

    from core.families.targets import Target
    from core.networks.kinds.lora_variants import LoraFaAdapter
    from core.settings.base import Settings
    from core.settings.blocks import BlockSize


def _fresh(target: Target, size: BlockSize, own: Settings | None, seed: int) -> LoraFaAdapter:
    from core.networks.kinds.lora_variants import LoraFaAdapter

    return LoraFaAdapter.begun(target.name, target.module, size.rank, size.alpha, seed)


def _made(target: Target, down: Tensor, up: Tensor, alpha: float) -> LoraFaAdapter:
    from core.networks.kinds.lora_variants import LoraFaAdapter

    return LoraFaAdapter(target.name, target.module, down, up, alpha)


register_lora(
    _made,
    name="lora_fa",
    title="LoRA-FA",
    fresh=_fresh,
    module_name="networks.lora_fa",
    network_args=network_args,
)
