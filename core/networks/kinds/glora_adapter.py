"""GLoRA for one layer: y' = f(x + strength * a1(a2(x))) + strength * b1(b2(x)), f the layer as it is below."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from core.networks.adapter import Adapter, as_weight
from core.networks.kinds.keys import A1, A2, ALPHA, B1, B2, GLORA, glora_size
from core.networks.kinds.lora_adapter import hidden_conv, hidden_linear, up_conv, up_linear
from core.record.draws import generator


class GloraAdapter(Adapter):
    """`weights`: float32 parameters by the key of files. The multiplier scales A and B. Dropout acts between the matrices of
    both. The norm is that of A and B together, since W A depends on the layer's weight."""

    def __init__(self, name: str, module: nn.Module, tensors: Mapping[str, Tensor], alpha: float):
        super().__init__(name, module, tensors[A2].shape[0], alpha)
        self.weights = {key: nn.Parameter(tensors[key]) for key in GLORA}

    @classmethod
    def fresh(cls, name: str, module: nn.Module, rank: int, alpha: float, seed: int) -> GloraAdapter:
        """One without effect: a1 and b1 kaiming uniform (a = sqrt 5), a2 and b2 zero, as in LyCORIS."""
        weight = as_weight(module.weight)
        place = torch.device("meta" if weight.is_meta else "cpu")
        tensors = {key: torch.zeros(shape, device=place) for key, shape in shapes(module, rank).items()}
        for key in (A1, B1):
            if not weight.is_meta:
                drawn = generator(seed, "network_init", f"{name}.{key}")
                nn.init.kaiming_uniform_(tensors[key], a=math.sqrt(5), generator=drawn)
        return cls(name, module, {key: value.to(weight.device) for key, value in tensors.items()}, alpha)

    @property
    def scale(self) -> float:
        return self.alpha / self.rank

    @property
    def strength(self) -> float:
        return self.multiplier * self.scale

    def parameters(self) -> list[tuple[nn.Parameter, str]]:
        return [(weight, "plain") for weight in self.weights.values()]

    def enters(self, x: Tensor) -> Tensor:
        if not isinstance(self.module, nn.Conv2d):
            hidden, factor = self._thinned(hidden_linear(x, self.weights[A2]), A2)
            return torch.add(x, up_linear(hidden, self.weights[A1]), alpha=self.strength * factor)
        hidden, factor = self._thinned(up_conv(x, self.weights[A2]), A2)
        return torch.add(x, up_conv(hidden, self.weights[A1]), alpha=self.strength * factor)

    def add_to(self, y: Tensor, x: Tensor) -> Tensor:
        if not isinstance(self.module, nn.Conv2d):
            hidden, factor = self._thinned(hidden_linear(x.to(y.dtype), self.weights[B2]), B2)
            return torch.add(y, up_linear(hidden, self.weights[B1]), alpha=self.strength * factor)
        hidden, factor = self._thinned(hidden_conv(x.to(y.dtype), self.weights[B2], self.module), B2)
        return torch.add(y, up_conv(hidden, self.weights[B1]), alpha=self.strength * factor)

    def _thinned(self, hidden: Tensor, key: str) -> tuple[Tensor, float]:
        if self.dropout is None or not self.dropout.thins:
            return hidden, 1.0
        return self.dropout.thinned(hidden, f"{self.name}.{key}", 1 if isinstance(self.module, nn.Conv2d) else -1)

    def merged(self, weight: Tensor) -> Tensor:
        a1, a2, b1, b2 = (self.weights[key].detach().float().flatten(1) for key in GLORA)
        on_input = torch.einsum("oi...,ir,rj->oj...", weight, a1, a2)
        return weight + self.strength * (on_input + (b1 @ b2).view(weight.shape))

    def norm(self) -> Tensor:
        a1, a2, b1, b2 = (self.weights[key].detach().float().flatten(1) for key in GLORA)
        return torch.stack([(a1 @ a2).norm(), (b1 @ b2).norm()]).norm() * abs(self.scale)

    def shorten(self, ratio: Tensor) -> None:
        for weight in self.weights.values():
            weight.mul_(ratio.sqrt().to(weight.dtype))

    def tensors(self) -> dict[str, Tensor]:
        found = {key: weight.detach() for key, weight in self.weights.items()}
        return found | {ALPHA: self.alpha_in_file()}

    def misfit(self, tensors: Mapping[str, Tensor]) -> str:
        given = fitted(tensors, self.module) if set(GLORA) <= tensors.keys() else None
        if given is None:
            return "has a different shape"
        return "" if given[A2].shape[0] == self.rank else f"has rank {given[A2].shape[0]}, not {self.rank}"

    def take(self, tensors: Mapping[str, Tensor]) -> None:
        given = fitted(tensors, self.module)
        assert given is not None
        with torch.no_grad():
            for key, weight in self.weights.items():
                weight.copy_(given[key])
        self.take_alpha(glora_size(tensors).alpha)


def shapes(module: nn.Module, rank: int) -> dict[str, tuple[int, ...]]:
    """The matrices' shapes in files."""
    (out, width, *kernel), ones = as_weight(module.weight).shape, [1 for _ in as_weight(module.weight).shape[2:]]
    return {
        A1: (width, rank, *ones),
        A2: (rank, width, *ones),
        B1: (out, rank, *ones),
        B2: (rank, width, *kernel),
    }


def fitted(tensors: Mapping[str, Tensor], module: nn.Module) -> dict[str, Tensor] | None:
    """A file's matrices as float32 in the shapes this module needs, on its device; None if they do not fit. Those of a 1x1
    convolution fit a Linear and vice versa."""
    needed, place = shapes(module, tensors[A2].shape[0]), as_weight(module.weight).device
    if any(
        tensors[key].numel() != math.prod(shape) or tensors[key].shape[:2] != shape[:2] for key, shape in needed.items()
    ):
        return None
    return {
        key: torch.empty(shape, device=place, dtype=torch.float32).copy_(tensors[key].reshape(shape))
        for key, shape in needed.items()
    }
