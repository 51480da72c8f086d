"""`NormAdapter`: the change of a norm layer, for any network kind, in LyCORIS' format (train_norm): <name>.w_norm,
<name>.b_norm."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn.functional import group_norm, layer_norm

from core.families.targets import Target
from core.formats.lora.names import NORM, NORM_BIAS
from core.networks.adapter import Adapter, as_weight


class NormAdapter(Adapter):
    """The change of a norm layer: y + m * (normalized(x) * weight + shift), as LyCORIS' NormModule."""

    def __init__(self, name: str, module: nn.LayerNorm | nn.GroupNorm, weight: Tensor, shift: Tensor):
        super().__init__(name, module)
        device = as_weight(module.weight).device
        self.weight, self.shift = (nn.Parameter(each.float().to(device)) for each in (weight, shift))

    @classmethod
    def fresh(cls, target: Target) -> NormAdapter:
        """A new one without effect, for a layer that train_norm trains."""
        zero = torch.zeros_like(as_weight(target.module.weight), dtype=torch.float32)
        return cls(target.name, target.module, zero, zero.clone())

    def parameters(self) -> list[tuple[nn.Parameter, str]]:
        return [(self.weight, "plain"), (self.shift, "plain")]

    def add_to(self, y: Tensor, x: Tensor) -> Tensor:
        weight, shift = ((each * self.multiplier).to(y.dtype) for each in (self.weight, self.shift))
        if isinstance(self.module, nn.GroupNorm):
            if weight.requires_grad and not x.requires_grad:
                # Torch's backward pass (2.13, CPU) ends the process here for an x in channels_last layout.
                plain, shape = group_norm(x, self.module.num_groups, eps=self.module.eps), (-1, *(1,) * (x.dim() - 2))
                return y + torch.addcmul(shift.view(shape), plain, weight.view(shape))
            return y + group_norm(x, self.module.num_groups, weight, shift, self.module.eps)
        assert isinstance(self.module, nn.LayerNorm)
        return y + layer_norm(x, self.module.normalized_shape, weight, shift, self.module.eps)

    def delta(self) -> Tensor:
        return self.weight.detach()

    def bias_delta(self) -> Tensor | None:
        return self.shift.detach()

    def tensors(self) -> dict[str, Tensor]:
        return {NORM: self.weight.detach(), NORM_BIAS: self.shift.detach()}

    def misfit(self, tensors: Mapping[str, Tensor]) -> str:
        sizes = {name: tensor.numel() for name, tensor in tensors.items()}
        fits = NORM in sizes and sizes.keys() <= {NORM, NORM_BIAS} and set(sizes.values()) == {self.weight.numel()}
        return "" if fits else "has a different shape"

    def take(self, tensors: Mapping[str, Tensor]) -> None:
        with torch.no_grad():
            self.weight.copy_(tensors[NORM].flatten())
            self.shift.copy_(tensors[NORM_BIAS].flatten() if NORM_BIAS in tensors else torch.zeros(()))

    def shorten(self, ratio: Tensor) -> None:
        for each in (self.weight, self.shift):
            each.mul_(ratio)
