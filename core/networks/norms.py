"""Limits the norm of a network's weight changes (max weight norm, sd-scripts' scale_weight_norms) without a device sync."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from core.networks.adapter import Adapter


@dataclass(frozen=True)
class NormFacts:
    """Norms of the weight changes after limiting, 0-d on the device. scaled: how many layers were limited."""

    scaled: Tensor
    mean: Tensor
    largest: Tensor


@torch.no_grad()
def apply_max_norm(adapters: Iterable[Adapter], limit: float) -> NormFacts:
    """Scale each change W to a Frobenius norm of `limit`: with n = max(|W|, limit / 2), by the ratio min(n, limit) / n."""
    adapters = list(adapters)
    lengths = torch.stack([adapter.norm() for adapter in adapters])
    n = lengths.clamp(min=limit / 2)
    ratio = n.clamp(max=limit) / n
    for adapter, each in zip(adapters, ratio.unbind(), strict=True):
        adapter.shorten(each)
    kept = lengths * ratio
    return NormFacts((ratio != 1).sum(), kept.mean(), kept.max())
