"""Rules over several settings, one file a topic: what is wrong together, what is worth saying, what has no effect now.

A topic offers `problems(job)`, errors and advice that follow from the settings alone, and `without_effect(job)`, the
settings that change nothing as the others stand, each with the reason.
"""

from __future__ import annotations

from core.record.problems import Problem, limited
from core.settings.base import declared, value_of
from core.settings.job import TrainJob
from core.settings.rules import (
    captions,
    dataset,
    embedding,
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
    embedding,
    memory,
    sharding,
)


def training_problems(job: TrainJob) -> list[Problem]:
    """Errors and advice, before any file is looked at."""
    return limited([problem for topic in TOPICS for problem in topic.problems(job)])


def ineffective(job: TrainJob) -> dict[str, str]:
    """{dotted path: reason}: the page grays these fields with the reason."""
    return {path: reason for topic in TOPICS for path, reason in topic.without_effect(job)}


def set_without_effect(job: TrainJob) -> list[Problem]:
    """Advice for those of them that were set to something: the command line has no fields to gray."""
    defaults = {entry.path: entry.default for entry in declared(TrainJob)}
    return [
        Problem(f"{path} has no effect", path, reason, "advice")
        for path, reason in ineffective(job).items()
        if value_of(job, path) != defaults[path]
    ]
