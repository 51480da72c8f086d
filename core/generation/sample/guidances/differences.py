"""Guidance kinds that combine the outputs for prompt and negative prompt differently, by diffusers' formulas."""

import torch
from torch import Tensor
from torch.nn.functional import normalize

from core.generation.sample.guidance import NEGATIVE, POSITIVE, Guidance, Moment, Outputs
from core.settings.generation.guidance import ApgSettings, CfgZeroSettings

SIDES = (NEGATIVE, POSITIVE)


def apg(scale: float, negative_scale: float | None, settings: ApgSettings) -> Guidance:
    """Return adaptive projected guidance (Sadat et al. 2024, arXiv:2410.02416) on the model's output, as in diffusers.

    `negative_scale` is not supported and is ignored.
    """
    average: list[Tensor] = []

    def combine(outputs: Outputs, at: Moment) -> Tensor:
        negative, positive = outputs[NEGATIVE], outputs[POSITIVE]
        difference = positive - negative
        if average and average[0].shape != difference.shape:
            average.clear()  # Gradual Latent has enlarged the latents
        if average:
            difference = difference + settings.apg_momentum * average.pop()
        average.append(difference)
        return negative + scale * projected(difference, positive, settings.apg_eta, settings.apg_threshold)

    return Guidance(SIDES, combine)


def projected(difference: Tensor, positive: Tensor, eta: float, threshold: float) -> Tensor:
    """Limit the norm of `difference` per image to `threshold` (0: no limit), then weight its part parallel to `positive` by `eta`.

    Both tensors [B, ...]; the part orthogonal to `positive` is unchanged.
    """
    axes = list(range(1, difference.ndim))
    if threshold > 0:
        difference = difference * (threshold / torch.linalg.vector_norm(difference, dim=axes, keepdim=True)).clamp(
            max=1
        )
    wide = difference.cpu().double() if difference.device.type == "mps" else difference.double()  # MPS has no float64
    flat = positive.to(wide).flatten(1)
    along = normalize(flat).reshape(positive.shape)
    parallel = (wide * along).sum(dim=axes, keepdim=True) * along
    return (wide - parallel).to(difference) + eta * parallel.to(difference)


def cfg_zero(scale: float, negative_scale: float | None, settings: CfgZeroSettings) -> Guidance:
    """Return CFG-Zero* guidance (Fan et al. 2025, arXiv:2503.18886). Ignores `negative_scale`.

    The negative output is scaled to the prompt's by least squares; the first `cfg_zero_steps` outputs are zero.
    """

    def combine(outputs: Outputs, at: Moment) -> Tensor:
        negative, positive = outputs[NEGATIVE], outputs[POSITIVE]
        if at.index < settings.cfg_zero_steps:
            return torch.zeros_like(positive)
        axes = list(range(1, positive.ndim))
        fit = (positive * negative).sum(dim=axes, keepdim=True) / ((negative**2).sum(dim=axes, keepdim=True) + 1e-8)
        return negative * fit + scale * (positive - negative * fit)

    return Guidance(SIDES, combine)


def tangential(scale: float, negative_scale: float | None, settings: None) -> Guidance:
    """Return guidance with tangential damping (Kwon et al. 2025, arXiv:2503.18137). Ignores `negative_scale`.

    The negative output is projected onto the first singular vector of both outputs.
    """

    def combine(outputs: Outputs, at: Moment) -> Tensor:
        negative, positive = outputs[NEGATIVE], outputs[POSITIVE]
        both = torch.stack([positive, negative], dim=1).flatten(2)
        first = torch.linalg.svd(both, full_matrices=False).Vh[:, :1]
        damped = (negative.flatten(1)[:, None] @ first.mT @ first).reshape(negative.shape)
        return damped + scale * (positive - damped)

    return Guidance(SIDES, combine)
