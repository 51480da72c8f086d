"""Frozen modules with `strength * up(down(x))` beside them; the backward pass computes no more than is asked for."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.functional import conv2d, linear


def linear_with_low_rank(x: Tensor, module: nn.Linear, down: Tensor, up: Tensor, strength: float) -> Tensor:
    """W x + b + strength * up(down(x)) for a frozen Linear.

    x    [..., in], of the weight's type        down    [rank, in], any floating type
                                                up      [out, rank]
    """
    y: Tensor = _LinearWithLowRank.apply(x, module.weight, module.bias, down, up, strength)  # type: ignore[no-untyped-call]
    return y


def add_low_rank_linear(y: Tensor, x: Tensor, down: Tensor, up: Tensor, strength: float) -> Tensor:
    """y + strength * up(down(x)) for a Linear's output y [..., out], in y's type."""
    return torch.add(y, linear(linear(x, down.to(y.dtype)), up.to(y.dtype)), alpha=strength)


def add_low_rank_conv(y: Tensor, x: Tensor, down: Tensor, up: Tensor, strength: float, conv: nn.Conv2d) -> Tensor:
    """y + strength * up(down(x)): down is a convolution of `conv`'s stride, padding and dilation, up a 1x1 one."""
    hidden = conv2d(x, down.to(y.dtype), None, conv.stride, conv.padding, conv.dilation)
    return torch.add(y, conv2d(hidden, up.to(y.dtype)), alpha=strength)


class _LinearWithLowRank(torch.autograd.Function):
    """One autograd node in place of five. Products run in x's type and are summed into the frozen product as they are
    made; the gradients of down and up come back in their own type (float32 masters). The frozen weight gets none."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, down: Tensor, up: Tensor, strength: float
    ) -> Tensor:
        cast_down, cast_up = down.to(x.dtype), up.to(x.dtype)
        y = linear(x, weight, bias)
        hidden = x.reshape(-1, x.shape[-1]) @ cast_down.t()
        y.view(-1, y.shape[-1]).addmm_(hidden, cast_up.t(), alpha=strength)
        ctx.save_for_backward(x, hidden, weight, cast_down, cast_up)
        ctx.strength = strength
        ctx.master_type = down.dtype
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_y: Tensor) -> tuple[Tensor | None, ...]:
        x, hidden, weight, down, up = ctx.saved_tensors
        need_x, _, _, need_down, need_up, _ = ctx.needs_input_grad
        rows = grad_y.reshape(-1, grad_y.shape[-1])
        grad_x = grad_down = grad_up = None
        if need_up:
            grad_up = (rows.t() @ hidden).to(ctx.master_type).mul_(ctx.strength)
        if need_x or need_down:
            grad_hidden = (rows @ up).mul_(ctx.strength)
            if need_down:
                grad_down = (grad_hidden.t() @ x.reshape(-1, x.shape[-1])).to(ctx.master_type)
            if need_x:
                grad_x = (rows @ weight).addmm_(grad_hidden, down).view(x.shape)
        return grad_x, None, None, grad_down, grad_up, None
