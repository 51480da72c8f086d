"""Rules over several settings, one file per topic: errors, advice and settings without effect.

Each topic has two functions. `problems(job)` returns errors and advice that follow from the settings alone. `without_effect(job)`
yields (dotted path, reason) for settings that have no effect with the current values of the others, where a declared `needs` does
not already say so. Some have `length_problems(job, total, epochs)`, for what follows from the length of the training.
"""

from core.record.problems import Problem, limited
from core.settings.job import TrainJob
from core.settings.needs import no_effect, unmet_in
from core.settings.rules import (
    captions,
    dataset,
    learning_rate,
    memory,
    method,
    network,
    noise,
    optimizer,
    saving,
    schedule,
    sharding,
    validation,
)

TOPICS = (
    learning_rate,
    network,
    optimizer,
    dataset,
    captions,
    noise,
    schedule,
    saving,
    validation,
    method,
    memory,
    sharding,
)


def training_problems(job: TrainJob) -> list[Problem]:
    """Return the errors and advice that follow from the settings alone, without reading files."""
    problems = [problem for topic in TOPICS for problem in topic.problems(job)]
    total = job.schedule.steps_in_force
    return limited(problems + (length_problems(job, total) if total else []))


def length_problems(job: TrainJob, total: int, epochs: int | None = None) -> list[Problem]:
    """Return the errors and advice that follow from the length of the training. total: steps; epochs: None before the dataset is read"""
    topics = (schedule, method, captions, saving)
    return [problem for topic in topics for problem in topic.length_problems(job, total, epochs)]


def ineffective(job: TrainJob) -> dict[str, str]:
    """Return {dotted path: reason} of settings without effect; the page grays out their fields and shows the reason."""
    by_topic = {path: reason for topic in TOPICS for path, reason in topic.without_effect(job)}
    return dict(unmet_in(job)) | by_topic


def set_without_effect(job: TrainJob) -> list[Problem]:
    """Return advice on settings of a training without effect, as `no_effect`."""
    return no_effect(job, ineffective(job))
