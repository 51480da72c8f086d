"""The noise levels (sigmas) of sampling by schedule type, as in k-diffusion and A1111.

A table holds the level of each timestep, float64 [1000], rising. A schedule is a function of (table, number of steps) that returns
steps + 1 levels, falling; sampling ends at the last one.
"""

import math
from collections.abc import Callable, Sequence
from functools import partial

from core.diffusion.schedule import schedule_in_force, sigmas
from core.record.lazy_torch import Tensor, torch

RHO = 7.0  # of Karras et al. 2022
# Levels for 10 steps of SD 1.5 and of SDXL: Sabour et al. 2024, arXiv:2404.14507
AYS = (14.615, 6.475, 3.861, 2.697, 1.886, 1.396, 0.963, 0.652, 0.399, 0.152, 0.029)
AYS_SDXL = (14.615, 6.315, 3.771, 2.181, 1.342, 0.862, 0.555, 0.380, 0.234, 0.113, 0.029)
TINY = 2.0**-24  # the last alpha_bar of a stretched schedule, as diffusers has it: a level is finite


def level_table(zero_terminal_snr: bool = False) -> Tensor:
    """Return the noise level of each timestep, float64 [1000], rising."""
    table = schedule_in_force(zero_terminal_snr).double()
    table[-1] = max(float(table[-1]), TINY)
    return sigmas(table)


def level_at(table: Tensor, timesteps: Tensor) -> Tensor:
    """Return the levels at timesteps, which may be fractional: the logarithm of the level is interpolated. table: see `level_table`"""
    low = timesteps.floor().clamp(0, len(table) - 1).long()
    high = (low + 1).clamp(max=len(table) - 1)
    return table[low].log().lerp(table[high].log(), timesteps.to(table.dtype) - low).exp()


def timestep_at(table: Tensor, levels: Tensor) -> Tensor:
    """Return the fractional timesteps of levels, the inverse of `level_at`: float64, within the table's range."""
    log_table, log_levels = table.log(), levels.to(table.dtype).log()
    low = (torch.searchsorted(log_table, log_levels, right=True) - 1).clamp(0, len(table) - 2)
    return low + ((log_levels - log_table[low]) / (log_table[low + 1] - log_table[low])).clamp(0, 1)


def _fractions(count: int) -> Tensor:
    """Return `count` evenly spaced numbers from 0 to 1, float64."""
    return torch.linspace(0, 1, count, dtype=torch.float64)


def _with_zero(levels: Tensor) -> Tensor:
    """Return the levels with a final 0 appended."""
    return torch.cat([levels, levels.new_zeros(1)])


def uniform(table: Tensor, steps: int) -> Tensor:
    """Return the levels of evenly spaced timesteps, from the last to the first of the table, and 0: [steps + 1], falling."""
    return _with_zero(level_at(table, (1 - _fractions(steps)) * (len(table) - 1)))


def sgm_uniform(table: Tensor, steps: int) -> Tensor:
    """Return the levels of evenly spaced timesteps from the table's last, without its first, and 0: [steps + 1], falling."""
    return _with_zero(level_at(table, (1 - _fractions(steps + 1)[:-1]) * (len(table) - 1)))


def simple(table: Tensor, steps: int) -> Tensor:
    """Return every n-th level of the table, from the last one down, and 0: [steps + 1], falling."""
    return _with_zero(table[[-1 - int(step * len(table) / steps) for step in range(steps)]])


def karras(table: Tensor, steps: int) -> Tensor:
    """Return levels evenly spaced in level ** (1 / RHO), and 0: [steps + 1], falling. Karras et al. 2022, arXiv:2206.00364, equation 5."""
    low, high = table[0] ** (1 / RHO), table[-1] ** (1 / RHO)
    return _with_zero((high + _fractions(steps) * (low - high)) ** RHO)


def exponential(table: Tensor, steps: int) -> Tensor:
    """Return levels with equal ratios, and 0: [steps + 1], falling."""
    return _with_zero(table[-1].log().lerp(table[0].log(), _fractions(steps)).exp())


def kl_optimal(table: Tensor, steps: int) -> Tensor:
    """Return levels evenly spaced in atan(level): [steps + 1], falling to the table's lowest, as in A1111. Sabour et al. 2024,
    arXiv:2404.14507, equation 12."""
    return table[-1].atan().lerp(table[0].atan(), _fractions(steps + 1)).tan()


def beta(table: Tensor, steps: int) -> Tensor:
    """Return levels at quantiles of a beta distribution between both ends of the table, and 0: [steps + 1], falling. Lee et al. 2024,
    arXiv:2407.12173."""
    shares = torch.tensor(beta_quantiles(steps), dtype=torch.float64)
    return _with_zero(table[0].lerp(table[-1], shares))


def align_your_steps(published: Sequence[float], table: Tensor, steps: int) -> Tensor:
    """Return the published levels within the table's range, the last replaced by 0: [steps + 1], falling. For other numbers of steps the
    logarithm of the level is interpolated."""
    known = torch.tensor(published, dtype=torch.float64).log()
    position = _fractions(steps + 1) * (len(known) - 1)
    low = position.floor().long().clamp(max=len(known) - 2)
    return _with_zero(known[low].lerp(known[low + 1], position - low).exp()[:-1].clamp(table[0], table[-1]))


LEVELS: dict[str, Callable[[Tensor, int], Tensor]] = {
    "uniform": uniform,
    "karras": karras,
    "exponential": exponential,
    "sgm": sgm_uniform,
    "simple": simple,
    "normal": uniform,  # A1111's name for it
    "kl_optimal": kl_optimal,
    "beta": beta,
    "ays": partial(align_your_steps, AYS),
    "ays_sdxl": partial(align_your_steps, AYS_SDXL),
}
OF_FAMILIES = {("ays", "sdxl"): "ays_sdxl"}  # (schedule type, model family) -> its levels


def beta_quantiles(count: int, alpha: float = 0.6, beta: float = 0.6) -> list[float]:
    """Return `count` quantiles of the beta distribution at equal intervals from 1 to 0.

    The density is integrated over the angle whose squared sine is the variable: there it has no pole.
    """
    angle = torch.linspace(0, math.pi / 2, 20_001, dtype=torch.float64)
    density = angle.sin() ** (2 * alpha - 1) * angle.cos().clamp_min(0) ** (2 * beta - 1)
    total = torch.cumulative_trapezoid(density, angle)
    total = torch.cat([total.new_zeros(1), total]) / total[-1]
    quantiles = torch.linspace(1, 0, count, dtype=torch.float64)
    above = torch.searchsorted(total, quantiles).clamp(1, len(total) - 1)
    share = (quantiles - total[above - 1]) / (total[above] - total[above - 1])
    return ((angle[above - 1] + share * (angle[above] - angle[above - 1])).sin() ** 2).tolist()
