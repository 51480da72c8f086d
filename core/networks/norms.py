"""Limits the length of a network's weight changes (sd-scripts' scale_weight_norms), without waiting for the device."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from core.networks.lora import LoraLayer


@dataclass(frozen=True)
class NormFacts:
    """Lengths of the weight changes after limiting, 0-d on the device. scaled: how many layers were too long."""

    scaled: Tensor
    mean: Tensor
    largest: Tensor


@torch.no_grad()
def apply_max_norm(layers: Iterable[LoraLayer], limit: float) -> NormFacts:
    """Shorten each layer's change W = scale * up @ down to a Frobenius norm of `limit`: with n = max(|W|, limit / 2) and
    ratio = min(n, limit) / n, both factors are multiplied by the root of ratio."""
    layers = list(layers)
    lengths = torch.stack([change_norm(layer) for layer in layers])
    n = lengths.clamp(min=limit / 2)
    ratio = n.clamp(max=limit) / n
    roots = ratio.sqrt()
    for layer, root in zip(layers, roots.unbind(), strict=True):
        layer.down.mul_(root.to(layer.down.dtype))
        layer.up.mul_(root.to(layer.up.dtype))
    kept = lengths * ratio
    return NormFacts((ratio != 1).sum(), kept.mean(), kept.max())


@torch.no_grad()
def change_norm(layer: LoraLayer) -> Tensor:
    """|scale * up @ down|, 0-d. Its square is the sum over (up^T up) * (down down^T), two small matrices, in float64: the
    product itself has the size of the layer's weight."""
    wide = torch.float32 if layer.down.device.type == "mps" else torch.float64  # which Apple's devices lack
    down, up = layer.down.detach().flatten(1).to(wide), layer.up.detach().flatten(1).to(wide)
    square = ((up.t() @ up) * (down @ down.t())).sum()
    return (square.clamp(min=0).sqrt() * abs(layer.scale)).float()
