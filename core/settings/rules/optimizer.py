"""The optimizer, its arguments, and what it asks of the rest."""

from __future__ import annotations

from collections.abc import Iterator

from core.record.problems import Problem
from core.settings.job import TrainJob
from core.settings.optimizers import (
    ADAFACTOR,
    COMMON,
    averages,
    find,
    relative_steps,
    settings_problems,
    type_problem,
)
from core.settings.rates import has_frozen_blocks, trains_text, trains_unet

ARGUMENTS = "optimizer.optimizer_args"


def problems(job: TrainJob) -> Iterator[Problem]:
    own = job.optimizer
    problem = type_problem(own.optimizer_type)
    if problem is not None:
        yield problem
        return
    for name in COMMON:
        if getattr(own, name) is not None and name in own.optimizer_args:
            what = f"{name} is given twice: {getattr(own, name)} as a setting and {own.optimizer_args[name]} as an argument"
            yield Problem(what, f"optimizer.{name}, {ARGUMENTS}", "keep one of them")
    entry = find(own.optimizer_type)
    if entry is not None:
        yield from settings_problems(own, entry)
        if entry.path == ADAFACTOR:
            yield from _adafactor(job)
        if averages(entry.name) and job.schedule.lr_warmup_steps:
            how = "warmup_steps=100 in its arguments" if "warmup_steps" in entry.arguments else "its own arguments"
            what = f"{entry.name} is schedule-free: it ignores the warm-up of the curve"
            yield Problem(what, "schedule.lr_warmup_steps", f"use {how}", "advice")


def _adafactor(job: TrainJob) -> Iterator[Problem]:
    arguments, schedule = job.optimizer.optimizer_args, job.schedule
    if relative_steps(job.optimizer):
        if schedule.lr_warmup_steps:
            what = "AdaFactor finds the rate itself (relative_step), and a warm-up cannot be added to that"
            fix = "set the warm-up to 0, and warmup_init=true in its arguments for its own; or relative_step=false"
            yield Problem(what, "schedule.lr_warmup_steps", fix)
        return
    if arguments.get("warmup_init"):
        what = "warmup_init is the warm-up of AdaFactor's own rate, which relative_step=false switches off"
        yield Problem(what, ARGUMENTS, "remove warmup_init, or relative_step=false")
    if job.optimizer.max_grad_norm != 0:
        what = "AdaFactor clips its updates itself; clipping the gradient too slows it"
        yield Problem(what, "optimizer.max_grad_norm", "use 0", "advice")
    if schedule.lr_scheduler != "constant_with_warmup":
        what = "AdaFactor with a given rate is usually trained with a constant rate after a warm-up"
        yield Problem(what, "schedule.lr_scheduler", "use 'constant with warm-up'", "advice")
    if arguments.get("clip_threshold", 1.0) != 1.0:
        what = f"AdaFactor's clip_threshold is {arguments['clip_threshold']}; 1 is usual"
        yield Problem(what, ARGUMENTS, "remove it", "advice")


def without_effect(job: TrainJob) -> Iterator[tuple[str, str]]:
    why = _clipped_the_same(job)
    if why:
        yield "optimizer.compatibility", f"ignored: {why}"
    if averages(job.optimizer.optimizer_type):
        why = "ignored: this optimizer is schedule-free"
        yield from ((f"schedule.{name}", why) for name in CURVE)
    elif relative_steps(job.optimizer):
        why = "ignored: AdaFactor finds the rate itself (relative_step)"
        yield from ((f"schedule.{name}", why) for name in CURVE if name != "lr_warmup_steps")


def _clipped_the_same(job: TrainJob) -> str:
    """Why clipping is the same with sd-scripts' choice; empty where it is another."""
    own = job.optimizer
    if own.max_grad_norm == 0:
        return "nothing is clipped"
    if job.sharding.active:
        return "DeepSpeed clips what trains"
    if job.method.whole_model:
        return "" if has_frozen_blocks(job) else "no block has the rate 0, or the optimizer is within the backward pass"
    unet_rests = trains_unet(job) and own.unet_rate == 0
    if job.method.kind == "lora" and not unet_rests and not (trains_text(job) and 0 in own.text_rates):
        return "no part of the LoRA has the rate 0"
    return ""


CURVE = (
    "lr_scheduler",
    "lr_warmup_steps",
    "lr_decay_steps",
    "lr_scheduler_num_cycles",
    "lr_scheduler_power",
    "lr_scheduler_timescale",
    "lr_scheduler_min_lr_ratio",
    "lr_scheduler_type",
    "lr_scheduler_args",
    "lr_warmup_from_zero",
)
