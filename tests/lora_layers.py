"""A LoRA file by layer, for tests: its two matrices, its alpha and the strength they act with."""

from dataclasses import dataclass

from torch import Tensor

from core.formats.lora.names import DOWN, UP, group_by_module
from core.networks.kinds.lora import size


@dataclass(frozen=True)
class Layer:
    down: Tensor
    up: Tensor
    rank: int
    alpha: float

    @property
    def scale(self) -> float:
        return self.alpha / self.rank


def layers_of(lora) -> dict[str, Layer]:
    found = {}
    for name, tensors in group_by_module(lora.tensors).items():
        its = size(tensors)
        found[name] = Layer(tensors[DOWN], tensors[UP], its.rank, its.alpha)
    return found
