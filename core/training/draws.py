"""Everything random of a step, drawn for its images and handed to `training_loss` by name."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from core.diffusion.noise import (
    ImageInfo,
    draw_multires,
    draw_noise,
    draw_offset_noise,
    draw_perturbation,
    draw_strength,
    multires_sizes,
    stack_draws,
)
from core.diffusion.timesteps import draw_timestep

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from core.settings.noise import NoiseSettings

Address = tuple[int, int, ImageInfo, int]  # seed, epoch, image, repeat


def draw_timesteps(settings: NoiseSettings, addresses: Sequence[Address]) -> list[int]:
    """A timestep for each image."""
    return [draw_timestep(settings.min_timestep, settings.max_timestep, *address) for address in addresses]


def draw_noises(settings: NoiseSettings, latents: Tensor, addresses: Sequence[Address]) -> dict[str, Tensor]:
    """The noise of each image and what the settings ask beside it, as keyword arguments of `training_loss`, on the
    device of the latents. Float32, but noise and perturbation as the latents are with `compatibility = "kohya"`.

    latents     [B, C, H, W]; only their form is read
    addresses   of the batch's images. With `compatibility = "kohya"` the first one's decides what sd-scripts draws once
                for a batch: random strengths and the sizes of multi-resolution levels
    """
    import torch

    shape, device = latents.shape[1:], latents.device
    kohya = settings.as_kohya
    shared = [addresses[0]] * len(addresses) if kohya else addresses
    dtype = latents.dtype if kohya else torch.float32
    drawn = {"noise": stack_draws([draw_noise(shape, *address) for address in addresses], device).to(dtype)}
    if settings.noise_offset:
        drawn["offset_noise"] = stack_draws([draw_offset_noise(shape[0], *each) for each in addresses], device)
        if settings.noise_offset_random_strength:
            drawn["offset_strength"] = _strengths("noise_offset", shared, device)
    if settings.multires_noise_iterations is not None:
        drawn["multires_noise"] = _multires(settings, shape, addresses, shared, device)
    if settings.ip_noise_gamma:
        drawn["perturbation_noise"] = stack_draws([draw_perturbation(shape, *each) for each in addresses], device)
        drawn["perturbation_noise"] = drawn["perturbation_noise"].to(dtype)
        if settings.ip_noise_gamma_random_strength:
            drawn["perturbation_strength"] = _strengths("ip_noise_gamma", shared, device)
    return drawn


def _strengths(option: str, addresses: Sequence[Address], device: torch.device) -> Tensor:
    import torch

    return stack_draws([torch.tensor(draw_strength(option, *address)) for address in addresses], device)


def _multires(
    settings: NoiseSettings,
    shape: Sequence[int],
    addresses: Sequence[Address],
    shared: Sequence[Address],
    device: torch.device,
) -> Tensor:
    channels, height, width = shape
    iterations, discount = settings.multires_noise_iterations, settings.multires_noise_discount
    assert iterations is not None
    draws = [
        draw_multires(channels, multires_sizes(height, width, iterations, *sizes_of), discount, *address)
        for address, sizes_of in zip(addresses, shared, strict=True)
    ]
    return stack_draws(draws, device)
