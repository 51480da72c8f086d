"""The tasks that train or prepare a training."""

from __future__ import annotations

from core.record.context import JobContext, Outcome
from core.settings.job import PrepareJob, TrainJob


def train(job: TrainJob, context: JobContext) -> Outcome:
    from core.training.start import run_training

    return Outcome(run_training(job, context))


def probe(job: TrainJob, context: JobContext) -> Outcome:
    from core.training.probe import run_probe

    return Outcome(run_probe(job, context))


def prepare(job: PrepareJob, context: JobContext) -> Outcome:
    from core.training.start import prepare_caches

    return Outcome(prepare_caches(job, context))
