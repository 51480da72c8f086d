"""The random tensors of a training step, addressed by picture.

A draw depends on (seed, purpose, epoch, picture, repeat) alone: the same picture meets the same noise however large the
batch is, however many processes share it, and wherever the run was resumed. `picture` is (source id, relative path).
All draws are float32 on the CPU; the caller moves them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from core.record.draws import normal

if TYPE_CHECKING:
    import torch
    from torch import Tensor

Picture = tuple[str, ...]


def draw_noise(shape: Sequence[int], seed: int, epoch: int, picture: Picture, repeat: int) -> Tensor:
    """The noise a picture is mixed with: standard normal, float32 `shape` = [C, H, W] of its latents."""
    return normal(tuple(shape), seed, "noise", epoch, picture, repeat)


def draw_offset_noise(channels: int, seed: int, epoch: int, picture: Picture, repeat: int) -> Tensor:
    """One standard normal number per picture and channel, [C, 1, 1]; `noise_offset` times it shifts the whole picture's
    brightness and colour, so that the model learns very dark and very bright pictures."""
    return normal((channels, 1, 1), seed, "noise_offset", epoch, picture, repeat)


def draw_perturbation(shape: Sequence[int], seed: int, epoch: int, picture: Picture, repeat: int) -> Tensor:
    """Input perturbation (Ning et al. 2023, arXiv:2301.11706): a second standard normal [C, H, W], added to the noise
    the model sees but not to its target."""
    return normal(tuple(shape), seed, "input_perturbation", epoch, picture, repeat)


def stack_draws(draws: Sequence[Tensor], device: torch.device | str) -> Tensor:
    """[C, ...] draws of a batch's pictures as one [B, C, ...] on `device`."""
    import torch

    return torch.stack(list(draws)).to(device, non_blocking=torch.device(device).type == "cuda")
