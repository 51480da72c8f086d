"""Modules that compute something more than their own kind does.

They get a class derived from their own. A `forward` of each module's own would do the same, but torch.compile takes that
for code of its own: 70 equal blocks would be compiled 70 times rather than once.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn

_DERIVED: dict[type, type] = {}


def kind_of(module: nn.Module) -> Any:
    """The module's own class, adapted or not."""
    return getattr(type(module), "adapts", type(module))


def adapt(module: nn.Module, forward: Callable[..., Any]) -> None:
    """From now on the module computes `forward(module, ...)`, the same function for every module. Adapting twice is
    adapting once."""
    kind = kind_of(module)
    if kind not in _DERIVED:
        _DERIVED[kind] = type(f"Adapted{kind.__name__}", (kind,), {"forward": forward, "adapts": kind})
    module.__class__ = _DERIVED[kind]


def restore(module: nn.Module) -> None:
    """The module is of its own class again."""
    module.__class__ = kind_of(module)
