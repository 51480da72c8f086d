"""LoRAs that train a part of their numbers: LoRA-FA the second matrix, DyLoRA some ranks at each step. In torch."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from core.networks.adapter import PLUS, as_weight
from core.networks.kinds.lora_adapter import LoraAdapter
from core.record.draws import generator, integer


class LoraFaAdapter(LoraAdapter):
    """LoRA-FA (Zhang et al. 2023, arXiv:2308.03303): down is frozen, only up trains."""

    def _hold(self, down: Tensor, up: Tensor) -> None:
        super()._hold(down, up)
        self._down.requires_grad_(False)

    @classmethod
    def begun(cls, name: str, module: nn.Module, rank: int, alpha: float, seed: int) -> LoraFaAdapter:
        """down normal with variance 2 / (in + rank), as sd-scripts' networks.lora_fa; in: channels of a convolution."""
        adapter = cls.fresh(name, module, rank, alpha, seed)
        if not adapter.down.is_meta:
            spread = math.sqrt(2.0 / (as_weight(module.weight).shape[1] + rank))
            down = torch.empty(adapter.down.shape)
            down.normal_(0.0, spread, generator=generator(seed, "network_init_fa", name))
            adapter.put(down, adapter.up.detach())
        return adapter

    def parameters(self) -> list[tuple[nn.Parameter, str]]:
        return [(self._up, "plain")]

    def shorten(self, ratio: Tensor) -> None:
        self._up.mul_(ratio.to(self._up.dtype))


class DyLoraAdapter(LoraAdapter):
    """DyLoRA (Valipour et al. 2022, arXiv:2210.07558), as sd-scripts' networks.dylora: each micro-batch draws a rank k, a
    multiple of `unit`; only ranks k to k + unit - 1 get gradients, and the change is multiplied by sqrt(rank / (k + unit)).

    All ranks are in the product. The draw is addressed by step, micro-batch and layer; when the network is used nothing is
    drawn. Ranks that train together are one parameter: an optimizer skips those without a gradient.
    """

    def __init__(self, name: str, module: nn.Module, down: Tensor, up: Tensor, alpha: float, unit: int, seed: int):
        self._unit, self._seed = unit, seed
        super().__init__(name, module, down, up, alpha)

    def _hold(self, down: Tensor, up: Tensor) -> None:
        self._downs = [nn.Parameter(part.clone()) for part in down.split(self._unit)]
        self._ups = [nn.Parameter(part.clone()) for part in up.split(self._unit, dim=1)]

    @property
    def down(self) -> Tensor:
        return torch.cat(list(self._downs))

    @property
    def up(self) -> Tensor:
        return torch.cat(list(self._ups), dim=1)

    def parameters(self) -> list[tuple[nn.Parameter, str]]:
        pairs = zip(self._downs, self._ups, strict=True)
        return [each for down, up in pairs for each in ((down, "plain"), (up, PLUS))]

    @property
    def drawn(self) -> int | None:
        """The first rank that trains now; None while the network is used."""
        if self.moment is None:
            return None
        return integer(0, self.rank, self._seed, "dylora", *self.moment, self.name) // self._unit * self._unit

    @property
    def strength(self) -> float:
        first = self.drawn
        factor = 1.0 if first is None else math.sqrt(self.rank / min(first + self._unit, self.rank))
        return super().strength * factor

    def _weights(self, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        first = self.drawn
        if first is None:
            return self.down, self.up
        here = first // self._unit
        downs = [part if place == here else part.detach() for place, part in enumerate(self._downs)]
        ups = [part if place == here else part.detach() for place, part in enumerate(self._ups)]
        return torch.cat(downs), torch.cat(ups, dim=1)

    @torch.no_grad()
    def put(self, down: Tensor, up: Tensor) -> None:
        for parts, whole, dim in ((self._downs, down, 0), (self._ups, up, 1)):
            for part, value in zip(parts, whole.split(self._unit, dim=dim), strict=True):
                part.copy_(value)
