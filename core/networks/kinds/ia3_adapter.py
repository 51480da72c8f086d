"""(IA)^3 for one layer: W' = diag(1 + m * vector) W, or W diag(1 + m * vector) on the input."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from core.networks.adapter import Adapter, as_weight, over_channels
from core.networks.kinds.keys import ON_INPUT, WEIGHT


class Ia3Adapter(Adapter):
    """`weight` is a float32 parameter in the file's shape. The multiplier m scales the vector. The norm is the vector's."""

    def __init__(self, name: str, module: nn.Module, weight: Tensor, on_input: bool):
        super().__init__(name, module)
        self.weight, self.on_input = nn.Parameter(weight), on_input

    @classmethod
    def fresh(cls, name: str, module: nn.Module, on_input: bool) -> Ia3Adapter:
        """One without effect: zero."""
        return cls(
            name, module, torch.zeros(shape_of(module, on_input), device=as_weight(module.weight).device), on_input
        )

    def parameters(self) -> list[tuple[nn.Parameter, str]]:
        return [(self.weight, "plain")]

    def enters(self, x: Tensor) -> Tensor:
        return x + self._scaled(x) if self.on_input else x

    def add_to(self, y: Tensor, x: Tensor) -> Tensor:
        return y if self.on_input else y + self._scaled(self.without_bias(y))

    def _scaled(self, value: Tensor) -> Tensor:
        return value * over_channels(self.weight * self.multiplier, value, self.module)

    def merged(self, weight: Tensor) -> Tensor:
        side = [1, -1] if self.on_input else [-1, 1]
        vector = self.weight.detach().float().view(*side, *(1 for _ in weight.shape[2:]))
        return weight + weight * (vector * self.multiplier)

    def norm(self) -> Tensor:
        return self.weight.detach().float().norm()

    def shorten(self, ratio: Tensor) -> None:
        self.weight.mul_(ratio.to(self.weight.dtype))

    def tensors(self) -> dict[str, Tensor]:
        return {WEIGHT: self.weight.detach(), ON_INPUT: torch.tensor(int(self.on_input))}

    def misfit(self, tensors: Mapping[str, Tensor]) -> str:
        if not {WEIGHT, ON_INPUT} <= tensors.keys():
            return f"has no {WEIGHT} with {ON_INPUT}"
        if bool(tensors[ON_INPUT]) != self.on_input:
            return "scales the layer's other side"
        return "" if fitted(tensors, self.module) is not None else "has a different shape"

    def take(self, tensors: Mapping[str, Tensor]) -> None:
        given = fitted(tensors, self.module)
        assert given is not None
        with torch.no_grad():
            self.weight.copy_(given)


def shape_of(module: nn.Module, on_input: bool) -> tuple[int, ...]:
    """The vector's shape in files."""
    weight = as_weight(module.weight)
    count = weight.shape[int(on_input)]
    return (1, count, *(1 for _ in weight.shape[2:])) if weight.dim() > 2 else (count,)


def fitted(tensors: Mapping[str, Tensor], module: nn.Module) -> Tensor | None:
    """A file's vector as float32 in the shape this module needs, on its device; None if it does not fit. That of a 1x1
    convolution fits a Linear and vice versa."""
    shape, given = shape_of(module, bool(tensors[ON_INPUT])), tensors[WEIGHT]
    if given.numel() != max(shape):
        return None
    return torch.empty(shape, device=as_weight(module.weight).device).copy_(given.reshape(shape))
