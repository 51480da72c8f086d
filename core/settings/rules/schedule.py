"""Length and the learning-rate curve."""

from __future__ import annotations

from collections.abc import Iterator

from core.record.problems import Problem
from core.settings.job import TrainJob
from core.settings.optimizers import argument_problems, averages, relative_steps
from core.settings.schedule import ARGUMENTS, read_step_rules, steps_of
from core.settings.torch_curves import type_problems

USES = {  # setting -> the curves that read it
    "lr_decay_steps": {"warmup_stable_decay"},
    "lr_scheduler_num_cycles": {"cosine_with_restarts", "cosine_with_min_lr", "warmup_stable_decay"},
    "lr_scheduler_power": {"polynomial"},
    "lr_scheduler_timescale": {"inverse_sqrt"},
    "lr_scheduler_min_lr_ratio": {"cosine_with_min_lr", "warmup_stable_decay"},
    "lr_scheduler_args": set(ARGUMENTS),
}
RULES = "write for example step_rules=1:100,0.1:200,0.01: rate 1 until step 100, a tenth until 200, then a hundredth"


def problems(job: TrainJob) -> Iterator[Problem]:
    if _own_way(job):
        return
    own = job.schedule
    if own.lr_scheduler_type:
        yield from _of_torch(job)
        return
    if own.lr_scheduler == "adafactor":
        what = "The curve 'AdaFactor's own' is for the optimizer AdaFactor with relative_step"
        yield Problem(what, "schedule.lr_scheduler", "choose another curve, or AdaFactor as optimizer")
    if own.lr_scheduler == "constant" and own.lr_warmup_steps:
        what = "The scheduler is constant and has warmup steps: the rate rises first (sd-scripts refuses this)"
        fix = "choose 'constant with warm-up', which trains the same, or 0 warmup steps"
        yield Problem(what, "schedule.lr_warmup_steps", fix, "advice")
    lowest = own.lr_scheduler_args.get("min_lr")
    if own.lr_scheduler == "cosine_with_min_lr" and own.lr_scheduler_min_lr_ratio is None and lowest is None:
        what = "'cosine to a lowest rate' needs the lowest rate"
        yield Problem(what, "schedule.lr_scheduler_min_lr_ratio", "give it as a part of the rate, such as 0.1")
    yield from _arguments(job)
    yield from _lengths(job)


def _of_torch(job: TrainJob) -> Iterator[Problem]:
    own = job.schedule
    yield from type_problems(own.lr_scheduler_type or "", own.lr_scheduler_args)
    if own.lr_warmup_steps:
        what = f"{own.lr_scheduler_type} does not require num_warmup_steps: torch's curves have no warm-up"
        yield Problem(what, "schedule.lr_warmup_steps", "set it to 0, or use OneCycleLR, which begins with one")


def _arguments(job: TrainJob) -> Iterator[Problem]:
    own, where = job.schedule, "schedule.lr_scheduler_args"
    if own.lr_scheduler not in ARGUMENTS:
        return
    known = {argument.name: argument for argument in ARGUMENTS[own.lr_scheduler]}
    yield from argument_problems(own.lr_scheduler_args, known, f"The curve {own.lr_scheduler}", where)
    if own.lr_scheduler == "cosine_with_min_lr" and own.lr_scheduler_min_lr_ratio is not None and own.lr_scheduler_args:
        what = "The lowest rate is given twice: as a part of the rate, and as min_lr"
        yield Problem(what, f"schedule.lr_scheduler_min_lr_ratio, {where}", "keep one of them")
    if own.lr_scheduler != "piecewise_constant":
        return
    try:
        read_step_rules(own.lr_scheduler_args.get("step_rules", ""))
    except ValueError as error:
        given = own.lr_scheduler_args.get("step_rules")
        what = f"The steps of the curve are '{given}': {error}" if given else "The curve 'in steps' needs its steps"
        yield Problem(what, where, RULES)


def _lengths(job: TrainJob) -> Iterator[Problem]:
    own, total = job.schedule, job.schedule.max_train_steps
    if own.lr_scheduler == "warmup_stable_decay" and not own.lr_decay_steps:
        what = "'constant, then decay' has no decay, so the rate stays to the end"
        yield Problem(what, "schedule.lr_decay_steps", "give it a length, such as 20%", "advice")
    if total is None:
        return
    warmup, decay = steps_of(own.lr_warmup_steps, total), steps_of(own.lr_decay_steps, total)
    if warmup >= total and own.lr_scheduler != "piecewise_constant":
        what = f"The warm-up ({warmup} steps) lasts the whole run ({total} steps)"
        yield Problem(what, "schedule.lr_warmup_steps", "shorten it", "advice")
    elif own.lr_scheduler == "warmup_stable_decay" and warmup + decay > total:
        what = f"Warm-up ({warmup} steps) and decay ({decay}) are longer than the run ({total}): the decay starts late in its curve"
        yield Problem(what, "schedule.lr_decay_steps", "shorten one of them", "advice")


def without_effect(job: TrainJob) -> Iterator[tuple[str, str]]:
    own = job.schedule
    if own.max_train_steps is not None:
        yield "schedule.max_train_epochs", "ignored: steps are set"
    if _own_way(job):  # rules/optimizer.py says it
        return
    if own.lr_scheduler_type:
        yield "schedule.lr_scheduler", f"ignored: the curve is {own.lr_scheduler_type}"
    for name, curves in USES.items():
        if own.lr_scheduler_type and name != "lr_scheduler_args":
            yield f"schedule.{name}", f"ignored: the curve is {own.lr_scheduler_type}"
        elif not own.lr_scheduler_type and own.lr_scheduler not in curves:
            yield f"schedule.{name}", f"ignored: the curve '{own.lr_scheduler}' has no use for it"
    if own.lr_scheduler == "piecewise_constant" and not own.lr_scheduler_type:
        yield "schedule.lr_warmup_steps", "ignored: the curve 'in steps' begins as its steps say"
    if not own.lr_warmup_steps:
        yield "schedule.lr_warmup_from_zero", "ignored: there is no warm-up"


def _own_way(job: TrainJob) -> bool:
    return averages(job.optimizer.optimizer_type) or relative_steps(job.optimizer)
