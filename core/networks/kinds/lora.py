"""LoRA (Hu et al. 2021, arXiv:2106.09685) on Linear layers and 1x1 convolutions (LoRA-LierLa), or on 3x3 convolutions too
(LoRA-C3Lier, also called LoCon), in kohya's file format."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from core import extensions
from core.networks.kinds.lora_layer import MODULE, register_lora
from core.settings.base import Settings
from core.settings.blocks import LISTS, SIDES, BlockSize
from core.settings.optimization.optimizer import LORA_PLUS

if TYPE_CHECKING:
    from torch import Tensor

    from core.families.targets import Target
    from core.networks.kinds.lora_adapter import LoraAdapter
    from core.settings.job import TrainJob


def _fresh(target: Target, size: BlockSize, own: Settings | None, seed: int) -> LoraAdapter:
    from core.networks.kinds.lora_adapter import LoraAdapter

    return LoraAdapter.fresh(target.name, target.module, size.rank, size.alpha, seed)


def _made(target: Target, down: Tensor, up: Tensor, alpha: float) -> LoraAdapter:
    from core.networks.kinds.lora_adapter import LoraAdapter

    return LoraAdapter(target.name, target.module, down, up, alpha)


def network_args(job: TrainJob) -> dict[str, str]:
    """The network_args of sd-scripts: those that differ from its defaults. The dropout is
    included if there are others, as sd-scripts adds it."""
    network, optimizer = job.network, job.optimizer
    found: dict[str, Any] = {}
    if network.conv_rank is not None:
        alpha = network.conv_rank if network.conv_alpha is None else network.conv_alpha
        found |= {"conv_dim": network.conv_rank, "conv_alpha": alpha}
    for name in (*LISTS, *SIDES):
        found[name] = getattr(network, name) or None
    if network.has_block_rates:
        found["block_lr_zero_threshold"] = network.block_lr_zero_threshold or None
    for name in ("rank_dropout", "module_dropout"):
        found[name] = getattr(network, name) or None
    found["rs_lora"] = network.rs_lora or None
    found["train_norm"] = network.train_norm or None
    if network.initialization != "kaiming" and "initialization" in network.traits.uses:
        found["initialization"] = network.initialization
    for name in LORA_PLUS:
        found[name] = getattr(optimizer, name) if network.traits.loraplus else None
    given = {name: str(value) for name, value in found.items() if value is not None}
    return given | ({"dropout": str(network.network_dropout)} if given and network.network_dropout else {})


register_lora(
    _made,
    name="lora",
    title="LoRA",
    fresh=_fresh,
    module_name=MODULE,
    network_args=network_args,
    loraplus=True,
    initialize=extensions.later("core.networks.kinds.initialization", "initialized"),
)
