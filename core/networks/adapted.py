"""Modules with a replaced forward pass.

They get a subclass of their own class. Assigning a `forward` to each module would do the same, but torch.compile treats that as
separate code: 70 equal blocks would be compiled 70 times instead of once.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn

_DERIVED: dict[type, type] = {}


def kind_of(module: nn.Module) -> Any:
    """The module's original class, adapted or not."""
    return getattr(type(module), "adapts", type(module))


def adapt(module: nn.Module, forward: Callable[..., Any]) -> None:
    """From now on the module computes `forward(module, ...)`, the same function for every module. Adapting twice has no
    further effect."""
    kind = kind_of(module)
    if kind not in _DERIVED:
        _DERIVED[kind] = type(f"Adapted{kind.__name__}", (kind,), {"forward": forward, "adapts": kind})
    module.__class__ = _DERIVED[kind]


def restore(module: nn.Module) -> None:
    """Give the module its original class back."""
    module.__class__ = kind_of(module)
