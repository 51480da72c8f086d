"""The random tensors of a training step, addressed by image.

A draw depends on (seed, purpose, epoch, image, repeat) alone: the same image meets the same noise however large the
batch is, however many processes share it, and wherever the run was resumed. `image` is (source id, relative path).
All draws are float32 on the CPU; the caller moves them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from core.record.draws import normal, python_random, uniform
from core.record.queued import queued

if TYPE_CHECKING:
    import torch
    from torch import Tensor

ImageInfo = tuple[str, ...]


def draw_noise(shape: Sequence[int], seed: int, epoch: int, image: ImageInfo, repeat: int) -> Tensor:
    """The noise an image is mixed with: standard normal, float32 `shape` = [C, H, W] of its latents."""
    return normal(tuple(shape), seed, "noise", epoch, image, repeat)


def draw_offset_noise(channels: int, seed: int, epoch: int, image: ImageInfo, repeat: int) -> Tensor:
    """One standard normal number per image and channel, [C, 1, 1]; `noise_offset` times it shifts the whole image's
    brightness and color, so that the model trains very dark and very bright images."""
    return normal((channels, 1, 1), seed, "noise_offset", epoch, image, repeat)


def draw_perturbation(shape: Sequence[int], seed: int, epoch: int, image: ImageInfo, repeat: int) -> Tensor:
    """Input perturbation (Ning et al. 2023, arXiv:2301.11706): a second standard normal [C, H, W], added to the noise
    the model sees but not to its target."""
    return normal(tuple(shape), seed, "input_perturbation", epoch, image, repeat)


def draw_strength(option: str, seed: int, epoch: int, image: ImageInfo, repeat: int) -> float:
    """The share of `option`'s strength ("noise_offset", "ip_noise_gamma") that a random strength leaves, [0, 1)."""
    return uniform(seed, f"{option}_strength", epoch, image, repeat)


def multires_sizes(
    height: int, width: int, iterations: int, seed: int, epoch: int, image: ImageInfo, repeat: int
) -> list[tuple[int, int]]:
    """(height, width) of each level: level i is smaller by r ** i, with an r between 2 and 4 drawn for each. The first is
    as large as the latents; one that is a single row or column is the last."""
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
    """What multi-resolution noise (Whitaker 2023, 'Multi-Resolution Noise for Diffusion Model Training') adds to the
    noise before the sum is divided by its deviation: the levels, enlarged, each `discount` times weaker than the last.

    sizes      of `multires_sizes`; the first is [H, W] of the latents
    returns    float32 [C, H, W]; its first level is a second noise of full size, as in sd-scripts
    """
    from torch.nn.functional import interpolate

    total = None
    for level, size in enumerate(sizes):
        small = normal((1, channels, *size), seed, "multires", epoch, image, repeat, level)
        added = interpolate(small, size=tuple(sizes[0]), mode="bilinear", align_corners=False) * discount**level
        total = added if total is None else total + added
    assert total is not None, "at least one level"
    return total[0]


def stack_draws(draws: Sequence[Tensor], device: torch.device | str) -> Tensor:
    """[C, ...] draws of a batch's images as one [B, C, ...] on `device`."""
    import torch

    return queued(torch.stack(list(draws)), device)
