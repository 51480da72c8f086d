"""Rules on the optimizer, its arguments, and conflicts with settings of other groups."""

from collections.abc import Iterator
from dataclasses import replace

from core.record.problems import Problem
from core.settings.job import TrainJob
from core.settings.needs import ignored
from core.settings.optimization.optimizer import OptimizerSettings, job_arguments, relative_steps
from core.settings.optimization.optimizers import (
    ADAFACTOR,
    COMMON,
    Entry,
    argument_problems,
    averages,
    find,
    type_problem,
)
from core.settings.optimization.schedule import ScheduleSettings

ARGUMENTS = "optimizer.optimizer_args"
SCHEDULER = [name for name in ScheduleSettings.model_fields if name.startswith(("lr_", "rex_"))]

# They divide by the first learning rate, or take their later steps from it.
NOT_FROM_ZERO = (
    "dadaptation.DAdaptSGD",
    "torch.optim.Rprop",
    *(f"pytorch_optimizer.{n}" for n in ("ASGD", "FTRL", "Gravity")),
)


def problems(job: TrainJob) -> Iterator[Problem]:
    """Yield errors and advice on the optimizer's type and arguments, AdaFactor and schedule-free optimizers."""
    settings = job.optimizer
    problem = type_problem(settings.optimizer_type)
    if problem is not None:
        yield problem
        return
    for name in COMMON:
        if getattr(settings, name) is not None and name in settings.optimizer_args:
            what = f"{name} is set twice: {getattr(settings, name)} as a setting and {settings.optimizer_args[name]} as an argument"
            yield Problem(what, f"optimizer.{name}, {ARGUMENTS}", "keep one of them", code="optimizer.argument-twice")
    entry = find(settings.optimizer_type)
    if entry is not None:
        yield from _argument_problems(settings, entry)
        if entry.path == ADAFACTOR:
            yield from _adafactor(job)
        if entry.path in NOT_FROM_ZERO and _starts_at_zero(job.schedule):
            what = f"{entry.name} cannot begin with a learning rate of 0, as a warmup from zero does"
            fix = "turn it off, or set 0 warmup steps"
            yield Problem(what, "schedule.lr_warmup_from_zero", fix, code="optimizer.warmup-from-zero")
        if averages(entry.name) and job.schedule.lr_warmup_steps:
            how = "warmup_steps=100 in its arguments" if "warmup_steps" in entry.arguments else "its own arguments"
            what = f"{entry.name} is schedule-free and ignores the scheduler's warmup"
            yield Problem(
                what, "schedule.lr_warmup_steps", f"use {how}", "advice", code="optimizer.schedule-free-warmup"
            )


def _starts_at_zero(schedule: ScheduleSettings) -> bool:
    """Return whether the schedule has a warmup whose first step has learning rate 0."""
    warms = not schedule.lr_scheduler_type and schedule.lr_scheduler != "piecewise_constant"
    return warms and bool(schedule.lr_warmup_steps) and schedule.lr_warmup_from_zero


def _argument_problems(settings: OptimizerSettings, entry: Entry) -> list[Problem]:
    """Return problems of the optimizer's arguments, including those set by a setting of their own such as weight_decay."""
    common = [name for name in COMMON if getattr(settings, name) is not None and name not in settings.optimizer_args]
    paths = {name: f"optimizer.{name}" for name in common}
    problems = argument_problems(job_arguments(settings), entry.arguments, entry.name, ARGUMENTS, paths)
    instead = {path: entry.arguments[name].accepted for name, path in paths.items() if name in entry.arguments}
    empty = {path: "leave it empty (null)" for path in paths.values()}
    fixes = empty | {path: f"{empty[path]}, or use {words}" for path, words in instead.items()}
    return [replace(each, fix=fixes.get(each.where, each.fix)) for each in problems]


def _adafactor(job: TrainJob) -> Iterator[Problem]:
    """Yield errors and advice on AdaFactor's arguments, warmup, gradient clipping and scheduler."""
    arguments, schedule = job.optimizer.optimizer_args, job.schedule
    if relative_steps(job.optimizer):
        if schedule.lr_warmup_steps:
            what = "AdaFactor with relative_step sets the learning rate and cannot use the scheduler's warmup"
            fix = "set warmup steps to 0 (warmup_init=true is its own warmup), or use relative_step=false"
            yield Problem(what, "schedule.lr_warmup_steps", fix, code="optimizer.adafactor-relative-warmup")
        return
    if arguments.get("warmup_init"):
        what = "AdaFactor's warmup_init needs relative_step"
        fix = "remove warmup_init, or relative_step=false"
        yield Problem(what, ARGUMENTS, fix, code="optimizer.adafactor-warmup-init")
    if job.optimizer.max_grad_norm != 0:
        what = "AdaFactor clips its own updates; gradient clipping on top slows training"
        yield Problem(what, "optimizer.max_grad_norm", "use 0", "advice", code="optimizer.adafactor-clipping")
    if schedule.lr_scheduler != "constant_with_warmup":
        what = "AdaFactor with a fixed learning rate usually trains with a constant scheduler after a warmup"
        fix = "use 'constant with warmup'"
        yield Problem(what, "schedule.lr_scheduler", fix, "advice", code="optimizer.adafactor-scheduler")
    if arguments.get("clip_threshold", 1.0) != 1.0:
        what = f"AdaFactor's clip_threshold is {arguments['clip_threshold']}; 1 is usual"
        yield Problem(what, ARGUMENTS, "remove it", "advice", code="optimizer.adafactor-clip-threshold")


def without_effect(job: TrainJob) -> Iterator[tuple[str, str]]:
    """Yield (dotted path, reason) for scheduler settings that the optimizer ignores: schedule-free ones, and AdaFactor's relative_step."""
    averaged = averages(job.optimizer.optimizer_type)
    by_adafactor = not averaged and relative_steps(job.optimizer)
    but_warmup = [name for name in SCHEDULER if name != "lr_warmup_steps"]
    yield from ignored(
        (averaged, f"schedule.{' '.join(SCHEDULER)}", "this optimizer is schedule-free"),
        (by_adafactor, f"schedule.{' '.join(but_warmup)}", "AdaFactor sets the learning rate (relative_step)"),
    )
