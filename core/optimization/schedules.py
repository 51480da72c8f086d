"""Learning rate schedules as pure functions of the step: nothing to save or resume, and no torch needed to plot them.

The values are those of sd-scripts (transformers' and diffusers' schedules): the first optimizer step is tick 0, so
with warmup its rate is 0.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from core.record.problems import Problem, ProblemsError
from core.settings.optimization.optimizer import OptimizerSettings, relative_steps
from core.settings.optimization.optimizers import averages
from core.settings.optimization.rates import effective_rates, scale_factor
from core.settings.optimization.schedule import ScheduleSettings, read_step_rules, steps_of

if TYPE_CHECKING:
    from torch.optim import Optimizer

    from core.settings.job import TrainJob

FLOOR = 1e-7  # the polynomial's default end (transformers' lr_end)


@dataclass(frozen=True)
class ScheduleInputs:
    """The inputs of a schedule. A tick is an optimizer step; with sd-scripts compatibility each process counts its own.

    tick     position in the run, 0 to total
    total    ticks of the run
    warmup   ticks of the warmup at the start
    decay    ticks of the decay at the end (warmup_stable_decay)
    rate     learning rate to which the polynomial's floor is relative
    """

    settings: ScheduleSettings
    tick: float
    total: int
    warmup: int
    decay: int
    rate: float

    @property
    def progress(self) -> float:
        """Progress from the end of warmup to the last tick, 0 to 1."""
        return min(1.0, (self.tick - self.warmup) / max(1, self.total - self.warmup))

    def argument(self, name: str, default: Any) -> Any:
        """Return one of lr_scheduler_args, or the default."""
        return self.settings.lr_scheduler_args.get(name, default)


def _half_waves(part: float, cycles: float) -> float:
    """Return the cosine from 1 down to 0 for each of `cycles` half waves, at `part` (0 to 1) of their length."""
    return 0.5 * (1.0 + math.cos(math.pi * cycles * part))


def _restarts(inputs: ScheduleInputs) -> float:
    """Return the factor of cosine_with_restarts after the warmup."""
    part = inputs.progress
    return 0.0 if part >= 1 else _half_waves((inputs.settings.lr_scheduler_num_cycles * part) % 1.0, 1)


def _polynomial(inputs: ScheduleInputs) -> float:
    """Return the factor of polynomial after the warmup, from 1 down to `lr_end` / rate."""
    rate, floor = abs(inputs.rate), inputs.argument("lr_end", FLOOR)
    if rate <= floor:  # nothing to decay to
        return 1.0
    remaining = (1.0 - inputs.progress) ** inputs.settings.lr_scheduler_power
    return ((rate - floor) * remaining + floor) / rate


def _cosine(inputs: ScheduleInputs) -> float:
    """Return the factor of cosine after the warmup."""
    return _half_waves(inputs.progress, 2 * inputs.argument("num_cycles", 0.5))


def _inverse_sqrt(inputs: ScheduleInputs) -> float:
    """Return the factor of inverse_sqrt after the warmup."""
    scale = inputs.settings.lr_scheduler_timescale or inputs.warmup or 10_000
    return 1.0 / math.sqrt(max(1e-12, (inputs.tick + scale - inputs.warmup) / scale))


def _cosine_with_min_lr(inputs: ScheduleInputs) -> float:
    """Return the factor of cosine_with_min_lr after the warmup."""
    low = inputs.settings.lr_scheduler_min_lr_ratio or inputs.argument("min_lr", 0.0) / (abs(inputs.rate) or 1.0)
    return _half_waves(inputs.progress, inputs.settings.lr_scheduler_num_cycles) * (1 - low) + low


def _stable_decay(inputs: ScheduleInputs) -> float:
    """Return the factor of warmup_stable_decay after the warmup."""
    low = inputs.settings.lr_scheduler_min_lr_ratio or 0.0
    into = inputs.tick - (inputs.total - inputs.decay)  # a decay longer than the time after warmup is shortened
    if into < 0:
        return 1.0
    if into >= inputs.decay:
        return low
    part = into / inputs.decay
    curves = {
        "linear": 1.0 - part,
        "cosine": _half_waves(part, inputs.settings.lr_scheduler_num_cycles),
        "1-sqrt": 1.0 - math.sqrt(part),
    }
    return max(0.0, curves[inputs.argument("decay_type", "cosine")]) * (1 - low) + low


def _rex(inputs: ScheduleInputs) -> float:
    """Return the factor of REX (Chen et al. 2021, arXiv:2107.04197), which has 1/2 for `rex_d`."""
    remaining, d = 1.0 - inputs.progress, inputs.settings.rex_d
    return remaining / (1 - d + d * remaining)


def _piecewise(inputs: ScheduleInputs) -> float:
    """Return the factor of piecewise_constant at this tick."""
    rules, last = read_step_rules(inputs.settings.lr_scheduler_args.get("step_rules", ""))
    return next((factor for factor, until in rules if inputs.tick < until), last)


# after warmup
SCHEDULES: dict[str, Callable[[ScheduleInputs], float]] = {
    "constant": lambda inputs: 1.0,
    "constant_with_warmup": lambda inputs: 1.0,
    "cosine": _cosine,
    "linear": lambda inputs: 1.0 - inputs.progress,
    "cosine_with_restarts": _restarts,
    "polynomial": _polynomial,
    "inverse_sqrt": _inverse_sqrt,
    "cosine_with_min_lr": _cosine_with_min_lr,
    "warmup_stable_decay": _stable_decay,
    "rex": _rex,
    "piecewise_constant": _piecewise,
    "adafactor": lambda inputs: 1.0,
}
NO_WARMUP = ("piecewise_constant", "adafactor")


def _warmup_factor(inputs: ScheduleInputs) -> float:
    """Return the factor of the learning rate during the warmup, 0 to 1."""
    part = (inputs.tick + (0 if inputs.settings.lr_warmup_from_zero else 1)) / inputs.warmup
    if inputs.settings.lr_scheduler != "warmup_stable_decay":
        return part
    low = inputs.settings.lr_scheduler_min_lr_ratio or 0.0
    curves = {"linear": part, "cosine": 1.0 - _half_waves(part, 1), "1-sqrt": 1.0 - math.sqrt(max(0.0, 1.0 - part))}
    return low + (1 - low) * curves[inputs.argument("warmup_type", "linear")]


class LrSchedule:
    """The learning rate schedule of a run of `total` optimizer steps, warmup included; later steps keep the last value.

    With `lr_scheduler_steps` the schedule has this length; the remaining steps keep its last rate or begin another schedule.

    processes   number of processes. Used only with compatibility: in sd-scripts each step is a tick for each process
    """

    def __init__(self, settings: ScheduleSettings, total: int, processes: int = 1):
        self._settings, self._kohya = settings, settings.compatibility == "kohya"
        self._ticks = processes if self._kohya else 1  # per step
        self._length = settings.lr_scheduler_steps or 0
        self._next: LrSchedule | None = None
        if self._length:
            if settings.lr_scheduler_after == "restart" and total > self._length:
                without_steps = settings.model_copy(update={"lr_scheduler_steps": None})
                self._next = LrSchedule(without_steps, total - self._length, processes)
            total = self._length
        self._total = total * self._ticks
        warms = settings.lr_scheduler not in NO_WARMUP
        self._warmup = steps_of(settings.lr_warmup_steps, self._total) if warms else 0
        self._decay = steps_of(settings.lr_decay_steps, self._total)

    def at(self, step: int, base_rate: float = 1e-4, reference_rate: float | None = None) -> float:
        """Return the factor of a group's learning rate at optimizer step `step`, counted from 0.

        base_rate       the group's rate, used by the polynomial's floor and torch's cyclic schedules
        reference_rate  the job's learning rate, on which sd-scripts bases the polynomial of every group
        """
        if self._next and step >= self._length:
            return self._next.at(step - self._length, base_rate, reference_rate)
        settings, tick = self._settings, self._limited_step(step) * self._ticks
        if settings.lr_scheduler_type:
            from core.optimization.torch_schedules import simulated

            return simulated(settings.lr_scheduler_type, settings.lr_scheduler_args, tick, self._total, base_rate)
        rate = reference_rate if self._kohya and reference_rate is not None else base_rate
        inputs = ScheduleInputs(settings, tick, self._total, self._warmup, self._decay, rate)
        if tick < self._warmup:
            return _warmup_factor(inputs)
        factor, low = SCHEDULES[settings.lr_scheduler](inputs), settings.min_ratio
        return low + (1 - low) * factor if low else factor

    def _limited_step(self, step: int) -> int:
        """Return the step, limited to the schedule's `lr_scheduler_steps`."""
        return min(step, self._length - 1) if self._length else step

    def momentum(self, step: int, base_rate: float) -> float | None:
        """Return the momentum that some of torch's schedules set along with the rate; None if the schedule does not set it."""
        if self._next and step >= self._length:
            return self._next.momentum(step - self._length, base_rate)
        settings = self._settings
        if not settings.lr_scheduler_type:
            return None
        from core.optimization.torch_schedules import simulated_momentum

        tick = self._limited_step(step) * self._ticks
        return simulated_momentum(settings.lr_scheduler_type, settings.lr_scheduler_args, tick, self._total, base_rate)


# -- rates


def without_schedule(optimizer: OptimizerSettings) -> bool:
    """Return whether the optimizer ignores the schedule: AdaFactor with relative steps, and schedule-free ones."""
    return relative_steps(optimizer) or averages(optimizer.optimizer_type)


class Rates:
    """The learning rates of a run at each step, from its settings. total: optimizer steps"""

    def __init__(self, job: TrainJob, total: int, processes: int = 1):
        optimizer = job.optimizer
        self._schedule = None if without_schedule(optimizer) else LrSchedule(job.schedule, total, processes)
        self._relative = relative_steps(optimizer)
        # The first of AdaFactor's relative steps, which then rise.
        self._first = 1e-6 if optimizer.optimizer_args.get("warmup_init") else None
        self._reference = optimizer.learning_rate * scale_factor(job, processes)

    def at(self, step: int, base_rates: Mapping[str, float]) -> dict[str, float]:
        """Return {group: learning rate at optimizer step `step`, counted from 0}. base_rates: {group: base rate, scale_lr included}

        AdaFactor's relative step is returned before scaling by the size of the weights (transformers' Adafactor,
        `_get_lr`).
        """
        if self._relative:
            first = self._first * (step + 1) if self._first else 1e-2
            return dict.fromkeys(base_rates, min(first, 1.0 / math.sqrt(step + 1)))
        if self._schedule is None:
            return dict(base_rates)
        return {name: rate * self._schedule.at(step, rate, self._reference) for name, rate in base_rates.items()}

    def for_optimizer(self, optimizer: Optimizer, step: int) -> dict[str, float]:
        """Return {group name: learning rate at this step, counted from 0} for the optimizer's groups."""
        return self.at(step, {group["name"]: group.get("initial_lr", 0.0) for group in optimizer.param_groups})

    def set(self, optimizer: Optimizer, step: int) -> dict[str, float]:
        """Set the learning rates of this step in the optimizer, each from its group's `initial_lr`; return {group name: rate}."""
        rates = self.for_optimizer(optimizer, step)
        if self._relative:
            return rates
        for group in optimizer.param_groups:
            group["lr"] = rates[group["name"]]
            if self._schedule is None or not ("betas" in group or "momentum" in group):
                continue
            momentum = self._schedule.momentum(step, group.get("initial_lr", 0.0))
            if momentum is not None and "betas" in group:
                group["betas"] = (momentum, *group["betas"][1:])
            elif momentum is not None:
                group["momentum"] = momentum
        return rates


def schedule_problems(job: TrainJob, total: int) -> list[Problem]:
    """Return the problems of a scheduler of torch with its arguments, which only its creation finds; [] for others. total: optimizer
    steps"""
    try:
        Rates(job, total).at(0, effective_rates(job) if job.schedule.lr_scheduler_type else {})
    except ProblemsError as error:
        return error.problems
    return []


def curve(job: TrainJob, total: int, points: int = 200, processes: int = 1) -> list[tuple[int, dict[str, float]]]:
    """Return [(step, {part: learning rate})] of at most `points` steps from the first to the last, for a chart: the rates of the
    training."""
    rates, base_rates = Rates(job, total, processes), effective_rates(job, processes)
    return [(step, rates.at(step, base_rates)) for step in _spread(total, points)]


def _spread(total: int, points: int) -> Sequence[int]:
    """Return at most `points` steps at even intervals from 0 to total - 1."""
    if total <= points:
        return range(total)
    return sorted({round(number * (total - 1) / (points - 1)) for number in range(points)})
