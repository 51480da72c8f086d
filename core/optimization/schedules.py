"""Learning rate schedules as pure functions of the step: nothing to save or resume, and no torch needed to plot them.

The values are those of sd-scripts (transformers' and diffusers' schedules): the first optimizer step is tick 0, so
with warmup its rate is 0.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from core.settings.optimizer import OptimizerSettings, relative_steps
from core.settings.optimizers import averages
from core.settings.rates import effective_rates, scale_factor
from core.settings.schedule import ScheduleSettings, read_step_rules, steps_of

if TYPE_CHECKING:
    from torch.optim import Optimizer

    from core.settings.job import TrainJob

FLOOR = 1e-7  # the polynomial's default end (transformers' lr_end)


@dataclass(frozen=True)
class Shape:
    """The inputs of a schedule. Ticks are optimizer steps, unless compatibility with several processes stretches them.

    tick 0 .. total  position in the run            warmup, decay  ticks
    rate             the reference of the polynomial's floor
    """

    settings: ScheduleSettings
    tick: float
    total: int
    warmup: int
    decay: int
    rate: float

    @property
    def done(self) -> float:
        """Progress from the end of warmup to the last tick, 0 to 1."""
        return min(1.0, (self.tick - self.warmup) / max(1, self.total - self.warmup))

    def argument(self, name: str, default: Any) -> Any:
        """One of the schedule's extra arguments."""
        return self.settings.lr_scheduler_args.get(name, default)


def _half_waves(part: float, cycles: float) -> float:
    return 0.5 * (1.0 + math.cos(math.pi * cycles * part))


def _restarts(shape: Shape) -> float:
    part = shape.done
    return 0.0 if part >= 1 else _half_waves((shape.settings.lr_scheduler_num_cycles * part) % 1.0, 1)


def _polynomial(shape: Shape) -> float:
    rate, floor = abs(shape.rate), shape.argument("lr_end", FLOOR)
    if rate <= floor:  # nothing to decay to
        return 1.0
    left = (1.0 - shape.done) ** shape.settings.lr_scheduler_power
    return ((rate - floor) * left + floor) / rate


def _cosine(shape: Shape) -> float:
    return _half_waves(shape.done, 2 * shape.argument("num_cycles", 0.5))


def _inverse_sqrt(shape: Shape) -> float:
    scale = shape.settings.lr_scheduler_timescale or shape.warmup or 10_000
    return 1.0 / math.sqrt(max(1e-12, (shape.tick + scale - shape.warmup) / scale))


def _cosine_with_min_lr(shape: Shape) -> float:
    low = shape.settings.lr_scheduler_min_lr_ratio or shape.argument("min_lr", 0.0) / (abs(shape.rate) or 1.0)
    return _half_waves(shape.done, shape.settings.lr_scheduler_num_cycles) * (1 - low) + low


def _stable_decay(shape: Shape) -> float:
    low = shape.settings.lr_scheduler_min_lr_ratio or 0.0
    into = shape.tick - (shape.total - shape.decay)  # a decay longer than the time after warmup is shortened
    if into < 0:
        return 1.0
    if into >= shape.decay:
        return low
    part = into / shape.decay
    fallen = {
        "linear": 1.0 - part,
        "cosine": _half_waves(part, shape.settings.lr_scheduler_num_cycles),
        "1-sqrt": 1.0 - math.sqrt(part),
    }
    return max(0.0, fallen[shape.argument("decay_type", "cosine")]) * (1 - low) + low


def _piecewise(shape: Shape) -> float:
    rules, last = read_step_rules(shape.settings.lr_scheduler_args.get("step_rules", ""))
    return next((factor for factor, until in rules if shape.tick < until), last)


# after warmup
CURVES: dict[str, Callable[[Shape], float]] = {
    "constant": lambda shape: 1.0,
    "constant_with_warmup": lambda shape: 1.0,
    "cosine": _cosine,
    "linear": lambda shape: 1.0 - shape.done,
    "cosine_with_restarts": _restarts,
    "polynomial": _polynomial,
    "inverse_sqrt": _inverse_sqrt,
    "cosine_with_min_lr": _cosine_with_min_lr,
    "warmup_stable_decay": _stable_decay,
    "piecewise_constant": _piecewise,
    "adafactor": lambda shape: 1.0,
}
NO_WARMUP = ("piecewise_constant", "adafactor")


def multiplier(
    settings: ScheduleSettings,
    step: int,
    total: int,
    base_rate: float = 1e-4,
    *,
    reference_rate: float | None = None,
    processes: int = 1,
) -> float:
    """The factor of a group's own rate at optimizer step `step` (the first is 0).

    total           optimizer steps of the whole run including warmup; later steps keep the last value
    base_rate       the group's own rate, used by the polynomial's floor and torch's cyclic schedules
    reference_rate  the job's learning rate, on which sd-scripts bases the polynomial of every group
    processes       sd-scripts counts ticks of all processes, but warmup in ticks: only with compatibility
    """
    kohya = settings.compatibility == "kohya"
    ticks = _ticks(settings, processes)
    if settings.lr_scheduler_type:
        from core.optimization.torch_schedules import simulated

        return simulated(settings.lr_scheduler_type, settings.lr_scheduler_args, step * ticks, total * ticks, base_rate)
    rate = reference_rate if kohya and reference_rate is not None else base_rate
    everything = total * ticks
    shape = Shape(
        settings,
        step * ticks,
        everything,
        0 if settings.lr_scheduler in NO_WARMUP else steps_of(settings.lr_warmup_steps, everything),
        steps_of(settings.lr_decay_steps, everything),
        rate,
    )
    if shape.tick < shape.warmup:
        return _rise(shape)
    return CURVES[settings.lr_scheduler](shape)


def _rise(shape: Shape) -> float:
    part = (shape.tick + (0 if shape.settings.lr_warmup_from_zero else 1)) / shape.warmup
    if shape.settings.lr_scheduler != "warmup_stable_decay":
        return part
    low = shape.settings.lr_scheduler_min_lr_ratio or 0.0
    risen = {"linear": part, "cosine": 1.0 - _half_waves(part, 1), "1-sqrt": 1.0 - math.sqrt(max(0.0, 1.0 - part))}
    return low + (1 - low) * risen[shape.argument("warmup_type", "linear")]


# -- rates


def without_curve(optimizer: OptimizerSettings) -> bool:
    """Whether the optimizer uses no schedule: AdaFactor with relative steps, and schedule-free ones."""
    return relative_steps(optimizer) or averages(optimizer.optimizer_type)


def rates_at(job: TrainJob, step: int, total: int, own: Mapping[str, float], processes: int = 1) -> dict[str, float]:
    """{group: rate at optimizer step `step`, the first is 0} for {group: own rate, scale_lr included}.

    AdaFactor's relative step is given before scaling by the size of the weights (transformers' Adafactor, `_get_lr`).
    """
    if relative_steps(job.optimizer):
        first = 1e-6 * (step + 1) if job.optimizer.optimizer_args.get("warmup_init") else 1e-2
        return dict.fromkeys(own, min(first, 1.0 / math.sqrt(step + 1)))
    if without_curve(job.optimizer):
        return dict(own)
    reference = job.optimizer.learning_rate * scale_factor(job, processes)
    return {
        name: rate * multiplier(job.schedule, step, total, rate, reference_rate=reference, processes=processes)
        for name, rate in own.items()
    }


def set_learning_rates(
    optimizer: Optimizer, job: TrainJob, step: int, total: int, processes: int = 1
) -> dict[str, float]:
    """Set the rates of this step, each group from its own (`initial_lr`); returns {group's name: rate}."""
    rates = group_rates(optimizer, job, step, total, processes)
    if not without_curve(job.optimizer):
        for group in optimizer.param_groups:
            group["lr"] = rates[group["name"]]
            _set_momentum(group, job, step, total, processes)
    return rates


def _set_momentum(group: dict[str, Any], job: TrainJob, step: int, total: int, processes: int) -> None:
    """Some of torch's schedules change the momentum with the rate: momentum itself, or the first beta in Adam variants."""
    schedule = job.schedule
    if not schedule.lr_scheduler_type or not ("betas" in group or "momentum" in group):
        return
    from core.optimization.torch_schedules import simulated_momentum

    ticks, own = _ticks(schedule, processes), group.get("initial_lr", 0.0)
    momentum = simulated_momentum(
        schedule.lr_scheduler_type, schedule.lr_scheduler_args, step * ticks, total * ticks, own
    )
    if momentum is None:
        return
    if "betas" in group:
        group["betas"] = (momentum, *group["betas"][1:])
    else:
        group["momentum"] = momentum


def _ticks(settings: ScheduleSettings, processes: int) -> int:
    """Ticks per step: sd-scripts counts the steps of every process."""
    return processes if settings.compatibility == "kohya" else 1


def group_rates(optimizer: Optimizer, job: TrainJob, step: int, total: int, processes: int = 1) -> dict[str, float]:
    """{group's name: rate at this step}, for reports: the same numbers, without changing anything."""
    own = {group["name"]: group.get("initial_lr", 0.0) for group in optimizer.param_groups}
    return rates_at(job, step, total, own, processes)


def curve(job: TrainJob, total: int, points: int = 200, processes: int = 1) -> list[tuple[int, dict[str, float]]]:
    """[(step, {part: rate})] from the first step to the last, for a chart: the rates used in training."""
    own = effective_rates(job, processes)
    return [(step, rates_at(job, step, total, own, processes)) for step in _spread(total, points)]


def _spread(total: int, points: int) -> Sequence[int]:
    if total <= points:
        return range(total)
    return sorted({round(number * (total - 1) / (points - 1)) for number in range(points)})
