"""The LoRA of one module, in torch.

    y = W x + multiplier * scale * up(down(x)),   scale = alpha / rank

down is [rank, in] (or [rank, in, kh, kw] with the module's own stride and padding), up is [out, rank] (or
[out, rank, 1, 1]), float32 by default; they are cast to the dtype the module computes in at each call.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.functional import conv2d, linear

from core.networks.adapter import PLUS, Adapter, as_weight, kind_of
from core.networks.kinds.lora_layer import ALPHA, DOWN, UP, size
from core.record.draws import generator


class LoraAdapter(Adapter):
    """`down` and `up` are float32 parameters in the file's shapes. Those derived from it hold them in other ways: what computes
    takes them from `_weights`."""

    def __init__(self, name: str, module: nn.Module, down: Tensor, up: Tensor, alpha: float):
        super().__init__(name, module, down.shape[0], alpha)
        self._hold(down, up)
        self._cast: tuple[Tensor, Tensor] | None = None

    def _hold(self, down: Tensor, up: Tensor) -> None:
        self._down, self._up = nn.Parameter(down), nn.Parameter(up)

    @property
    def down(self) -> Tensor:
        return self._down

    @property
    def up(self) -> Tensor:
        return self._up

    @property
    def scale(self) -> float:
        return self.alpha / self.rank

    @property
    def strength(self) -> float:
        return self.multiplier * self.scale

    @classmethod
    def fresh(cls, name: str, module: nn.Module, rank: int, alpha: float, seed: int) -> Self:
        """A LoRA without effect: down uniform in +-1 / sqrt(fan in) (kaiming, a = sqrt 5), up zero.

        The draw is addressed by the module's name, so it does not depend on which other modules train.
        """
        weight = as_weight(module.weight)
        place = torch.device("meta" if weight.is_meta else "cpu")
        down = torch.empty((rank, *weight.shape[1:]), dtype=torch.float32, device=place)
        if not weight.is_meta:
            nn.init.kaiming_uniform_(down, a=math.sqrt(5), generator=generator(seed, "network_init", name))
        up = torch.zeros((weight.shape[0], rank, *(1 for _ in weight.shape[2:])), dtype=torch.float32, device=place)
        return cls(name, module, down.to(weight.device), up.to(weight.device), alpha)

    def parameters(self) -> list[tuple[nn.Parameter, str]]:
        return [(self._down, "plain"), (self._up, PLUS)]

    def add_to(self, y: Tensor, x: Tensor) -> Tensor:
        if self.dropout is not None and self.dropout.thins:
            return self._add_thinned(y, x.to(y.dtype))
        down, up = self._weights(y.dtype)
        if isinstance(self.module, nn.Conv2d):
            return add_low_rank_conv(y, x.to(y.dtype), down, up, self.strength, self.module)
        return add_low_rank_linear(y, x.to(y.dtype), down, up, self.strength)

    def _add_thinned(self, y: Tensor, x: Tensor) -> Tensor:
        return self._thinned_by(y, x, *self._weights(y.dtype))

    def _thinned_by(self, y: Tensor, x: Tensor, down: Tensor, up: Tensor) -> Tensor:
        """With dropout between down and up: down -> elements -> ranks -> up."""
        assert self.dropout is not None
        if isinstance(self.module, nn.Conv2d):
            hidden, factor = self.dropout.thinned(hidden_conv(x, down, self.module), self.name, 1)
            return torch.add(y, up_conv(hidden, up), alpha=self.strength * factor)
        hidden, factor = self.dropout.thinned(hidden_linear(x, down), self.name, -1)
        return torch.add(y, up_linear(hidden, up), alpha=self.strength * factor)

    def whole(self, x: Tensor) -> Tensor | None:
        thinned = self.dropout is not None and self.dropout.thins
        module = self.module
        if thinned or kind_of(module) is not nn.Linear or not isinstance(module, nn.Linear):
            return None
        if x.dtype != module.weight.dtype:
            return None
        return linear_with_low_rank(x, module, *self._weights(x.dtype), self.strength)

    def _weights(self, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """The parameters while they train; else a copy in `dtype`, made once."""
        if self.down.requires_grad or self.up.requires_grad or self.down.dtype == dtype:
            return self.down, self.up
        if self._cast is None or (self._cast[0].dtype, self._cast[0].device) != (dtype, self.down.device):
            self._cast = (self.down.detach().to(dtype), self.up.detach().to(dtype))
        return self._cast

    def delta(self) -> Tensor:
        down, up = self.down.detach().float(), self.up.detach().float()
        product = up.flatten(1) @ down.flatten(1)  # [out, rank] @ [rank, in * kh * kw]
        return (product * self.scale).view(up.shape[0], *down.shape[1:])

    def merged(self, weight: Tensor) -> Tensor:
        """The sum in one product, without the change as a matrix of its own."""
        up, down = self.up.detach().float().flatten(1), self.down.detach().float().flatten(1)
        strength = self.multiplier * self.scale
        return torch.addmm(weight.flatten(1), up, down, alpha=strength).view(weight.shape)

    def tensors(self) -> dict[str, Tensor]:
        return {DOWN: self.down.detach(), UP: self.up.detach(), ALPHA: self.alpha_in_file()}

    def misfit(self, tensors: Mapping[str, Tensor]) -> str:
        shaped = fit_shapes(tensors[DOWN], tensors[UP], self.module) if {DOWN, UP} <= tensors.keys() else None
        if shaped is None:
            return "has a different shape"
        return "" if shaped[0].shape == self.down.shape else f"has rank {shaped[0].shape[0]}, not {self.rank}"

    def take(self, tensors: Mapping[str, Tensor]) -> None:
        shaped = fit_shapes(tensors[DOWN], tensors[UP], self.module)
        assert shaped is not None
        self.put(*shaped)
        self.take_alpha(size(tensors).alpha)
        self._cast = None

    @torch.no_grad()
    def put(self, down: Tensor, up: Tensor) -> None:
        """Give the parameters these values."""
        self._down.copy_(down)
        self._up.copy_(up)

    def shorten(self, ratio: Tensor) -> None:
        for parameter, _ in self.parameters():
            parameter.mul_(ratio.sqrt().to(parameter.dtype))

    def norm(self) -> Tensor:
        """Its square is the sum over (up^T up) * (down down^T), two small matrices, in float64: the product itself is as
        large as the layer's weight."""
        wide = torch.float32 if self.down.device.type == "mps" else torch.float64  # not available on Apple devices
        down, up = self.down.detach().flatten(1).to(wide), self.up.detach().flatten(1).to(wide)
        square = ((up.t() @ up) * (down @ down.t())).sum()
        return (square.clamp(min=0).sqrt() * abs(self.scale)).float()


def fit_shapes(down: Tensor, up: Tensor, module: nn.Module) -> tuple[Tensor, Tensor] | None:
    """down and up as float32 copies in the shapes this module needs, on its device; None if they do not fit.

    Weights of a 1x1 convolution fit a Linear and vice versa.
    """
    weight = as_weight(module.weight)
    rank = down.shape[0]
    down_shape = (rank, *weight.shape[1:])
    up_shape = (weight.shape[0], rank, *(1 for _ in weight.shape[2:]))
    if down.numel() != math.prod(down_shape) or up.numel() != math.prod(up_shape) or up.shape[1] != rank:
        return None
    if down.dim() > 2 and weight.dim() > 2 and down.shape != down_shape:
        return None
    down = torch.empty(down_shape, device=weight.device, dtype=torch.float32).copy_(down.view(down_shape))
    up = torch.empty(up_shape, device=weight.device, dtype=torch.float32).copy_(up.view(up_shape))
    return down, up


# -- frozen modules plus `strength * up(down(x))`; the backward pass only computes the required gradients


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
    """y + strength * up(down(x)): down is a convolution of `conv`'s stride, padding and dilation, up a 1x1 one."""
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
        ctx.shape, needs_down = x.shape, ctx.needs_input_grad[3]
        ctx.save_for_backward(x if needs_down else None, hidden, weight, down, up)  # x: the gradient of down alone
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, hidden, weight, down, up = ctx.saved_tensors
        need_x, _, _, need_down, need_up, _ = ctx.needs_input_grad
        grad, rows = grad.reshape(-1, grad.shape[-1]), x.reshape(-1, x.shape[-1]) if need_down else None
        grad_down, grad_up, grad_hidden = _factor_gradients(ctx, grad, rows, hidden, up, need_x, need_down, need_up)
        grad_x = (grad @ weight).addmm_(grad_hidden, down).view(ctx.shape) if need_x else None
        return grad_x, None, None, grad_down, grad_up, None


class _AddLowRankOverChannels(torch.autograd.Function):
    """The same sum at every position of an image: y [B, out, H, W] and x [B, in, H, W], channels_last."""

    @staticmethod
    def forward(ctx: Any, y: Tensor, x: Tensor, down: Tensor, up: Tensor, strength: float) -> Tensor:
        ctx.strength, ctx.master_type = strength, down.dtype
        down, up = down.flatten(1).to(y.dtype), up.flatten(1).to(y.dtype)
        hidden = _places(x) @ down.t()
        batch, channels, height, width = y.shape
        # y stays: what limits a change to a region subtracts it from the sum
        sum_ = torch.addmm(_places(y), hidden, up.t(), alpha=strength)
        ctx.shape, needs_down = x.shape, ctx.needs_input_grad[2]
        ctx.save_for_backward(x if needs_down else None, hidden, down, up)
        return sum_.view(batch, height, width, channels).permute(0, 3, 1, 2)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, hidden, down, up = ctx.saved_tensors
        _, need_x, need_down, need_up, _ = ctx.needs_input_grad
        rows = _places(x) if need_down else None
        grad_down, grad_up, grad_hidden = _factor_gradients(
            ctx, _places(grad), rows, hidden, up, need_x, need_down, need_up
        )
        grad_x = None
        if need_x:
            batch, channels, height, width = ctx.shape
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
    ctx: Any,
    grad: Tensor,
    rows: Tensor | None,
    hidden: Tensor,
    up: Tensor,
    need_x: bool,
    need_down: bool,
    need_up: bool,
) -> tuple[Tensor | None, Tensor | None, Tensor]:
    """Gradients of down [rank, in] and up [out, rank] in the masters' dtype, and of hidden [rows, rank] (or empty)."""
    grad_up = (grad.t() @ hidden).to(ctx.master_type).mul_(ctx.strength) if need_up else None
    if not (need_x or need_down):
        return None, grad_up, hidden.new_empty(0)
    grad_hidden = (grad @ up).mul_(ctx.strength)
    return (grad_hidden.t() @ rows).to(ctx.master_type) if rows is not None else None, grad_up, grad_hidden
