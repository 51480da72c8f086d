"""The distributions of training timesteps, as inverse CDFs: a uniform number gives a position from 0 (clean) to 1 (noise).

A timestep depends only on (seed, purpose, epoch, image, repeat), like all random numbers of a step (core/diffusion/noise.py).
Imports no torch.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Callable
from functools import cache
from itertools import accumulate, pairwise
from statistics import NormalDist
from typing import TYPE_CHECKING

from core.diffusion.noise import draw_timestep
from core.diffusion.schedule import TIMESTEPS
from core.record.draws import uniform

if TYPE_CHECKING:
    from core.diffusion.noise import Address
    from core.settings.noise import NoiseSettings

GOLDEN, SILVER = (math.sqrt(5) - 1) / 2, math.sqrt(2) - 1  # steps that fill 0 to 1 evenly, of epochs and of repeats
MIN_UNIFORM = 2.0**-60  # a normal distribution has no quantile at 0
POINTS = 2000  # in each half of a table


def _logit_normal(u: float, settings: NoiseSettings) -> float:
    """Return the quantile of the logit-normal distribution at `u`, above 0 and below 1."""
    return 1 / (1 + math.exp(-settings.logit_mean - settings.logit_std * NormalDist().inv_cdf(u)))


def _sigmoid(x: float, weight: float, middle: float) -> float:
    """Return the density, up to a factor, of OneTrainer's sigmoid ramp at position `x`."""
    return 1 / (1 + math.exp(-weight * (x - middle)))


def _parabola(x: float, weight: float, middle: float) -> float:
    """Return the density, up to a factor, of OneTrainer's inverted parabola at position `x`."""
    return max(2 - weight * (x - middle) ** 2, 0.0)


# (position, weight, middle) -> density, up to a factor: OneTrainer's
CURVES: dict[str, Callable[[float, float, float], float]] = {"sigmoid_ramp": _sigmoid, "inverted_parabola": _parabola}


def _beta_quantile(u: float, settings: NoiseSettings) -> float:
    """Return the quantile of the settings' beta distribution at `u`, above 0 and below 1."""
    return _quantile(u, *_beta_table(settings.timestep_alpha, settings.timestep_beta))


def _curve_quantile(u: float, settings: NoiseSettings) -> float:
    """Return the quantile of the settings' density of `CURVES` at `u`, above 0 and below 1."""
    curve = settings.timestep_sampling, settings.noising_weight, settings.noising_bias + 0.5
    return _quantile(u, *_curve_table(*curve))


# (uniform number, above 0 and below 1; settings) -> position
DISTRIBUTIONS: dict[str, Callable[[float, NoiseSettings], float]] = {
    "uniform": lambda u, settings: u,
    # Esser et al. 2024, arXiv:2403.03206, section 3.1: these three
    "logit_normal": _logit_normal,
    "mode": lambda u, settings: u - settings.mode_scale * (math.sin(math.pi * u / 2) ** 2 - u),
    "cosmap": lambda u, settings: 1 - 1 / (math.tan(math.pi * u / 2) + 1),
    "beta": _beta_quantile,
    # Mou et al. 2023, arXiv:2302.08453, section 3.4
    "high_noise": lambda u, settings: 1 - (1 - u) ** 3,
    "low_noise": lambda u, settings: u**3,
    **dict.fromkeys(CURVES, _curve_quantile),
}


def position(settings: NoiseSettings, u: float) -> float:
    """Return the position, 0 (clean) to 1 (noise), for a uniform number `u` from 0 to below 1 by the settings' distribution, shifted by r *
    x / (1 + (r - 1) * x) with r = `timestep_shift`."""
    x, ratio = DISTRIBUTIONS[settings.timestep_sampling](max(u, MIN_UNIFORM), settings), settings.timestep_shift
    return ratio * x / (1 + (ratio - 1) * x)


def timestep_of(settings: NoiseSettings, address: Address) -> int:
    """Return an image's timestep, from `min_timestep` to below `max_timestep`, by the settings' distribution."""
    low, high = settings.min_timestep, settings.max_timestep
    if low >= high or settings.uniform_timesteps:
        return draw_timestep(low, high, *address)
    u = _stratified_number(*address) if settings.stratified_timesteps else uniform(address[0], "timestep", *address[1:])
    return min(low + int(position(settings, u) * (high - low)), high - 1)


def _stratified_number(seed: int, epoch: int, image: tuple[str, ...], repeat: int) -> float:
    """Return a uniform number from 0 to below 1. The numbers of an image's epochs and repeats lie evenly, from a random start of the
    image."""
    return (uniform(seed, "timestep_start", image) + epoch * GOLDEN + repeat * SILVER) % 1.0


def density(settings: NoiseSettings, bands: int = 50, draws: int = 5000) -> list[float]:
    """Return how often each of `bands` equal bands of all timesteps is trained, relative to uniform timesteps: 1 is equally often.
    draws: number of evenly spaced uniform numbers that are counted"""
    low, width = settings.min_timestep, settings.max_timestep - settings.min_timestep
    drawn = [low + position(settings, (number + 0.5) / draws) * width for number in range(draws)]
    below = [bisect_left(drawn, TIMESTEPS * edge / bands) for edge in range(bands)] + [draws]
    return [(after - before) * bands / draws for before, after in pairwise(below)]


def _quantile(u: float, shares: list[float], positions: list[float]) -> float:
    """Return the inverse of a CDF at `u`, interpolated in a table. shares: of the distribution below each of `positions`, both rising"""
    above = min(max(bisect_left(shares, u), 1), len(shares) - 1)
    part = (u - shares[above - 1]) / ((shares[above] - shares[above - 1]) or 1.0)
    return positions[above - 1] + part * (positions[above] - positions[above - 1])


@cache
def _curve_table(name: str, weight: float, middle: float) -> tuple[list[float], list[float]]:
    """Return (CDF values, positions), both rising, of a density of `CURVES`."""
    positions = [number / (2 * POINTS) for number in range(2 * POINTS + 1)]
    values = [CURVES[name](x, weight, middle) for x in positions]
    masses = list(accumulate(((one + next_) / 2 for one, next_ in pairwise(values)), initial=0.0))
    return [mass / masses[-1] for mass in masses], positions


@cache
def _beta_table(alpha: float, beta: float) -> tuple[list[float], list[float]]:
    """Return (CDF values, positions), both rising, of the beta distribution."""
    low, high = _half_of_beta(alpha, beta), _half_of_beta(beta, alpha)
    total = low[0][-1] + high[0][-1]
    shares = [mass / total for mass in low[0]] + [1 - mass / total for mass in reversed(high[0][:-1])]
    return shares, low[1] + [1 - x for x in reversed(high[1][:-1])]


def _half_of_beta(a: float, b: float) -> tuple[list[float], list[float]]:
    """Return (integrals from 0 to x, x) of the density x ** (a - 1) * (1 - x) ** (b - 1), for x from 0 to 0.5.

    If a is below 1, the integral is over x ** a, where the density has no pole.
    """
    power = min(a, 1.0)
    width = 0.5**power / POINTS
    positions = [(number * width) ** (1 / power) for number in range(POINTS + 1)]
    values = [x ** (a - power) * (1 - x) ** (b - 1) / power for x in positions]
    return list(accumulate(((one + next_) / 2 * width for one, next_ in pairwise(values)), initial=0.0)), positions
