"""Noise made of its parts, and latents mixed with it.

The order is that of sd-scripts: offset, then multi-resolution levels and their common scale, then the perturbation, which
only the input meets. With `compatibility = "kohya"` each tensor keeps its own dtype, so half-precision latents are mixed
in half precision, by an alpha_bar that was rounded to it first; else all is float32.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

    from core.settings.noise import NoiseSettings


def compose_noise(
    noise: Tensor,
    latents: Tensor,
    settings: NoiseSettings,
    offset_noise: Tensor | None,
    offset_strength: Tensor | float,
    multires_noise: Tensor | None,
) -> Tensor:
    """The noise that latents are mixed with and that is the target's, [B, C, H, W].

    offset_noise     standard normal [B, C, 1, 1]
    offset_strength  share of `noise_offset`, one number or [B]
    multires_noise   sum of the levels, [B, C, H, W] (`noise.draw_multires`)
    """
    if offset_noise is not None and settings.noise_offset:
        noise = noise + _offset_size(latents, settings, offset_strength) * offset_noise
    if multires_noise is not None and settings.multires_noise_iterations is not None:
        total = noise + multires_noise
        whole_batch = settings.as_kohya
        noise = total / (total.std() if whole_batch else total.std(dim=(1, 2, 3), keepdim=True))
    return noise


def _offset_size(latents: Tensor, settings: NoiseSettings, strength: Tensor | float) -> Tensor | float:
    """What offset noise is multiplied by: a number, [B, 1, 1, 1], or with the adaptive scale [B, C, 1, 1]."""
    assert settings.noise_offset is not None
    size = settings.noise_offset * per_image(strength)
    if settings.adaptive_noise_scale is None:
        return size
    brightness = latents.mean(dim=(2, 3), keepdim=True).abs()
    return (size + settings.adaptive_noise_scale * brightness).clamp_min(0.0)


def perturbed(
    noise: Tensor, settings: NoiseSettings, perturbation_noise: Tensor | None, strength: Tensor | float
) -> Tensor:
    """The noise that the model is shown: with input perturbation, a little more than its target has."""
    if perturbation_noise is None or not settings.ip_noise_gamma:
        return noise
    return noise + settings.ip_noise_gamma * per_image(strength) * perturbation_noise


def per_image(value: Tensor | float) -> Tensor | float:
    """A number for all images as it is; one for each, [B], as [B, 1, 1, 1]."""
    if isinstance(value, (int, float)) or value.dim() == 0:
        return value
    return value.reshape(-1, 1, 1, 1)


def signal_and_noise(alpha_bar_B: Tensor) -> tuple[Tensor, Tensor]:
    """(a, s) = (alpha_bar ** .5, (1 - alpha_bar) ** .5), [B, 1, 1, 1] each, in the dtype handed in."""
    return alpha_bar_B.sqrt().view(-1, 1, 1, 1), (1.0 - alpha_bar_B).sqrt().view(-1, 1, 1, 1)
