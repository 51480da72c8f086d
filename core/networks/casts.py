"""Trained weights in the dtype that layers compute in: cast once per micro-batch, not at each use."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


class CastCache:
    """Copies of a network's float32 weights in the compute dtype, like autocast's weight cache.

    A cast at each use is a kernel per weight, and another when gradient checkpointing repeats the forward pass. All copies
    are written in one operation before each micro-batch instead; until its gradients are computed, no weight changes. A
    weight gets its copy at its first use.
    """

    def __init__(self) -> None:
        self._copies: dict[nn.Parameter, Tensor] = {}
        self._open = False

    @torch.no_grad()
    def open(self) -> None:
        """Copy the weights as they are now."""
        if self._copies:
            torch._foreach_copy_(list(self._copies.values()), list(self._copies))
        self._open = True

    def close(self) -> None:
        """The weights may change from here on: they are cast at each use."""
        self._open = False

    def read(self, weight: Tensor, dtype: torch.dtype) -> Tensor:
        """`weight` in this dtype, where no gradient is recorded."""
        if weight.dtype == dtype or not self._open or not isinstance(weight, nn.Parameter):
            return weight.to(dtype)
        copy = self._copies.get(weight)
        if copy is None or copy.dtype != dtype:
            copy = self._copies[weight] = weight.detach().to(dtype)
        return copy


def cast_weight(weight: Tensor, dtype: torch.dtype, casts: CastCache | None) -> Tensor:
    """`weight` in this dtype, differentiable. In a compiled graph the cast is one of its operations."""
    if casts is None or weight.dtype == dtype or torch.compiler.is_compiling():
        return weight.to(dtype)
    copy: Tensor = _Cast.apply(weight, dtype, casts)
    return copy


class _Cast(torch.autograd.Function):
    """A weight's copy; its gradient is the weight's, in the weight's dtype."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, dtype: torch.dtype, casts: CastCache) -> Tensor:
        ctx.dtype = weight.dtype
        return casts.read(weight, dtype).detach()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        return grad.to(ctx.dtype), None, None
