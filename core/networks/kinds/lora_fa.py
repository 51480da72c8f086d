"""LoRA-FA (Zhang et al. 2023, arXiv:2308.03303): LoRA with its first matrix frozen, in LoRA's file format."""

from __future__ import annotations

import math
from typing import Self

from core.networks.adapter import as_weight
from core.networks.kinds.lora import LoraAdapter, register_lora
from core.record.draws import generator
from core.record.lazy_torch import Tensor, nn, torch


class LoraFaAdapter(LoraAdapter):
    """A LoRA whose down is frozen."""

    def _store(self, down: Tensor, up: Tensor) -> None:
        """Store the matrices as parameters, with down frozen."""
        super()._store(down, up)
        self._down.requires_grad_(False)

    @classmethod
    def fresh(cls, name: str, module: nn.Module, rank: int, alpha: float, seed: int) -> Self:
        """Create a LoRA without effect: down normal with variance 2 / (in + rank), as in sd-scripts' networks.lora_fa, up zero.

        in: the number of input channels, also for a convolution.
        """
        adapter = super().fresh(name, module, rank, alpha, seed)
        if not adapter.down.is_meta:
            spread = math.sqrt(2.0 / (as_weight(module.weight).shape[1] + rank))
            down = torch.empty(adapter.down.shape)
            down.normal_(0.0, spread, generator=generator(seed, "network_init_fa", name))
            adapter.put(down, adapter.up.detach())
        return adapter

    def parameters(self) -> list[tuple[nn.Parameter, str]]:
        return [(self._up, "plain")]

    def shorten(self, ratio: Tensor) -> None:
        """Multiply up, the only trained matrix, by `ratio`."""
        self._up.mul_(ratio.to(self._up.dtype))


register_lora(LoraFaAdapter, name="lora_fa", title="LoRA-FA", module_name="networks.lora_fa")
