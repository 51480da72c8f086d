"""Frozen weights in fp8 (float8_e4m3fn: Micikevicius et al. 2022, arXiv:2209.05433), upcast at each use.

Each output channel has a scale that maps its largest weight to the dtype's largest value. sd-scripts casts the weights directly, and
most of a U-Net's are so small that only two or three digits remain.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.functional import conv2d, linear
from torch.nn.grad import conv2d_input

from core.networks.adapter import as_weight

FP8 = torch.float8_e4m3fn
LARGEST = torch.finfo(FP8).max
# Nearly all weights are in these; the others (first and last layers, embeddings) are unchanged.
BLOCKS = ("down_blocks.", "mid_block.", "up_blocks.", "encoder.layers.", "text_model.encoder.layers.")


class Fp8Linear(nn.Linear):
    """A frozen Linear with its weight in fp8. `factors` [out, 1] are the channels' scales, in the dtype it computes in."""

    factors: Tensor

    def forward(self, input: Tensor) -> Tensor:
        """Return the output for input [..., in], computed in the dtype of `factors`."""
        if torch.compiler.is_compiling():  # which also recomputes the upcast weight in the backward pass
            return linear(input.to(self.factors.dtype), dequantized(self.weight, self.factors), self.bias)
        y: Tensor = _Linear.apply(input.to(self.factors.dtype), self.weight, self.factors, self.bias)
        return y


class Fp8Conv(nn.Conv2d):
    """A frozen convolution with its weight in fp8. `factors` [out, 1, 1, 1] are the channels' scales, in the dtype it computes in."""

    factors: Tensor

    def forward(self, input: Tensor) -> Tensor:
        """Return the output for input [B, in, H, W], computed in the dtype of `factors`."""
        if torch.compiler.is_compiling():
            wide, x = dequantized(self.weight, self.factors), input.to(self.factors.dtype)
            return conv2d(x, wide, self.bias, self.stride, self.padding, self.dilation, self.groups)
        y: Tensor = _Conv.apply(input.to(self.factors.dtype), self.weight, self.factors, self.bias, self)
        return y


def to_fp8(model: nn.Module) -> int:
    """Store the frozen weights of the model's blocks in fp8, in place; return the bytes saved."""
    saved = 0
    for name, module in model.named_modules():
        kind = {nn.Linear: Fp8Linear, nn.Conv2d: Fp8Conv}.get(type(module))
        if kind is None or not isinstance(module, (nn.Linear, nn.Conv2d)) or not name.startswith(BLOCKS):
            continue
        if not module.weight.requires_grad:
            saved += _convert(module, kind)
    return saved


@torch.no_grad()
def _convert(module: Any, kind: type[nn.Module]) -> int:
    """Store a layer's weight in fp8 and change the layer's class to `kind`, in place; return the bytes saved."""
    weight = module.weight
    small, factors = _quantized(weight.float(), weight.dtype)
    saved = weight.numel() * (weight.element_size() - 1)
    module.weight = nn.Parameter(small, requires_grad=False)
    module.register_buffer("factors", factors, persistent=False)
    module.__class__ = kind
    return saved


def _quantized(weight: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Return (weight in fp8, factors [out, 1, ...] in `dtype`) with weight = fp8 * factors.
    weight: float32 [out, ...]; divided by the rounded factors, so that their rounding does not scale a whole channel"""
    largest = weight.abs().flatten(1).amax(1)
    factors = (largest / LARGEST).to(dtype).clamp(min=torch.finfo(dtype).tiny).view(-1, *(1 for _ in weight.shape[1:]))
    # Clamped: rounding up could exceed the dtype's range, which has no infinity.
    return (weight / factors.float()).clamp(-LARGEST, LARGEST).to(FP8), factors


def base_weight(module: nn.Module) -> Tensor:
    """Return a layer's weight in float32; fp8 weights are dequantized."""
    weight = as_weight(module.weight).detach()
    return (dequantized(weight, as_weight(module.factors)) if weight.dtype == FP8 else weight).float()


def set_weight(module: nn.Module, new_weight: Tensor) -> None:
    """Overwrite the layer's weight with the float32 `new_weight`, in the layer's dtype (fp8 with new factors)."""
    weight = as_weight(module.weight)
    if weight.dtype == FP8:
        new_weight, factors = _quantized(new_weight, as_weight(module.factors).dtype)
        as_weight(module.factors).copy_(factors)
    weight.copy_(new_weight)


def dequantized(weight: Tensor, factors: Tensor) -> Tensor:
    """Return an fp8 weight times its factors, in the factors' dtype."""
    return weight.to(factors.dtype) * factors


class _Linear(torch.autograd.Function):
    """A linear layer with an fp8 weight, upcast again in the backward pass: storing it would use the memory that fp8 saves."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, factors: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(weight, factors)
        return linear(x, dequantized(weight, factors), bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        weight, factors = ctx.saved_tensors
        return grad @ dequantized(weight, factors).to(grad.dtype), None, None, None


class _Conv(torch.autograd.Function):
    """A convolution with an fp8 weight, upcast again in the backward pass as in `_Linear`."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, factors: Tensor, bias: Tensor | None, conv: nn.Conv2d) -> Tensor:
        ctx.save_for_backward(weight, factors)
        ctx.shape, ctx.options = x.shape, (conv.stride, conv.padding, conv.dilation, conv.groups)
        return conv2d(x, dequantized(weight, factors), bias, *ctx.options)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        weight, factors = ctx.saved_tensors
        wide = dequantized(weight, factors).to(grad.dtype)
        return conv2d_input(ctx.shape, wide, grad, *ctx.options), None, None, None, None
