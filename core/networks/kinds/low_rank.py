"""Frozen modules plus `strength * up(down(x))`; the backward pass only computes the required gradients."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.functional import conv2d, linear


def linear_with_low_rank(x: Tensor, module: nn.Linear, down: Tensor, up: Tensor, strength: float) -> Tensor:
    """W x + b + strength * up(down(x)) for a frozen Linear.

    x    [..., in], of the weight's dtype       down    [rank, in], any floating dtype
                                                up      [out, rank]
    """
    if torch.compiler.is_compiling():  # which generates a backward pass itself
        return add_low_rank_linear(linear(x, module.weight, module.bias), x, down, up, strength)
    y: Tensor = _LinearWithLowRank.apply(x, module.weight, module.bias, down, up, strength)
    return y


def add_low_rank_linear(y: Tensor, x: Tensor, down: Tensor, up: Tensor, strength: float) -> Tensor:
    """y + strength * up(down(x)) for a Linear's output y [..., out], in y's dtype."""
    return torch.add(y, up_linear(hidden_linear(x, down), up), alpha=strength)


def add_low_rank_conv(y: Tensor, x: Tensor, down: Tensor, up: Tensor, strength: float, conv: nn.Conv2d) -> Tensor:
    """y + strength * up(down(x)): down is a convolution of `conv`'s stride, padding and dilation, up a 1x1 one.

    y is the output of `conv`, used nowhere else: with a 1x1 kernel and channels_last its memory is reused.
    """
    compiling = torch.compiler.is_compiling()
    if (
        not compiling
        and conv.kernel_size == conv.stride == (1, 1)
        and y.is_contiguous(memory_format=torch.channels_last)
    ):
        sum_: Tensor = _AddLowRankOverChannels.apply(y, x, down, up, strength)
        return sum_
    return torch.add(y, up_conv(hidden_conv(x, down, conv), up), alpha=strength)


def hidden_linear(x: Tensor, down: Tensor) -> Tensor:
    """down(x): [..., in] -> [..., rank], in x's dtype."""
    return linear(x, down.to(x.dtype))


def up_linear(hidden: Tensor, up: Tensor) -> Tensor:
    return linear(hidden, up.to(hidden.dtype))


def hidden_conv(x: Tensor, down: Tensor, conv: nn.Conv2d) -> Tensor:
    """down(x): [B, in, H, W] -> [B, rank, h, w], in x's dtype, with `conv`'s stride, padding and dilation."""
    return conv2d(x, down.to(x.dtype), None, conv.stride, conv.padding, conv.dilation)


def up_conv(hidden: Tensor, up: Tensor) -> Tensor:
    return conv2d(hidden, up.to(hidden.dtype))


class _LinearWithLowRank(torch.autograd.Function):
    """One autograd node instead of five. Products run in x's dtype and are added to the frozen product as they are
    computed; the gradients of down and up have their own dtype (float32 masters). The frozen weight gets none."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, down: Tensor, up: Tensor, strength: float
    ) -> Tensor:
        ctx.strength, ctx.master_type = strength, down.dtype
        down, up = down.to(x.dtype), up.to(x.dtype)
        y = linear(x, weight, bias)
        hidden = x.reshape(-1, x.shape[-1]) @ down.t()
        y.view(-1, y.shape[-1]).addmm_(hidden, up.t(), alpha=strength)
        ctx.save_for_backward(x, hidden, weight, down, up)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, hidden, weight, down, up = ctx.saved_tensors
        need_x, _, _, need_down, need_up, _ = ctx.needs_input_grad
        grad, rows = grad.reshape(-1, grad.shape[-1]), x.reshape(-1, x.shape[-1])
        grad_down, grad_up, grad_hidden = _factor_gradients(ctx, grad, rows, hidden, up, need_x, need_down, need_up)
        grad_x = (grad @ weight).addmm_(grad_hidden, down).view(x.shape) if need_x else None
        return grad_x, None, None, grad_down, grad_up, None


class _AddLowRankOverChannels(torch.autograd.Function):
    """The same sum at every position of an image: y [B, out, H, W] (in place) and x [B, in, H, W], channels_last."""

    @staticmethod
    def forward(ctx: Any, y: Tensor, x: Tensor, down: Tensor, up: Tensor, strength: float) -> Tensor:
        ctx.strength, ctx.master_type = strength, down.dtype
        down, up = down.flatten(1).to(y.dtype), up.flatten(1).to(y.dtype)
        hidden = _places(x) @ down.t()
        y.permute(0, 2, 3, 1).view(-1, y.shape[1]).addmm_(hidden, up.t(), alpha=strength)
        ctx.mark_dirty(y)
        ctx.save_for_backward(x, hidden, down, up)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, hidden, down, up = ctx.saved_tensors
        _, need_x, need_down, need_up, _ = ctx.needs_input_grad
        grad_down, grad_up, grad_hidden = _factor_gradients(
            ctx, _places(grad), _places(x), hidden, up, need_x, need_down, need_up
        )
        grad_x = None
        if need_x:
            batch, channels, height, width = x.shape
            grad_x = (grad_hidden @ down).view(batch, height, width, channels).permute(0, 3, 1, 2)
        if grad_down is not None:
            grad_down = grad_down[:, :, None, None]
        if grad_up is not None:
            grad_up = grad_up[:, :, None, None]
        return grad, grad_x, grad_down, grad_up, None


def _places(x: Tensor) -> Tensor:
    """[B, C, H, W] -> [B * H * W, C], without a copy if x is channels_last."""
    return x.permute(0, 2, 3, 1).reshape(-1, x.shape[1])


def _factor_gradients(
    ctx: Any, grad: Tensor, rows: Tensor, hidden: Tensor, up: Tensor, need_x: bool, need_down: bool, need_up: bool
) -> tuple[Tensor | None, Tensor | None, Tensor]:
    """Gradients of down [rank, in] and up [out, rank] in the masters' dtype, and of hidden [rows, rank] (or empty)."""
    grad_up = (grad.t() @ hidden).to(ctx.master_type).mul_(ctx.strength) if need_up else None
    if not (need_x or need_down):
        return None, grad_up, hidden.new_empty(0)
    grad_hidden = (grad @ up).mul_(ctx.strength)
    return (grad_hidden.t() @ rows).to(ctx.master_type) if need_down else None, grad_up, grad_hidden
