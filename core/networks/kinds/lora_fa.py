"""LoRA-FA (Zhang et al. 2023, arXiv:2308.03303): LoRA whose first matrix is frozen, in LoRA's file format."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from core.networks.kinds import NetworkKind, register
from core.networks.kinds.lora import network_args
from core.networks.kinds.lora_layer import ALPHA, DOWN, UP, flaw, size, to_peft

if TYPE_CHECKING:
    from torch import Tensor

    from core.families.targets import Target
    from core.networks.kinds.lora_variants import LoraFaAdapter
    from core.settings.base import Settings
    from core.settings.blocks import BlockSize


def _fresh(target: Target, size: BlockSize, own: Settings | None, seed: int) -> LoraFaAdapter:
    from core.networks.kinds.lora_variants import LoraFaAdapter

    return LoraFaAdapter.begun(target.name, target.module, size.rank, size.alpha, seed)


def _from_tensors(target: Target, tensors: Mapping[str, Tensor]) -> LoraFaAdapter | None:
    from core.networks.kinds.lora_adapter import fit_shapes
    from core.networks.kinds.lora_variants import LoraFaAdapter

    shaped = fit_shapes(tensors[DOWN], tensors[UP], target.module)
    return LoraFaAdapter(target.name, target.module, *shaped, size(tensors).alpha) if shaped is not None else None


register(
    NetworkKind(
        name="lora_fa",
        title="LoRA-FA",
        forms=((DOWN, UP),),
        optional=(ALPHA,),
        input_keys=(DOWN,),
        fresh=_fresh,
        from_tensors=_from_tensors,
        size=size,
        flaw=flaw,
        module_name="networks.lora_fa",
        network_args=network_args,
        idle=lambda tensors: not tensors[UP].any(),
        to_peft=to_peft,
    )
)
