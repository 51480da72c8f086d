"""How a wrong prediction is counted, element by element, before any mean."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING

from .schedule import TIMESTEPS, sigmas

if TYPE_CHECKING:
    from torch import Tensor

    from core.settings.noise import NoiseSettings

PLAIN_LOSSES: dict[str, Callable[[Tensor], Tensor]] = {"l2": lambda error: error**2, "l1": lambda error: error.abs()}
# Pseudo-Huber forms (Charbonnier et al. 1994): square below c, straight above. The difference of two near numbers costs
# digits of small losses, not of gradients, and is written as sd-scripts writes it, so that losses agree.
HUBER_LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "huber": lambda error, c: 2 * c * ((error**2 + c**2).sqrt() - c),
    "smooth_l1": lambda error, c: 2 * ((error**2 + c**2).sqrt() - c),
}


def element_loss(error_BCHW: Tensor, timesteps: Tensor, alpha_bar_B: Tensor, settings: NoiseSettings) -> Tensor:
    """The loss of each number of the prediction, float32 [B, C, H, W].

    error_BCHW    prediction minus target
    alpha_bar_B   of the schedule in force, float32 [B]
    """
    plain = PLAIN_LOSSES.get(settings.loss_type)
    if plain is not None:
        return plain(error_BCHW)
    c_B = huber_c(timesteps, alpha_bar_B, settings)
    return HUBER_LOSSES[settings.loss_type](error_BCHW, c_B.view(-1, 1, 1, 1))


def huber_c(timesteps: Tensor, alpha_bar_B: Tensor, settings: NoiseSettings) -> Tensor:
    """Huber's c at each timestep, float32 [B] (Khrapov et al. 2024, arXiv:2403.16728).

    With `compatibility = "kohya"` the schedule "snr" leaves `huber_scale` out, as sd-scripts does.
    """
    at = HUBER_SCHEDULES[settings.huber_schedule](timesteps, alpha_bar_B, settings.huber_c)
    unscaled = settings.as_kohya and settings.huber_schedule == "snr"
    return at if unscaled else at * settings.huber_scale


def _constant(timesteps: Tensor, alpha_bar_B: Tensor, c: float) -> Tensor:
    import torch

    return torch.full_like(alpha_bar_B, c)


def _exponential(timesteps: Tensor, alpha_bar_B: Tensor, c: float) -> Tensor:
    """1 at timestep 0, c at the end."""
    return (timesteps.to(alpha_bar_B.dtype) * (math.log(c) / TIMESTEPS)).exp()


def _snr(timesteps: Tensor, alpha_bar_B: Tensor, c: float) -> Tensor:
    """Near 1 where an image is nearly clean, c where it is nothing but noise (sigma infinite)."""
    return (1 - c) / (1 + sigmas(alpha_bar_B)) ** 2 + c


HUBER_SCHEDULES: dict[str, Callable[[Tensor, Tensor, float], Tensor]] = {
    "snr": _snr,
    "exponential": _exponential,
    "constant": _constant,
}
