"""Rules on training length and learning rate scheduler."""

from collections.abc import Iterator

from core.record.problems import Problem
from core.settings.job import TrainJob
from core.settings.needs import ignored
from core.settings.optimization.optimizer import relative_steps
from core.settings.optimization.optimizers import argument_problems, averages
from core.settings.optimization.rates import effective_rates
from core.settings.optimization.schedule import ARGUMENTS, FLOORED, MINIMUM, read_step_rules, steps_of
from core.settings.optimization.torch_curves import type_problems

USES = {  # setting -> the schedulers that use it
    "lr_decay_steps": {"warmup_stable_decay"},
    "lr_scheduler_num_cycles": {"cosine_with_restarts", "cosine_with_min_lr", "warmup_stable_decay"},
    "lr_scheduler_power": {"polynomial"},
    "lr_scheduler_timescale": {"inverse_sqrt"},
    "lr_scheduler_min_lr_ratio": {*MINIMUM, *FLOORED},
    "rex_d": {"rex"},
    "lr_scheduler_args": set(ARGUMENTS),
}
FLOORS = ("min_lr", "lr_end", "eta_min")  # arguments of schedulers, where they end
RULES = "write for example step_rules=1:100,0.1:200,0.01: factor 1 until step 100, 0.1 until 200, then 0.01"


def problems(job: TrainJob) -> Iterator[Problem]:
    """Yield errors and advice on the scheduler, its arguments and its length; nothing if the optimizer sets the learning rate."""
    if _sets_own_rate(job):
        return
    schedule = job.schedule
    yield from _floors(job)
    if schedule.lr_scheduler_type:
        yield from _torch_scheduler_problems(job)
        return
    if schedule.lr_scheduler == "adafactor":
        what = "The AdaFactor scheduler needs the AdaFactor optimizer with relative_step"
        fix = "choose another scheduler, or AdaFactor as optimizer"
        yield Problem(what, "schedule.lr_scheduler", fix, code="schedule.adafactor-without-optimizer")
    if schedule.lr_scheduler == "constant" and schedule.lr_warmup_steps:
        what = "The constant scheduler has warmup steps, which sd-scripts rejects: the learning rate is warmed up first"
        fix = "choose 'constant with warmup', which is the same, or set 0 warmup steps"
        yield Problem(what, "schedule.lr_warmup_steps", fix, "advice", code="schedule.constant-warmup")
    lowest = schedule.lr_scheduler_args.get("min_lr")
    if schedule.lr_scheduler == "cosine_with_min_lr" and schedule.lr_scheduler_min_lr_ratio is None and lowest is None:
        what = "Cosine with min LR needs a minimum learning rate"
        fix = "set a fraction of the learning rate, such as 0.1"
        yield Problem(what, "schedule.lr_scheduler_min_lr_ratio", fix, code="schedule.no-min-lr")
    if schedule.lr_scheduler == "warmup_stable_decay" and not schedule.lr_decay_steps:
        what = "warmup-stable-decay has no decay steps, so the learning rate never falls"
        fix = "set a length, such as 20%"
        yield Problem(what, "schedule.lr_decay_steps", fix, "advice", code="schedule.no-decay")
    yield from _arguments(job)


def _floors(job: TrainJob) -> Iterator[Problem]:
    """Yield a warning of an argument that ends the schedule above the learning rate of a part."""
    lowest = min(map(abs, effective_rates(job, job.memory.num_processes).values()), default=0.0)
    for name in FLOORS:
        floor = job.schedule.lr_scheduler_args.get(name)
        if lowest and isinstance(floor, (int, float)) and floor > lowest:
            what = f"The learning rate would never fall: {name} is {floor:g}, above a learning rate of {lowest:g}"
            fix = f"use less than {lowest:g}"
            yield Problem(what, "schedule.lr_scheduler_args", fix, "warning", code="schedule.floor-above-rate")


def _torch_scheduler_problems(job: TrainJob) -> Iterator[Problem]:
    """Yield problems of a scheduler from torch.optim.lr_scheduler: unknown class, arguments, warmup."""
    schedule = job.schedule
    yield from type_problems(schedule.lr_scheduler_type or "", schedule.lr_scheduler_args)
    if schedule.lr_warmup_steps:
        what = f"{schedule.lr_scheduler_type} does not require num_warmup_steps: torch schedulers have no warmup"
        fix = "set it to 0, or use OneCycleLR, which has its own"
        yield Problem(what, "schedule.lr_warmup_steps", fix, code="schedule.torch-warmup")


def _arguments(job: TrainJob) -> Iterator[Problem]:
    """Yield problems of the arguments of one of the built-in schedulers."""
    schedule, where = job.schedule, "schedule.lr_scheduler_args"
    if schedule.lr_scheduler not in ARGUMENTS:
        return
    known = {argument.name: argument for argument in ARGUMENTS[schedule.lr_scheduler]}
    yield from argument_problems(schedule.lr_scheduler_args, known, f"The scheduler {schedule.lr_scheduler}", where)
    if (
        schedule.lr_scheduler == "cosine_with_min_lr"
        and schedule.lr_scheduler_min_lr_ratio is not None
        and schedule.lr_scheduler_args
    ):
        what = "The minimum learning rate is set twice: as a ratio and as min_lr"
        both = f"schedule.lr_scheduler_min_lr_ratio, {where}"
        yield Problem(what, both, "keep one of them", code="schedule.min-lr-twice")
    if schedule.lr_scheduler != "piecewise_constant":
        return
    try:
        read_step_rules(schedule.lr_scheduler_args.get("step_rules", ""))
    except ValueError as error:
        rules = schedule.lr_scheduler_args.get("step_rules")
        what = f"step_rules is '{rules}': {error}" if rules else "The piecewise constant scheduler needs step_rules"
        yield Problem(what, where, RULES, code="schedule.step-rules" if rules else "schedule.no-step-rules")


def length_problems(job: TrainJob, total: int, epochs: int | None) -> Iterator[Problem]:
    """Yield advice on warmup and decay steps that do not fit a run of `total` steps."""
    schedule = job.schedule
    if _sets_own_rate(job) or schedule.lr_scheduler_type:
        return
    warmup, decay = steps_of(schedule.lr_warmup_steps, total), steps_of(schedule.lr_decay_steps, total)
    if warmup >= total and schedule.lr_scheduler != "piecewise_constant":
        what = f"The warmup ({warmup} steps) lasts the whole run ({total} steps)"
        yield Problem(what, "schedule.lr_warmup_steps", "shorten it", "advice", code="schedule.long-warmup")
    elif schedule.lr_scheduler == "warmup_stable_decay" and warmup + decay > total:
        what = f"Warmup ({warmup} steps) and decay ({decay}) are longer than the run ({total}): the start of the decay is cut"
        yield Problem(what, "schedule.lr_decay_steps", "shorten one of them", "advice", code="schedule.long-decay")


def without_effect(job: TrainJob) -> Iterator[tuple[str, str]]:
    """Yield (dotted path, reason) for length and scheduler settings that the chosen scheduler does not use."""
    schedule, by_torch = job.schedule, job.schedule.lr_scheduler_type
    by_steps = schedule.steps_in_force is not None
    longer = not by_steps and schedule.max_train_steps is not None
    yield from ignored(
        (by_steps, "schedule.max_train_epochs", "steps are set"),
        (longer, "schedule.max_train_steps", "epochs are set, which come first in sd-scripts"),
    )
    if _sets_own_rate(job):  # reported by rules/optimizer.py
        return
    of_others = [name for name, schedulers in USES.items() if schedule.lr_scheduler not in schedulers]
    of_ours = [name for name in USES if name != "lr_scheduler_args"]
    floored = schedule.compatibility == "kohya" and schedule.lr_scheduler in FLOORED
    stepwise = schedule.lr_scheduler == "piecewise_constant" and not by_torch
    yield from ignored(
        (by_torch, f"schedule.lr_scheduler {' '.join(of_ours)}", f"the scheduler is {by_torch}"),
        (not by_torch, f"schedule.{' '.join(of_others)}", f"the scheduler {schedule.lr_scheduler} does not use it"),
        (floored, "schedule.lr_scheduler_min_lr_ratio", "sd-scripts does not use it with this scheduler"),
        (schedule.lr_scheduler_steps is None, "schedule.lr_scheduler_after", "the schedule is as long as the run"),
        (stepwise, "schedule.lr_warmup_steps", "the piecewise constant scheduler has no warmup"),
        (not schedule.lr_warmup_steps, "schedule.lr_warmup_from_zero", "there is no warmup"),
    )


def _sets_own_rate(job: TrainJob) -> bool:
    """Return whether the optimizer ignores schedulers: schedule-free ones, and AdaFactor with relative_step."""
    return averages(job.optimizer.optimizer_type) or relative_steps(job.optimizer)
