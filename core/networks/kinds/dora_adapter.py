"""DoRA for one layer: W' = length * (W + change) / |W + change|, norms of rows (or columns)."""

from __future__ import annotations

from collections.abc import Mapping
from weakref import ref

import torch
from torch import Tensor, nn

from core.networks.adapter import Adapter, as_weight, over_channels
from core.networks.kinds.keys import DORA_SCALE, without_scale
from core.networks.narrow import base_weight

EPSILON = torch.finfo(torch.float32).eps  # LyCORIS adds it to the norms


class DoraAdapter(Adapter):
    """`inner` is the change of the direction; `length` a float32 parameter [out, 1(, 1, 1)] or [1, in(, 1, 1)].

    The multiplier m interpolates the weight, W + m * (W' - W), as A1111 and ComfyUI use such files; at 1 this is what LyCORIS
    computes, whose module would keep the whole change at any m. In training the norm is a constant for the gradient
    (section 4.3 of the paper, and PEFT), which saves a copy of each weight.
    """

    def __init__(self, inner: Adapter, length: Tensor):
        super().__init__(inner.name, inner.module, inner.rank, inner.alpha)
        self.inner, self.length = inner, nn.Parameter(length)
        self._known: tuple[object, Tensor] | None = None

    @classmethod
    def fresh(cls, inner: Adapter, per_output: bool) -> DoraAdapter:
        """With the lengths that the weight has."""
        return cls(inner, _norm(base_weight(inner.module), per_output).clone())

    @property
    def per_output(self) -> bool:
        return self.length.shape[0] == self.length.numel()

    def parameters(self) -> list[tuple[nn.Parameter, str]]:
        return [*self.inner.parameters(), (self.length, "plain")]

    def enters(self, x: Tensor) -> Tensor:
        if self.per_output:
            return x
        return x * (1 + self.multiplier * (self._scale(x) - 1))

    def add_to(self, y: Tensor, x: Tensor) -> Tensor:
        self.inner.dropout, scale = self.dropout, self._scale(y)
        if not self.per_output:
            change = self.inner.add_to(torch.zeros_like(y), x.to(y.dtype) * scale)
            return torch.add(y, change, alpha=self.multiplier)
        own = self.without_bias(y)
        whole = self.inner.add_to(own, x) * scale
        return torch.add(y, whole - own, alpha=self.multiplier)

    def _scale(self, like: Tensor) -> Tensor:
        """length / |W + change|, for the channels of an input or output, in its dtype."""
        scale = self.length.float() / (self._norm_now() + EPSILON)
        return over_channels(scale, like, self.module)

    @torch.no_grad()
    def _norm_now(self) -> Tensor:
        """|W + change| with what acts on the module before. While nothing trains it is computed once."""
        below = list(self.below())
        trains = any(parameter.requires_grad for adapter in (self, *below) for parameter, _ in adapter.parameters())
        weight = as_weight(self.module.weight)
        now = (weight.data_ptr(), weight._version, [(ref(adapter), adapter.multiplier) for adapter in below])
        if trains or self._known is None or self._known[0] != now:
            wide = base_weight(self.module)
            for adapter in below:
                wide = adapter.merged(wide)
            self._known = (now, _norm(wide + self.inner.delta(), self.per_output))
        return self._known[1]

    def merged(self, weight: Tensor) -> Tensor:
        whole = weight + self.inner.delta()
        scale = self.length.detach().float() / (_norm(whole, self.per_output) + EPSILON)
        return weight + self.multiplier * (whole * scale - weight)

    def norm(self) -> Tensor:
        return self.inner.norm()

    def shorten(self, ratio: Tensor) -> None:
        self.inner.shorten(ratio)

    def tensors(self) -> dict[str, Tensor]:
        return {**self.inner.tensors(), DORA_SCALE: self.length.detach()}

    def saved(self) -> dict[str, Tensor]:
        return {**self.inner.saved(), DORA_SCALE: self.length.detach()}

    def misfit(self, tensors: Mapping[str, Tensor]) -> str:
        given = lengths(tensors[DORA_SCALE], self.module) if DORA_SCALE in tensors else None
        if given is None or given.shape != self.length.shape:
            return f"has no {DORA_SCALE} of the same shape"
        return self.inner.misfit(without_scale(tensors))

    def take(self, tensors: Mapping[str, Tensor]) -> None:
        given = lengths(tensors[DORA_SCALE], self.module)
        assert given is not None
        with torch.no_grad():
            self.length.copy_(given)
        self.inner.saved_alpha = self.saved_alpha
        self.inner.take(without_scale(tensors))
        self.alpha, self.saved_alpha = self.inner.alpha, self.inner.saved_alpha
        self._known = None


def lengths(scale: Tensor, module: nn.Module) -> Tensor | None:
    """dora_scale as float32 in the shape this module needs, on its device; None if it does not fit. Weights of a 1x1
    convolution fit a Linear and vice versa; a plain vector is of the outputs."""
    weight = as_weight(module.weight)
    ones = [1 for _ in weight.shape[2:]]
    shape = [1, weight.shape[1], *ones] if scale.ndim > 1 and scale.shape[0] == 1 else [weight.shape[0], 1, *ones]
    if scale.numel() != max(shape):
        return None
    return torch.empty(shape, device=weight.device, dtype=torch.float32).copy_(scale.view(shape))


def _norm(weight: Tensor, per_output: bool) -> Tensor:
    """Norms of the weight's rows, [out, 1(, 1, 1)], or of its columns, [1, in(, 1, 1)]."""
    dims = [dim for dim in range(weight.dim()) if dim != (0 if per_output else 1)]
    return torch.linalg.vector_norm(weight, dim=dims, keepdim=True)
