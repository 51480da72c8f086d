"""Length and the learning-rate curve."""

from __future__ import annotations

from collections.abc import Iterator

from core.record.problems import Problem
from core.settings.job import TrainJob


def problems(job: TrainJob) -> Iterator[Problem]:
    total, warmup = job.schedule.max_train_steps, job.schedule.lr_warmup_steps
    if total is not None and warmup >= total > 0 and warmup > 0:
        what = f"The warm-up ({warmup} steps) lasts the whole run ({total} steps)"
        yield Problem(what, "schedule.lr_warmup_steps", "shorten it", "advice")


def without_effect(job: TrainJob) -> Iterator[tuple[str, str]]:
    if job.schedule.max_train_steps is not None:
        yield "schedule.max_train_epochs", "ignored: steps are set"
