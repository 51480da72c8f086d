"""`Adapter`: what changes one module; and how a module computes with any number of them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from core.networks.adapted import kind_of

if TYPE_CHECKING:
    from core.networks.dropout import Dropout

STACK = "_adapters"
PLUS = "plus"  # the role of weights that LoRA+ gives a higher rate


class Adapter(ABC):
    """The change of one Linear or Conv2d. A kind (core/networks/kinds) derives from it.

    Parameters are float32 in the shapes of the kind's files; products run in the type of the module's output. The base
    weight is not to be read unless the kind says so (`needs_base_weight`): it may be packed, in 8 bits or in parts.

    rank, alpha     its size, for kinds that have one
    saved_alpha     another alpha in files than in force: sd-scripts' way with a starting file
    multiplier      strength of the network it belongs to
    """

    def __init__(self, name: str, module: nn.Module, rank: int = 1, alpha: float = 1.0):
        self.name, self.module = name, module
        self.rank, self.alpha = rank, alpha
        self.saved_alpha: float | None = None
        self.multiplier = 1.0
        self.dropout: Dropout | None = None

    # -- what each kind answers

    @abstractmethod
    def parameters(self) -> list[tuple[nn.Parameter, str]]:
        """(parameter, role): the role `PLUS` takes LoRA+'s ratio, any other is plain."""

    @abstractmethod
    def add_to(self, y: Tensor, x: Tensor) -> Tensor:
        """The module's output y with this change added; x is the module's input."""

    @abstractmethod
    def delta(self) -> Tensor:
        """The change of the weight in its shape, float32, without the multiplier: for merging and norms."""

    @abstractmethod
    def tensors(self) -> dict[str, Tensor]:
        """What a file holds below the module's name; live, not copied."""

    @abstractmethod
    def misfit(self, tensors: Mapping[str, Tensor]) -> str:
        """Why the tensors of a file cannot be taken over; "" where they can."""

    @abstractmethod
    def take(self, tensors: Mapping[str, Tensor]) -> None:
        """Take over tensors that fit. An alpha that comes with them counts, unless `saved_alpha` is set."""

    @abstractmethod
    def shorten(self, ratio: Tensor) -> None:
        """Multiply the change by `ratio`, 0-d on the device (max weight norm)."""

    # -- what has one answer for most

    def norm(self) -> Tensor:
        """Frobenius norm of the change, 0-d."""
        return self.delta().norm()

    def whole(self, x: Tensor) -> Tensor | None:
        """The module's output with this change in one go, where that is faster; None: as a sum."""
        return None

    @property
    def left_out(self) -> bool:
        """Whether the module computes without this change now."""
        return self.multiplier == 0.0 or (self.dropout is not None and self.dropout.leaves_out(self.name))


def forward_with_adapters(module: nn.Module, x: Tensor) -> Tensor:
    """What an adapted module computes: its own forward, then the changes in the order they were attached."""
    adapters = [adapter for adapter in module.__dict__[STACK] if not adapter.left_out]
    kind: Any = kind_of(module)
    y = adapters[0].whole(x) if adapters else None
    if y is None:
        y = kind.forward(module, x)
    else:
        adapters.pop(0)
    for adapter in adapters:
        y = adapter.add_to(y, x)
    return y


def as_weight(value: Any) -> Tensor:
    """A module's weight, for readers of types."""
    assert isinstance(value, torch.Tensor)
    return value
