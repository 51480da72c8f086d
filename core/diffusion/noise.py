"""The random tensors of a training step, addressed by image.

A random number depends only on (seed, purpose, epoch, image, repeat): an image gets the same noise for any batch size, any
number of processes, and after resuming. `image` is (source id, relative path). All are drawn as float32 on the CPU; callers move them
to the device.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from core.record.draws import integer, normal, python_random, uniform
from core.record.lazy_torch import Tensor, torch
from core.record.queued import queued

if TYPE_CHECKING:
    from core.settings.noise import NoiseSettings

ImageInfo = tuple[str, ...]
Address = tuple[int, int, ImageInfo, int]  # seed, epoch, image, repeat


@dataclass(frozen=True)
class Noises:
    """All random values for a batch's latents. An option has an effect only if both its setting and its tensor are set.

    noise          standard normal, [B, C, H, W]
    offset         standard normal, [B, C, 1, 1]; to be scaled by `noise_offset` and the adaptive scale
    multires       sum of the upsampled and discounted levels of multi-resolution noise, [B, C, H, W]
    perturbation   standard normal, [B, C, H, W]; to be scaled by `ip_noise_gamma`
    offset_strength, perturbation_strength
                   random factors in 0..1 of `noise_offset` and `ip_noise_gamma`: one number or [B]
    """

    noise: Tensor
    offset: Tensor | None = None
    multires: Tensor | None = None
    perturbation: Tensor | None = None
    offset_strength: Tensor | float = 1.0
    perturbation_strength: Tensor | float = 1.0


def draw_timestep(low: int, high: int, seed: int, epoch: int, image: ImageInfo, repeat: int) -> int:
    """Draw a uniform timestep from [low, high); return `high` if low is not below it, as in sd-scripts 0.10."""
    if low >= high:
        return high
    return integer(low, high, seed, "timestep", epoch, image, repeat)


def draw_noises(settings: NoiseSettings, latents: Tensor, addresses: Sequence[Address]) -> Noises:
    """Draw each image's noise and the other tensors of the settings, on the device of the latents. Float32; with
    `compatibility` noise and perturbation have the latents' dtype.

    latents     [B, C, H, W]; only shape, dtype and device are read
    addresses   of the batch's images. With `compatibility` the first one determines what sd-scripts draws once per batch:
                random strengths and the sizes of multi-resolution levels
    """
    shape, device = latents.shape[1:], latents.device
    shared = [addresses[0]] * len(addresses) if settings.compatibility != "none" else addresses
    dtype = latents.dtype if settings.compatibility != "none" else torch.float32

    def each(draw: Callable[..., Tensor]) -> Tensor:
        return stack_draws([draw(shape, *address) for address in addresses], device).to(dtype)

    noises: dict[str, Any] = {"noise": each(draw_noise)}
    if settings.noise_offset:
        noises["offset"] = stack_draws([draw_offset_noise(shape[0], *address) for address in addresses], device)
        if settings.noise_offset_random_strength:
            noises["offset_strength"] = _strengths("noise_offset", shared, device)
    if settings.multires_noise_iterations is not None:
        noises["multires"] = _multires(settings, shape, addresses, shared, device)
    if settings.ip_noise_gamma:
        noises["perturbation"] = each(draw_perturbation)
        if settings.ip_noise_gamma_random_strength:
            noises["perturbation_strength"] = _strengths("ip_noise_gamma", shared, device)
    return Noises(**noises)


def _strengths(option: str, addresses: Sequence[Address], device: torch.device) -> Tensor:
    """Draw a factor in [0, 1) of an option's strength for each address, [B]."""
    return stack_draws([torch.tensor(draw_strength(option, *address)) for address in addresses], device)


def _multires(
    settings: NoiseSettings,
    shape: Sequence[int],
    addresses: Sequence[Address],
    shared: Sequence[Address],
    device: torch.device,
) -> Tensor:
    """Return the multi-resolution noise of a batch, float32 [B, C, H, W].

    shape       (C, H, W)
    addresses   of each image's noise
    shared      addresses of the sizes of each image's levels: with `compatibility` the first image's for all
    """
    channels, height, width = shape
    iterations, discount = settings.multires_noise_iterations, settings.multires_noise_discount
    assert iterations is not None
    draws = [
        draw_multires(channels, multires_sizes(height, width, iterations, *sizes_of), discount, *address)
        for address, sizes_of in zip(addresses, shared, strict=True)
    ]
    return stack_draws(draws, device)


def draw_noise(shape: Sequence[int], seed: int, epoch: int, image: ImageInfo, repeat: int) -> Tensor:
    """Draw the noise that is added to an image's latents: standard normal, float32 [C, H, W] = `shape`."""
    return normal(tuple(shape), seed, "noise", epoch, image, repeat)


def draw_offset_noise(channels: int, seed: int, epoch: int, image: ImageInfo, repeat: int) -> Tensor:
    """Draw offset noise: one standard normal number per image and channel, [C, 1, 1]. Scaled by `noise_offset` it shifts the whole image's
    brightness and color, so that the model learns very dark and very bright images."""
    return normal((channels, 1, 1), seed, "noise_offset", epoch, image, repeat)


def draw_perturbation(shape: Sequence[int], seed: int, epoch: int, image: ImageInfo, repeat: int) -> Tensor:
    """Draw input perturbation (Ning et al. 2023, arXiv:2301.11706): a second standard normal [C, H, W] = `shape`, added to the noise in the
    model's input but not in the target."""
    return normal(tuple(shape), seed, "input_perturbation", epoch, image, repeat)


def draw_strength(option: str, seed: int, epoch: int, image: ImageInfo, repeat: int) -> float:
    """Draw the random factor in [0, 1) of the strength of an option, "noise_offset" or "ip_noise_gamma"."""
    return uniform(seed, f"{option}_strength", epoch, image, repeat)


def multires_sizes(
    height: int, width: int, iterations: int, seed: int, epoch: int, image: ImageInfo, repeat: int
) -> list[tuple[int, int]]:
    """Return (height, width) of each level of multi-resolution noise, at most `iterations`. Level i is smaller than the latents by r ** i,
    with r drawn between 2 and 4 for each level; level 0 has the latents' size, and the first level with a side of 1 is the last."""
    draw = python_random(seed, "multires_ratio", epoch, image, repeat)
    sizes = []
    for level in range(iterations):
        ratio = (2.0 + 2.0 * draw.random()) ** level
        sizes.append((max(1, int(height / ratio)), max(1, int(width / ratio))))
        if 1 in sizes[-1]:
            break
    return sizes


def draw_multires(
    channels: int,
    sizes: Sequence[tuple[int, int]],
    discount: float,
    seed: int,
    epoch: int,
    image: ImageInfo,
    repeat: int,
) -> Tensor:
    """Draw multi-resolution noise (Whitaker 2023, 'Multi-Resolution Noise for Diffusion Model Training'), float32 [C, H, W]: the sum of the
    upsampled levels, each `discount` times the strength of the one before. It is added to the noise.
    sizes: (height, width) of each level; the first is the latents' size, a second noise of full size as in sd-scripts"""
    from torch.nn.functional import interpolate

    total = None
    for level, size in enumerate(sizes):
        small = normal((1, channels, *size), seed, "multires", epoch, image, repeat, level)
        added = interpolate(small, size=tuple(sizes[0]), mode="bilinear", align_corners=False) * discount**level
        total = added if total is None else total + added
    assert total is not None, "at least one level"
    return total[0]


def stack_draws(draws: Sequence[Tensor], device: torch.device | str) -> Tensor:
    """Return the tensors of a batch's images, [C, ...] each, as one [B, C, ...] on `device`."""
    return queued(torch.stack(list(draws)), device)
