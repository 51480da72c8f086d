"""The LoRA of a frozen layer as one autograd node, and a network's weights and gradients, cast once per micro-batch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.functional import linear

KEPT_BYTES = 32 << 20  # of gradients that wait to be cast together


class LinearWithLowRank(torch.autograd.Function):
    """A Linear and its LoRA as one autograd node instead of five: x W^T + bias + strength * (x down^T) up^T.

    x: [..., in]; down: [rank, in] and up: [out, rank], float32. Products run in x's dtype; down and up get gradients in their own dtype,
    from the cache if it is open. The frozen weight [out, in] and bias get no gradient.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        down: Tensor,
        up: Tensor,
        strength: float,
        casts: CastCache | None,
    ) -> Tensor:
        """Return the Linear's output plus strength * up(down(x)); `casts`: copies of down and up in x's dtype, or None."""
        ctx.strength, ctx.masters, ctx.casts = strength, (down, up), casts
        down, up = _cast_copy(down, x.dtype, casts), _cast_copy(up, x.dtype, casts)
        y = linear(x, weight, bias)
        hidden = x.reshape(-1, x.shape[-1]) @ down.t()
        y.view(-1, y.shape[-1]).addmm_(hidden, up.t(), alpha=strength)
        ctx.shape, needs_down = x.shape, ctx.needs_input_grad[3]
        ctx.save_for_backward(x if needs_down else None, hidden, weight, down, up)  # x: the gradient of down alone
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradients of x, down and up, each only if required."""
        x, hidden, weight, down, up = ctx.saved_tensors
        need_x, _, _, need_down, need_up, *_ = ctx.needs_input_grad
        grad, rows = grad.reshape(-1, grad.shape[-1]), x.reshape(-1, x.shape[-1]) if need_down else None
        grad_down, grad_up, grad_hidden = _factor_gradients(ctx, grad, rows, hidden, up, need_x, need_down, need_up)
        grad_x = (grad @ weight).addmm_(grad_hidden, down).view(ctx.shape) if need_x else None
        return grad_x, None, None, grad_down, grad_up, None, None


class AddLowRankOverChannels(torch.autograd.Function):
    """The LoRA of a 1x1 convolution, added to its output as one autograd node: y + strength * up(down(x)).

    y: [B, out, H, W] and x: [B, in, H, W], channels_last; down: [rank, in, 1, 1], up: [out, rank, 1, 1].
    """

    @staticmethod
    def forward(
        ctx: Any, y: Tensor, x: Tensor, down: Tensor, up: Tensor, strength: float, casts: CastCache | None
    ) -> Tensor:
        """Return y + strength * up(down(x)); `casts`: copies of down and up in y's dtype, or None."""
        ctx.strength, ctx.masters, ctx.casts = strength, (down, up), casts
        down, up = _cast_copy(down, y.dtype, casts).flatten(1), _cast_copy(up, y.dtype, casts).flatten(1)
        hidden = _rows(x) @ down.t()
        batch, channels, height, width = y.shape
        # y is kept: limiting a change to a region subtracts it from the sum
        sum_ = torch.addmm(_rows(y), hidden, up.t(), alpha=strength)
        ctx.shape, needs_down = x.shape, ctx.needs_input_grad[2]
        ctx.save_for_backward(x if needs_down else None, hidden, down, up)
        return sum_.view(batch, height, width, channels).permute(0, 3, 1, 2)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradients of y, x, down and up, the last three only if required."""
        x, hidden, down, up = ctx.saved_tensors
        _, need_x, need_down, need_up, *_ = ctx.needs_input_grad
        rows = _rows(x) if need_down else None
        grad_down, grad_up, grad_hidden = _factor_gradients(
            ctx, _rows(grad), rows, hidden, up, need_x, need_down, need_up
        )
        grad_x = None
        if need_x:
            batch, channels, height, width = ctx.shape
            grad_x = (grad_hidden @ down).view(batch, height, width, channels).permute(0, 3, 1, 2)
        return grad, grad_x, grad_down, grad_up, None, None


def _cast_copy(weight: Tensor, dtype: torch.dtype, casts: CastCache | None) -> Tensor:
    """Return `weight` in `dtype`, from the cache if there is one; no gradient is recorded."""
    return weight.to(dtype) if casts is None else casts.read(weight, dtype)


def _scaled(values: Tensor, strength: float) -> Tensor:
    """Multiply `values` by the strength in place and return them."""
    return values if strength == 1.0 else values.mul_(strength)


def _rows(x: Tensor) -> Tensor:
    """Reshape [B, C, H, W] to [B * H * W, C], without a copy if x is channels_last."""
    return x.permute(0, 2, 3, 1).reshape(-1, x.shape[1])


def _factor_gradients(
    ctx: Any,
    grad: Tensor,
    rows: Tensor | None,
    hidden: Tensor,
    up: Tensor,
    need_x: bool,
    need_down: bool,
    need_up: bool,
) -> tuple[Tensor | None, Tensor | None, Tensor]:
    """Return the gradients (of down and of up in their shapes, of hidden [rows, rank]).

    grad: [rows, out], rows: x as [rows, in], hidden: [rows, rank]. The first two are None if not needed or kept by the cache; the last is
    empty if not needed.
    """
    down_master, up_master = ctx.masters
    grad_hidden = _scaled(grad @ up, ctx.strength) if need_x or need_down else hidden.new_empty(0)
    products = [(grad, hidden)] if need_up else []
    products += [(grad_hidden, rows)] if rows is not None else []
    keeps = ctx.casts is not None and ctx.casts.keeps(down_master) and ctx.casts.keeps(up_master)
    gradients = _products(products, grad.dtype if keeps else down_master.dtype)
    grad_up = _wide_gradient(ctx.casts, up_master, gradients.pop(0), ctx.strength) if need_up else None
    grad_down = _wide_gradient(ctx.casts, down_master, gradients.pop(), 1.0) if gradients else None
    return grad_down, grad_up, grad_hidden


def _products(pairs: Sequence[tuple[Tensor, Tensor]], dtype: torch.dtype) -> list[Tensor]:
    """Return left^T @ right of each pair in this dtype; several share one buffer, so that they are cast together."""
    if len(pairs) < 2 or pairs[0][0].dtype == dtype:
        return [(left.t() @ right).to(dtype) for left, right in pairs]
    shapes = [(left.shape[1], right.shape[1]) for left, right in pairs]
    sizes = [rows * columns for rows, columns in shapes]
    flat = pairs[0][0].new_empty(sum(sizes))
    for (left, right), part, shape in zip(pairs, flat.split(sizes), shapes, strict=True):
        torch.mm(left.t(), right, out=part.view(shape))
    return [part.view(shape) for part, shape in zip(flat.to(dtype).split(sizes), shapes, strict=True)]


def _wide_gradient(casts: CastCache | None, weight: Tensor, gradient: Tensor, factor: float) -> Tensor | None:
    """Return `factor` times the gradient in the weight's dtype and shape; None if the cache keeps it."""
    gradient = gradient.view(weight.shape)
    if casts is not None and casts.keep(weight, gradient, factor):
        return None
    return _scaled(gradient.to(weight.dtype), factor)


# -- copies of the weights in the compute dtype


class CastCache:
    """Copies of a network's float32 weights in the compute dtype, like autocast's weight cache, and their gradients in it.

    Casting at each use is a kernel per weight, and another when gradient checkpointing repeats the forward pass. Here all copies are
    written in one operation before each micro-batch (`open`); until `close`, no weight may change. A weight gets its copy at its first use.
    Gradients stay in the compute dtype until there are KEPT_BYTES of them or until `close`, and are cast together.
    """

    def __init__(self) -> None:
        self._copies: dict[nn.Parameter, Tensor] = {}
        self._gradients: list[tuple[Tensor, Tensor, float]] = []
        self._kept_bytes, self._open = 0, False

    @torch.no_grad()
    def open(self) -> None:
        """Update all copies from the current weights."""
        if self._copies:
            torch._foreach_copy_(list(self._copies.values()), list(self._copies))
        self._open = True

    def close(self) -> None:
        """Give the weights their gradients, and stop using the copies, since the weights may change: each use casts the weight."""
        self._open = False
        self._give_gradients()

    @torch.no_grad()
    def _give_gradients(self) -> None:
        """Add the kept gradients to those of the weights."""
        kept, self._gradients, self._kept_bytes = self._gradients, [], 0
        if not kept:
            return
        wide = [torch.empty_like(weight) for weight, _, _ in kept]
        torch._foreach_copy_(wide, [gradient for _, gradient, _ in kept])
        scaled = [(each, factor) for each, (_, _, factor) in zip(wide, kept, strict=True) if factor != 1.0]
        if scaled:
            torch._foreach_mul_([each for each, _ in scaled], [factor for _, factor in scaled])
        sums: dict[Tensor, Tensor] = {}  # as autograd adds: first what this micro-batch gives
        for (weight, _, _), each in zip(kept, wide, strict=True):
            sums[weight] = sums[weight].add_(each) if weight in sums else each
        for weight, total in sums.items():
            weight.grad = total if weight.grad is None else weight.grad.add_(total)

    def keeps(self, weight: Tensor) -> bool:
        """Return whether gradients of this weight can be kept: those of parameters, while the cache is open."""
        return self._open and isinstance(weight, nn.Parameter)

    def keep(self, weight: Tensor, gradient: Tensor, factor: float) -> bool:
        """Keep `factor` times this gradient for the weight, to be cast with others. Returns False if it cannot be kept, needs no cast or
        has another layout than the weight."""
        if not self.keeps(weight) or weight.dtype == gradient.dtype or weight.stride() != gradient.stride():
            return False
        self._gradients.append((weight, gradient, factor))
        self._kept_bytes += gradient.nbytes
        if self._kept_bytes > KEPT_BYTES:
            self._give_gradients()
        return True

    def read(self, weight: Tensor, dtype: torch.dtype) -> Tensor:
        """Return `weight` in this dtype without recording a gradient: its copy while the cache is open, else a new cast."""
        if weight.dtype == dtype or not self._open or not isinstance(weight, nn.Parameter):
            return weight.to(dtype)
        copy = self._copies.get(weight)
        if copy is None or copy.dtype != dtype:
            copy = self._copies[weight] = weight.detach().to(dtype)
        return copy


def cast_weight(weight: Tensor, dtype: torch.dtype, casts: CastCache | None) -> Tensor:
    """Return `weight` in this dtype, differentiable; None for `casts` casts at each use. A compiled graph casts itself."""
    if casts is None or weight.dtype == dtype or torch.compiler.is_compiling():
        return weight.to(dtype)
    copy: Tensor = _Cast.apply(weight, dtype, casts)
    return copy


class _Cast(torch.autograd.Function):
    """Returns the weight's copy in another dtype; the weight gets the gradient in its own."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, dtype: torch.dtype, casts: CastCache) -> Tensor:
        ctx.master, ctx.casts = weight, casts
        return casts.read(weight, dtype).detach()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, None, None]:
        return _wide_gradient(ctx.casts, ctx.master, grad, 1.0), None, None
