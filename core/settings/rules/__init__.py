"""Rules over several settings, one file per topic: errors, advice and settings without effect.

A topic has `problems(job)`, errors and advice that follow from the settings alone, and `without_effect(job)`, the
settings that have no effect with the current values of the others, each with the reason: those whose reason is more than
what their declaration `needs`.
"""

from core.record.problems import Problem, limited
from core.settings.base import declared, value_of
from core.settings.job import TrainJob
from core.settings.needs import unmet_in
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
    """Errors and advice that follow from the settings alone, without reading files."""
    return limited([problem for topic in TOPICS for problem in topic.problems(job)])


def ineffective(job: TrainJob) -> dict[str, str]:
    """{dotted path: reason} of settings without effect; the page grays out their fields and shows the reason."""
    by_topic = {path: reason for topic in TOPICS for path, reason in topic.without_effect(job)}
    return dict(unmet_in(job)) | by_topic


def set_without_effect(job: TrainJob) -> list[Problem]:
    """Advice on settings without effect that are not at their default, for the command line, which has no fields to gray out."""
    defaults = {entry.path: entry.default for entry in declared(TrainJob)}
    return [
        Problem(f"{path} has no effect", path, reason, "advice", code="settings.no-effect")
        for path, reason in ineffective(job).items()
        if value_of(job, path) != defaults[path]
    ]
