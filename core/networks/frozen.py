"""Frozen convolutions on a CPU, with weights converted to oneDNN's blocked layout once instead of at every call.

A convolution whose weight is not trained needs only two products: its output, and the gradient of its input. The second is itself a
convolution, of the output's gradient with the weight flipped in space and transposed in channels. Both weights are prepacked and the
plain one is dropped meanwhile, so the memory cost is one extra copy, not two. 1x1 convolutions become matrix products over the
channels, which need no packing.

Measured on the shapes of SD 1.5 at 256 px in bf16 on 2 cores, each call alone: 0.53 s instead of 1.17 s per step.

The calls are private to torch, so a probe compares them with the plain convolution first; if it fails, nothing is installed and
everything works as before, but slower.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import Any

import psutil
import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from core.networks.adapter import kind_of
from core.record.heap import HeapTrimmer

ATTRIBUTE = "_conv_forward"  # nn.Conv2d.forward is this method with its weight and bias
_memory = HeapTrimmer()
SMALLEST = 16  # channels; fewer gain nothing from packing (the first and last layer of a U-Net)


def install(model: nn.Module, packs: bool = True) -> int:
    """Replace every suitable frozen convolution of `model` by its fast form; return the number of replaced ones.

    packs   False: replace none, since the weights will be read; only use channels_last layout

    From its first use until `uninstall`, the weight of a replaced 3x3 convolution is NaN and takes no memory: shape and dtype can be read,
    values cannot. Other frozen convolutions get channels_last layout. Returns 0 if packing does not work on this machine, or, without
    any change, if it would take more than half of the free memory.
    """
    if packs and extra_bytes(model) > psutil.virtual_memory().available / 2:
        return 0
    count = 0
    for module in model.modules():
        if not isinstance(module, nn.Conv2d) or ATTRIBUTE in module.__dict__:
            continue
        if packs and is_frozen_packable(module) and can_pack(module.weight.dtype):
            module.__dict__[ATTRIBUTE] = PointwiseConv(module) if module.kernel_size == (1, 1) else PackedConv(module)
            count += 1
        elif module.weight.device.type == "cpu" and not module.weight.requires_grad:
            _to_channels_last(module)
    return count


def _to_channels_last(conv: nn.Conv2d) -> None:
    """Put the weight into channels_last layout, as the fast forms' outputs have it, so that sums of both need no reordering."""
    conv.weight.data = conv.weight.data.contiguous(memory_format=torch.channels_last)


@contextmanager
def packed_copies(model: nn.Module) -> Iterator[None]:
    """Context manager: trainable convolutions are fast too, with packed copies of their current weights; for no-grad passes only.

    Results differ from the plain convolutions in the last bits, so samples of a fully trained model would not match the saved model.
    """
    convolutions = [
        module for module in model.modules() if isinstance(module, nn.Conv2d) and module.weight.requires_grad
    ]
    trainable = [module for module in convolutions if is_packable(module)]
    others = [module for module in convolutions if not is_packable(module) and module.weight.device.type == "cpu"]
    weights = [module.weight.data for module in others]
    if _pack_bytes(trainable) > psutil.virtual_memory().available / 2:
        trainable = []
    changed = [module for module in trainable if ATTRIBUTE not in module.__dict__ and can_pack(module.weight.dtype)]
    try:
        for module in changed:
            pointwise = module.kernel_size == (1, 1)
            module.__dict__[ATTRIBUTE] = PointwiseConv(module) if pointwise else PackedConv(module, copies=True)
        for module in others:
            _to_channels_last(module)
        yield
    finally:
        for module, weight in zip(others, weights, strict=True):
            module.weight.data = weight
        for module in changed:
            module.__dict__.pop(ATTRIBUTE, None)


def extra_bytes(model: nn.Module) -> int:
    """Return the memory in bytes that `install` takes once forward and backward pass have run."""
    return _pack_bytes(
        module for module in model.modules() if isinstance(module, nn.Conv2d) and is_frozen_packable(module)
    )


def _pack_bytes(convolutions: Iterable[nn.Conv2d]) -> int:
    """Return the bytes that the packed weights of these convolutions take; 1x1 ones are not packed."""
    packed = (module.weight for module in convolutions if module.kernel_size != (1, 1))
    return sum(weight.numel() * weight.element_size() for weight in packed)


def uninstall(model: nn.Module) -> None:
    """Restore the plain convolutions and their weights, bit for bit."""
    for module in model.modules():
        fast = module.__dict__.pop(ATTRIBUTE, None)
        if isinstance(fast, PackedConv):
            fast.restore()


@contextmanager
def readable(model: nn.Module) -> Iterator[None]:
    """Context manager: the weights of packed convolutions can be read; they are packed again afterwards."""
    packed = any(ATTRIBUTE in module.__dict__ for module in model.modules())
    if packed:
        uninstall(model)
        install(model, packs=False)
    try:
        yield
    finally:
        if packed:
            install(model)


def is_frozen_packable(conv: nn.Conv2d) -> bool:
    """Return whether a convolution is frozen and `is_packable`."""
    return is_packable(conv) and not conv.weight.requires_grad and (conv.bias is None or not conv.bias.requires_grad)


def is_packable(conv: nn.Conv2d) -> bool:
    """Return whether the fast form can replace a convolution.

    That is: on the CPU, bf16 or fp32, stride, dilation and groups of 1, zero padding that keeps the image size, at least SMALLEST channels.
    """
    weight = conv.weight
    padding, kernel = conv.padding, conv.kernel_size
    same_size = not isinstance(padding, str) and tuple(2 * p for p in padding) == tuple(k - 1 for k in kernel)
    return (
        kind_of(conv).forward is nn.Conv2d.forward
        and weight.device.type == "cpu"
        and weight.dtype in (torch.bfloat16, torch.float32)
        and same_size
        and conv.stride == conv.dilation == (1, 1)
        and conv.groups == 1
        and conv.padding_mode == "zeros"
        and min(conv.in_channels, conv.out_channels) >= SMALLEST
    )


@lru_cache
def can_pack(dtype: torch.dtype) -> bool:
    """Return whether prepacked convolutions of this dtype work here and match plain ones, forward and backward."""
    if not torch.backends.mkldnn.is_available():
        return False
    with torch.random.fork_rng(devices=[]), torch.enable_grad():
        torch.manual_seed(0)
        conv = nn.Conv2d(24, 40, 3, padding=1).to(dtype).requires_grad_(False)
        x = torch.randn(2, 24, 9, 7).to(dtype).to(memory_format=torch.channels_last).requires_grad_()
        grad = torch.randn(2, 40, 9, 7).to(dtype)
    try:
        with torch.enable_grad():
            plain = conv(x)
            (plain_grad,) = torch.autograd.grad(plain, x, grad)
            packed = PackedConv(conv)(x, conv.weight, conv.bias)
            (packed_grad,) = torch.autograd.grad(packed, x, grad)
    except (RuntimeError, AttributeError, TypeError):  # the private calls do not exist, or take other arguments
        return False
    tolerance = 2e-2 if dtype == torch.bfloat16 else 1e-4  # a few roundings of numbers near 1
    return all(
        torch.allclose(one.float(), other.float(), rtol=tolerance, atol=tolerance)
        for one, other in ((plain, packed), (plain_grad, packed_grad))
    )


class PackedConv:
    """Replaces the `_conv_forward` of a 3x3 convolution.

    There is one pack per direction, made for the first image size. oneDNN reorders it for other sizes at the call if necessary: correct
    for any size, and hardly slower than the plain convolution. So memory does not grow with the number of buckets.

    copies   keep the plain weight next to its pack
    """

    def __init__(self, conv: nn.Conv2d, copies: bool = False):
        self.conv, self._copies = conv, copies
        self.forward_pack: Tensor | None = None
        self.backward_pack: Tensor | None = None
        self.channels_last = conv.weight.is_contiguous(memory_format=torch.channels_last)

    def __call__(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        y: Tensor = _PackedConvolution.apply(x.to(weight.dtype), self)
        return y

    def product(self, x: Tensor) -> Tensor:
        """Return the convolution of x [B, in, H, W] with bias: [B, out, H, W]. The first call packs and drops the plain weight."""
        if self.forward_pack is None:
            self.forward_pack = self._pack(self.conv.weight, x)
            if not self._copies:
                self._drop_weight()
        return self._convolve(x, self.forward_pack, self.conv.bias)

    def input_gradient(self, grad: Tensor) -> Tensor:
        """Return the gradient of the input, [B, in, H, W], from the output's `grad`, [B, out, H, W]."""
        if self.backward_pack is None:
            assert self.forward_pack is not None
            self.backward_pack = self._pack(self.forward_pack.to_dense().flip(2, 3).transpose(0, 1), grad)
        return self._convolve(grad, self.backward_pack, None)

    def restore(self) -> None:
        """Put the plain weight back into the convolution, in its former memory layout."""
        if self.forward_pack is not None:
            order = torch.channels_last if self.channels_last else torch.contiguous_format
            self.conv.weight.data = self.forward_pack.to_dense().contiguous(memory_format=order)

    def _pack(self, weight: Tensor, x: Tensor) -> Tensor:
        """Return the weight in oneDNN's layout for images of x's shape."""
        plain = weight.detach().to_mkldnn()
        pad, ones = list(self.conv.padding), [1, 1]
        pack: Tensor = torch._C._nn.mkldnn_reorder_conv2d_weight(plain, pad, ones, ones, 1, list(x.shape))
        del plain
        _memory.freed(weight.numel() * weight.element_size())
        return pack

    def _convolve(self, x: Tensor, pack: Tensor, bias: Tensor | None) -> Tensor:
        """Call oneDNN's convolution of x with a packed weight."""
        pad, ones = list(self.conv.padding), [1, 1]
        return torch.ops.mkldnn._convolution_pointwise(x, pack, bias, pad, ones, ones, 1, "none", [], "")

    def _drop_weight(self) -> None:
        """Free the weight's values: it becomes NaN expanded to the same shape, dtype and device."""
        weight = self.conv.weight
        weight.data = torch.full((1, 1, 1, 1), float("nan"), dtype=weight.dtype).expand(weight.shape)


class PointwiseConv:
    """Replaces the `_conv_forward` of a 1x1 convolution by a matrix product over the channels."""

    def __init__(self, conv: nn.Conv2d):
        self.conv = conv

    def __call__(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        y: Tensor = _PointwiseConvolution.apply(x.to(weight.dtype), weight.flatten(1), bias)
        return y


class _PackedConvolution(torch.autograd.Function):
    """A `PackedConv` as an autograd node; only x gets a gradient."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, conv: PackedConv) -> Tensor:
        ctx.conv = conv
        return conv.product(x)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, None]:
        return ctx.conv.input_gradient(grad) if ctx.needs_input_grad[0] else None, None


class _PointwiseConvolution(torch.autograd.Function):
    """A 1x1 convolution of x [B, in, H, W] with a frozen weight [out, in]; only x gets a gradient."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(weight)
        return channel_product(x, weight.t(), bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, None, None]:
        (weight,) = ctx.saved_tensors
        return channel_product(grad, weight, None) if ctx.needs_input_grad[0] else None, None, None


def channel_product(x: Tensor, matrix: Tensor, bias: Tensor | None) -> Tensor:
    """Multiply the channels of x [B, in, H, W] by `matrix` [in, out] and add `bias`: channels_last [B, out, H, W].

    Copies x unless it is channels_last.
    """
    batch, _, height, width = x.shape
    y = torch.empty((batch, matrix.shape[1], height, width), dtype=x.dtype, memory_format=torch.channels_last)
    rows, out = x.permute(0, 2, 3, 1).reshape(-1, matrix.shape[0]), y.permute(0, 2, 3, 1).view(-1, matrix.shape[1])
    if bias is None:
        torch.mm(rows, matrix, out=out)
    else:
        torch.addmm(bias, rows, matrix, out=out)
    return y
