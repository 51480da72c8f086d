"""k-diffusion's samplers, with the names and values of A1111 and ComfyUI, behind the interface of diffusers' schedulers."""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Sequence
from functools import cache, lru_cache
from itertools import pairwise
from typing import Any

from core.diffusion.noise_levels import LEVELS, level_at, level_table, timestep_at
from core.diffusion.schedule import TIMESTEPS
from core.record.lazy_torch import Tensor, torch

# Yields (latents, level) for each evaluation of the model, is sent (the latents as evaluated, the clean latents that the model
# estimates from them), and returns the latents at the last level.
Run = Generator[tuple[Tensor, float], tuple[Tensor, Tensor], Tensor]
Noise = Callable[[Tensor, float, float], Tensor]  # (latents, level, next level) -> fresh noise of their shape
# (latents = image + levels[0] * noise, falling levels, source of fresh noise) -> a run. Levels may start within a schedule.
Algorithm = Callable[[Tensor, Sequence[float], Noise], Run]
HISTORY = 4  # slopes that LMS knows
ER_POINTS = 200  # of the sums that are ER-SDE's integrals, as in ComfyUI
TCD_GAMMA = 0.3  # TCD's stochasticity, diffusers' default
DIGITS, POOL = 6, 24  # of a Brownian path: to which points are rounded, and words of entropy


def ancestral_levels(sigma: float, sigma_next: float) -> tuple[float, float]:
    """Return (level to step down to, deviation of the fresh noise that leads back up to `sigma_next`) of an ancestral step."""
    up = min(sigma_next, math.sqrt(sigma_next**2 * (sigma**2 - sigma_next**2)) / sigma)
    return math.sqrt(sigma_next**2 - up**2), up


def euler(x: Tensor, levels: Sequence[float], noise: Noise) -> Run:
    """Euler's method: Karras et al. 2022, arXiv:2206.00364, algorithm 2 without churn. On DDIM's levels it equals DDIM. Arguments and
    protocol: see `Algorithm`."""
    for sigma, sigma_next in pairwise(levels):
        x, clean = yield x, sigma
        x = x + (x - clean) / sigma * (sigma_next - sigma)
    return x


def euler_to_first_alpha(x: Tensor, levels: Sequence[float], noise: Noise) -> Run:
    """Euler's method, ending at the lowest level of the training schedule or above. Arguments and protocol: see `Algorithm`."""
    return (yield from euler(x, [*levels[:-1], max(levels[-1], float(_levels_of_training()[0]))], noise))


def euler_ancestral(x: Tensor, levels: Sequence[float], noise: Noise) -> Run:
    """Euler's method with fresh noise at every step. On DDPM's levels it equals DDPM (Ho et al. 2020, arXiv:2006.11239). Arguments and
    protocol: see `Algorithm`."""
    for sigma, sigma_next in pairwise(levels):
        x, clean = yield x, sigma
        down, up = ancestral_levels(sigma, sigma_next)
        x = x + (x - clean) / sigma * (down - sigma)
        if sigma_next:
            x = x + noise(x, sigma, sigma_next) * up
    return x


def heun(x: Tensor, levels: Sequence[float], noise: Noise) -> Run:
    """Heun's method: Karras et al. 2022, arXiv:2206.00364, algorithm 1, with two evaluations a step.

    Arguments and protocol: see `Algorithm`.
    """
    for sigma, sigma_next in pairwise(levels):
        x, clean = yield x, sigma
        slope = (x - clean) / sigma
        if sigma_next:
            ahead, clean = yield x + slope * (sigma_next - sigma), sigma_next
            slope = (slope + (ahead - clean) / sigma_next) / 2
        x = x + slope * (sigma_next - sigma)
    return x


def _midpoint(x: Tensor, sigma: float, sigma_next: float) -> Run:
    """Do a step of DPM-Solver-2 (Lu et al. 2022, arXiv:2206.00927) from level `sigma` to `sigma_next`. Protocol: see `Run`."""
    x, clean = yield x, sigma
    slope, level = (x - clean) / sigma, sigma
    if sigma_next:
        level = math.sqrt(sigma * sigma_next)
        ahead, clean = yield x + slope * (level - sigma), level
        slope = (ahead - clean) / level
    return x + slope * (sigma_next - sigma)


def dpm_2(x: Tensor, levels: Sequence[float], noise: Noise) -> Run:
    """DPM-Solver-2, k-diffusion's sample_dpm_2: two evaluations a step. Arguments and protocol: see `Algorithm`."""
    for sigma, sigma_next in pairwise(levels):
        x = yield from _midpoint(x, sigma, sigma_next)
    return x


def dpm_2_ancestral(x: Tensor, levels: Sequence[float], noise: Noise) -> Run:
    """DPM-Solver-2 with fresh noise at every step. Arguments and protocol: see `Algorithm`."""
    for sigma, sigma_next in pairwise(levels):
        down, up = ancestral_levels(sigma, sigma_next)
        x = yield from _midpoint(x, sigma, down)
        if sigma_next:
            x = x + noise(x, sigma, sigma_next) * up
    return x


def lms(x: Tensor, levels: Sequence[float], noise: Noise) -> Run:
    """The linear multistep method of fourth order; the first steps use the slopes that exist already.

    Arguments and protocol: see `Algorithm`.
    """
    slopes: list[Tensor] = []
    for number, (sigma, sigma_next) in enumerate(pairwise(levels)):
        x, clean = yield x, sigma
        slopes = [(x - clean) / sigma, *slopes[: HISTORY - 1]]
        known = levels[number + 1 - len(slopes) : number + 1][::-1]
        x = x + sum(lms_coefficient(known, index, sigma, sigma_next) * slope for index, slope in enumerate(slopes))
    return x


def lms_coefficient(levels: Sequence[float], index: int, low: float, high: float) -> float:
    """Return the integral from `low` to `high` of the Lagrange polynomial that is 1 at levels[index] and 0 at the other levels.

    Gauss' rule with two points is exact up to degree 3, that is for at most four levels.
    """
    middle, half = (high + low) / 2, (high - low) / 2

    def polynomial(level: float) -> float:
        return math.prod((level - other) / (levels[index] - other) for k, other in enumerate(levels) if k != index)

    return half * (polynomial(middle - half / math.sqrt(3)) + polynomial(middle + half / math.sqrt(3)))


def _exact_step(x: Tensor, clean: Tensor, sigma: float, sigma_next: float) -> Tensor:
    """Return the latents at level `sigma_next`, from `x` at level `sigma`, exact if `clean` are the clean latents."""
    return sigma_next / sigma * x + (1 - sigma_next / sigma) * clean


def _extrapolated_clean(clean: Tensor, last: Tensor | None, before: float, sigma: float, sigma_next: float) -> Tensor:
    """Return the clean latents extrapolated half a step ahead (in log level) of the step from `sigma` to `sigma_next`.
    clean, last: clean latents of this step and of the step before, which began at level `before`; `last` None: return `clean`"""
    if last is None:
        return clean
    return clean + (clean - last) * math.log(sigma / sigma_next) / math.log(before / sigma) / 2


def dpmpp_2m(x: Tensor, levels: Sequence[float], noise: Noise) -> Run:
    """DPM-Solver++ (2M): Lu et al. 2022, arXiv:2211.01095, algorithm 2. Arguments and protocol: see `Algorithm`."""
    last, before = None, 0.0
    for sigma, sigma_next in pairwise(levels):
        x, clean = yield x, sigma
        target = _extrapolated_clean(clean, last, before, sigma, sigma_next) if sigma_next else clean
        x = _exact_step(x, target, sigma, sigma_next)
        last, before = clean, sigma
    return x


def dpmpp_2s_ancestral(x: Tensor, levels: Sequence[float], noise: Noise) -> Run:
    """DPM-Solver++ (2S), Lu et al. 2022, arXiv:2211.01095, algorithm 1, with fresh noise at every step.

    Arguments and protocol: see `Algorithm`.
    """
    for sigma, sigma_next in pairwise(levels):
        x, clean = yield x, sigma
        down, up = ancestral_levels(sigma, sigma_next)
        if down:
            level = math.sqrt(sigma * down)
            _, clean = yield _exact_step(x, clean, sigma, level), level
        x = _exact_step(x, clean, sigma, down)
        if sigma_next:
            x = x + noise(x, sigma, sigma_next) * up
    return x


def dpmpp_sde(x: Tensor, levels: Sequence[float], noise: Noise) -> Run:
    """DPM-Solver++ (SDE): two evaluations a step, with fresh noise at both. Arguments and protocol: see `Algorithm`."""
    for sigma, sigma_next in pairwise(levels):
        x, clean = yield x, sigma
        if not sigma_next:
            return clean
        level = math.sqrt(sigma * sigma_next)
        down, up = ancestral_levels(sigma, level)
        _, clean = yield _exact_step(x, clean, sigma, down) + noise(x, sigma, level) * up, level
        down, up = ancestral_levels(sigma, sigma_next)
        x = _exact_step(x, clean, sigma, down) + noise(x, sigma, sigma_next) * up
    return x


def dpmpp_2m_sde(x: Tensor, levels: Sequence[float], noise: Noise) -> Run:
    """DPM-Solver++ (2M) with fresh noise at every step, in k-diffusion's form "midpoint". Arguments and protocol: see `Algorithm`."""
    last, before = None, 0.0
    for sigma, sigma_next in pairwise(levels):
        x, clean = yield x, sigma
        if not sigma_next:
            return clean
        target = _extrapolated_clean(clean, last, before, sigma, sigma_next)
        x = _with_noise(_exact_step(x, target, sigma**2, sigma_next**2), sigma, sigma_next, noise)
        last, before = clean, sigma
    return x


def dpmpp_3m_sde(x: Tensor, levels: Sequence[float], noise: Noise) -> Run:
    """DPM-Solver++ (3M) with fresh noise at every step. Arguments and protocol: see `Algorithm`."""
    cleans: list[Tensor] = []
    sizes: list[float] = []  # of the steps before, in the logarithm of the level
    for sigma, sigma_next in pairwise(levels):
        x, clean = yield x, sigma
        if not sigma_next:
            return clean
        size = math.log(sigma / sigma_next)
        twice = 2 * size
        phi_2 = math.expm1(-twice) / twice + 1
        step = _exact_step(x, clean, sigma**2, sigma_next**2)
        if cleans:
            first = (clean - cleans[0]) * size / sizes[0]
            if len(cleans) == 2:
                r0, r1 = sizes[0] / size, sizes[1] / size
                bend = (first - (cleans[0] - cleans[1]) / r1) / (r0 + r1)
                first, phi_3 = first + bend * r0, phi_2 / twice - 0.5
                step = step - phi_3 * bend
            step = step + phi_2 * first
        x = _with_noise(step, sigma, sigma_next, noise)
        cleans, sizes = [clean, *cleans[:1]], [size, *sizes[:1]]
    return x


def er_sde(x: Tensor, levels: Sequence[float], noise: Noise) -> Run:
    """ER-SDE-Solver-3: Cui et al. 2023, arXiv:2309.06169; the first two steps are of lower order.

    Arguments and protocol: see `Algorithm`.
    """
    cleans: list[Tensor] = []  # clean latents, slopes and levels of the steps before, the newest first
    slopes: list[Tensor] = []
    before: list[float] = []
    for sigma, sigma_next in pairwise(levels):
        x, clean = yield x, sigma
        if not sigma_next:
            return clean
        share, width = _er_scale(sigma_next) / _er_scale(sigma), (sigma - sigma_next) / ER_POINTS
        step = share * x + (1 - share) * clean
        points = [sigma_next + number * width for number in range(ER_POINTS)]
        if before:
            slope = (clean - cleans[0]) / (sigma - before[0])
            integral = sum(width / _er_scale(point) for point in points)
            step = step + (sigma_next - sigma + integral * _er_scale(sigma_next)) * slope
            if slopes:
                bend = (slope - slopes[0]) / ((sigma - before[1]) / 2)
                integral = sum(width * (point - sigma) / _er_scale(point) for point in points)
                step = step + ((sigma_next - sigma) ** 2 / 2 + integral * _er_scale(sigma_next)) * bend
            slopes = [slope]
        x = step + noise(x, sigma, sigma_next) * math.sqrt(max(sigma_next**2 - (sigma * share) ** 2, 0.0))
        cleans, before = [clean], [sigma, *before[:1]]
    return x


def _er_scale(level: float) -> float:
    """Return the paper's noise scale function 5 (Cui et al. 2023) at a level."""
    return level * (math.exp(level**0.3) + 10)


def _with_noise(x: Tensor, sigma: float, sigma_next: float, noise: Noise) -> Tensor:
    """Add the fresh noise of an SDE step, which has left (sigma_next / sigma) ** 2 of the noise in `x`, so that the level is
    `sigma_next`."""
    return x + noise(x, sigma, sigma_next) * sigma_next * math.sqrt(1 - (sigma_next / sigma) ** 2)


def lcm(x: Tensor, levels: Sequence[float], noise: Noise) -> Run:
    """Latent consistency: Luo et al. 2023, arXiv:2310.04378. Arguments and protocol: see `Algorithm`."""
    for sigma, sigma_next in pairwise(levels):
        _, x = yield x, sigma
        if sigma_next:
            x = x + noise(x, sigma, sigma_next) * sigma_next
    return x


def tcd(x: Tensor, levels: Sequence[float], noise: Noise) -> Run:
    """Trajectory consistency: Zheng et al. 2024, arXiv:2402.19159, algorithm 4. Arguments and protocol: see `Algorithm`."""
    table = _levels_of_training()
    for sigma, sigma_next in pairwise(levels):
        x, clean = yield x, sigma
        if not sigma_next:
            return clean
        timestep = timestep_at(table, torch.tensor(sigma_next))
        down = min(float(level_at(table, timestep * (1 - TCD_GAMMA))), sigma_next)
        x = _exact_step(x, clean, sigma, down) + noise(x, sigma, sigma_next) * math.sqrt(sigma_next**2 - down**2)
    return x


@cache
def _levels_of_training() -> Tensor:
    """Return the noise level of each timestep in training, float64 [1000], rising."""
    return level_table()


class BrownianPath:
    """A Brownian path from `low` to `high`, refined by Brownian bridges between midpoints: torchsde's BrownianTree, with
    the same values whichever points are queried. So the noise depends on the noise levels and not on their number.

    seed     any 64-bit integer
    shape    of the path's value at a point
    device   on which random numbers are drawn
    """

    def __init__(self, seed: int, shape: Sequence[int], low: float, high: float, device: torch.device | str = "cpu"):
        self._seed, self._shape, self._device = seed, tuple(shape), device
        self._ends = round(low, DIGITS), round(high, DIGITS)
        self._total = self._draw() * math.sqrt(high - low)
        self.at = lru_cache(maxsize=4)(self._at)

    def _draw(self, *node: int) -> Tensor:
        """Return standard normal numbers for a node of the tree, (number, depth); without a node, those of the whole path."""
        from numpy.random import SeedSequence

        seed = int(SeedSequence(self._seed, spawn_key=node, pool_size=POOL).generate_state(1)[0])
        generator = torch.Generator(self._device).manual_seed(seed)
        return torch.randn(self._shape, generator=generator, device=self._device)

    def _at(self, point: float) -> Tensor:
        """Return the path's value at a point between its ends; it is 0 at `low`."""
        start, end = self._ends
        point, before, total = min(max(round(point, DIGITS), start), end), torch.zeros_like(self._total), self._total
        number = depth = 0
        while start < point < end:
            middle = round(0.5 * (end + start), DIGITS)
            left, right, size = middle - start, end - middle, end - start
            half = total * (left / size) + math.sqrt(left * right / size) * self._draw(number, depth)
            if point < middle:
                number, end, total = 2 * number, middle, half
            else:
                number, start, before, total = 2 * number + 1, middle, before + half, total - half
            depth += 1
        return before + total if point >= end else before

    def noise(self, sigma: float, sigma_next: float) -> Tensor:
        """Return the noise of the step from level `sigma` down to `sigma_next`, with standard deviation 1."""
        return (self.at(sigma_next) - self.at(sigma)) / math.sqrt(sigma - sigma_next)


class KDiffusion:
    """A k-diffusion algorithm as a diffusers scheduler, for one run of `set_timesteps` and `step`.

    sigmas      noise levels, float32 [steps + 1]
    timesteps   one per evaluation, may be fractional
    order       evaluations per step, except a last step that ends without noise
    step_index  index of the next evaluation; None: found by the timestep of the first `step`
    """

    def __init__(
        self,
        algorithm: Algorithm,
        schedule: str,
        prediction_type: str,
        zero_terminal_snr: bool,
        order: int,
        brownian: bool = False,
        skips: bool = False,
        cfg_pp: bool = False,
    ):
        """algorithm         a function of this module, such as `euler`
        schedule          schedule type, a key of LEVELS
        prediction_type   "epsilon" or "v_prediction"
        order             evaluations of the algorithm per step
        brownian          noise comes from a path determined by the seed, instead of new random numbers at each step
        skips             leave out the lowest level above 0, of a schedule that is one step longer
        cfg_pp            step along the noise of the unguided output: CFG++ (Chung et al. 2024, arXiv:2406.08070)
        """
        from diffusers.configuration_utils import FrozenDict

        self.config = FrozenDict(prediction_type=prediction_type, num_train_timesteps=TIMESTEPS)
        self.order, self._brownian, self._cfg_pp = order, brownian, cfg_pp
        self._step_index: int | None = None
        self._algorithm, self._schedule, self._skips = algorithm, schedule, skips
        self._table = self._device_table = level_table(zero_terminal_snr)
        self.alphas_cumprod = (1 / (1 + self._table**2)).float()
        self._run: Run | None = None
        self._generators: Sequence[torch.Generator] | None = None
        self._paths: list[BrownianPath] = []

    def set_timesteps(self, num_inference_steps: int, device: Any = None) -> None:
        """Set the noise levels and timesteps of a run of this number of steps."""
        levels = LEVELS[self._schedule](self._table, num_inference_steps + self._skips)
        levels = torch.cat([levels[:-2], levels[-1:]]) if self._skips else levels
        self.sigmas = levels.float()
        self._steps: list[float] = levels.tolist()
        self._levels = torch.tensor(_evaluation_levels(self._algorithm, self._steps), dtype=torch.float64)
        self.timesteps = timestep_at(self._table, self._levels).float().to(device)
        self._device_table = self._table.float().to(device)
        self.init_noise_sigma = self._steps[0]

    @property
    def step_index(self) -> int | None:
        return self._step_index

    def set_begin_index(self, begin_index: int = 0) -> None:
        """Set the index of the first evaluation, for a run that starts within the schedule."""
        self._step_index = begin_index

    def _init_step_index(self, timestep: Tensor) -> None:
        """Set the index of a run's first evaluation by its timestep, if no begin index was set."""
        starts = self.timesteps[:: self.order]
        self._step_index = int((starts == timestep).nonzero()[0]) * self.order

    def _level(self, timesteps: Tensor) -> Tensor:
        """Return the noise levels of timesteps, float32, broadcastable to latents."""
        level = level_at(self._device_table, timesteps)
        return level.reshape(*level.shape, *[1] * 3) if level.ndim else level

    def scale_model_input(self, sample: Tensor, timestep: Tensor) -> Tensor:
        """Return the latents divided by (level ** 2 + 1) ** .5, the model's input."""
        return sample / (self._level(timestep) ** 2 + 1) ** 0.5

    def add_noise(self, original_samples: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """Return image latents with noise of the timesteps' levels added."""
        return original_samples + noise * self._level(timesteps)

    def step(
        self,
        model_output: Tensor,
        timestep: Tensor,
        sample: Tensor,
        generator: Sequence[torch.Generator] | None = None,
        return_dict: bool = False,
        unguided: Tensor | None = None,
    ) -> tuple[Tensor]:
        """Return (latents after evaluation `step_index`,), as diffusers' schedulers do. unguided: the unguided output, for CFG++"""
        if self._step_index is None:
            self._init_step_index(timestep)
        assert self._step_index is not None
        self._generators = generator
        if self._run is None:
            steps = self._steps[self._step_index // self.order :]
            if self._brownian:
                assert generator is not None, "its seeds decide the paths"
                ends = min(filter(None, self._steps)), self._steps[0]  # also if a run starts in the middle
                self._paths = [
                    BrownianPath(each.initial_seed(), sample.shape[1:], *ends, each.device) for each in generator
                ]
            self._run = self._algorithm(sample, steps, self._noise)
            next(self._run)
        level = float(self._levels[self._step_index])
        clean = self._clean(model_output, sample, level)
        if self._cfg_pp and unguided is not None:  # the guided image with the unguided noise
            sample = clean + sample - self._clean(unguided, sample, level)
        self._step_index += 1
        try:
            next_latents, _ = self._run.send((sample, clean))
        except StopIteration as end:
            next_latents = end.value
        return (next_latents,)

    def _clean(self, output: Tensor, latents: Tensor, level: float) -> Tensor:
        """Return the clean latents estimated from the model's output for latents of this noise level."""
        if self.config.prediction_type == "v_prediction":
            return latents / (level**2 + 1) - output * level / math.sqrt(level**2 + 1)
        return latents - level * output

    def _noise(self, latents: Tensor, sigma: float, sigma_next: float) -> Tensor:
        """Return fresh noise with standard deviation 1 for the step from level `sigma` to `sigma_next`."""
        from diffusers.utils.torch_utils import randn_tensor

        if self._paths:
            return torch.stack([path.noise(sigma, sigma_next) for path in self._paths]).to(latents)
        return randn_tensor(latents.shape, self._generators, latents.device, latents.dtype)


def _evaluation_levels(algorithm: Algorithm, levels: Sequence[float]) -> list[float]:
    """Return the level of each evaluation of an algorithm that runs over these levels."""
    nothing = torch.zeros(())
    run, evaluated = algorithm(nothing, levels, lambda x, sigma, sigma_next: x), []
    try:
        _, level = next(run)
        while True:
            evaluated.append(level)
            _, level = run.send((nothing, nothing))
    except StopIteration:
        return evaluated
