"""Guidance that combines the outputs for prompt and negative prompt in other ways: diffusers' formulas."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import normalize

from core.generation.sample.guidance import NEGATIVE, POSITIVE, Guidance, Moment, Outputs
from core.settings.generation.guidance import ApgSettings, CfgZeroSettings

SIDES = (NEGATIVE, POSITIVE)


def apg(scale: float, negative_scale: float | None, own: ApgSettings) -> Guidance:
    """Adaptive projected guidance (Sadat et al. 2024, arXiv:2410.02416) on the model's own output, as diffusers has it."""
    average: list[Tensor] = []

    def combine(outputs: Outputs, at: Moment) -> Tensor:
        away, to = outputs[NEGATIVE], outputs[POSITIVE]
        difference = to - away
        if average:
            difference = difference + own.apg_momentum * average.pop()
        average.append(difference)
        return away + scale * projected(difference, to, own.apg_eta, own.apg_threshold)

    return Guidance(SIDES, combine)


def projected(difference: Tensor, positive: Tensor, eta: float, threshold: float) -> Tensor:
    """The component of `difference` orthogonal to `positive` plus `eta` times the parallel one, after its norm was limited to
    `threshold` (0: no limit). All [B, ...], per image."""
    axes = list(range(1, difference.ndim))
    if threshold > 0:
        difference = difference * (threshold / torch.linalg.vector_norm(difference, dim=axes, keepdim=True)).clamp(
            max=1
        )
    whole = difference.cpu().double() if difference.device.type == "mps" else difference.double()  # MPS has no float64
    flat = positive.to(whole).flatten(1)
    along = normalize(flat).reshape(positive.shape)
    parallel = (whole * along).sum(dim=axes, keepdim=True) * along
    return (whole - parallel).to(difference) + eta * parallel.to(difference)


def cfg_zero(scale: float, negative_scale: float | None, own: CfgZeroSettings) -> Guidance:
    """CFG-Zero* (Fan et al. 2025, arXiv:2503.18886): the negative output is scaled to the prompt's by least squares."""

    def combine(outputs: Outputs, at: Moment) -> Tensor:
        away, to = outputs[NEGATIVE], outputs[POSITIVE]
        if at.index < own.cfg_zero_steps:
            return torch.zeros_like(to)
        axes = list(range(1, to.ndim))
        fit = (to * away).sum(dim=axes, keepdim=True) / ((away**2).sum(dim=axes, keepdim=True) + 1e-8)
        return away * fit + scale * (to - away * fit)

    return Guidance(SIDES, combine)


def tangential(scale: float, negative_scale: float | None, own: None) -> Guidance:
    """Tangential damping (Kwon et al. 2025, arXiv:2503.18137): of the negative output, what lies along the first singular
    vector of both."""

    def combine(outputs: Outputs, at: Moment) -> Tensor:
        away, to = outputs[NEGATIVE], outputs[POSITIVE]
        both = torch.stack([to, away], dim=1).flatten(2)
        first = torch.linalg.svd(both, full_matrices=False).Vh[:, :1]
        kept = (away.flatten(1)[:, None] @ first.mT @ first).reshape(away.shape)
        return kept + scale * (to - kept)

    return Guidance(SIDES, combine)
