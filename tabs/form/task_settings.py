"""The settings that a task's form asks for, and the job that a filled form makes."""

from __future__ import annotations

from typing import Any

from core.settings.base import Declared, Settings, declared
from core.settings.check import build
from core.settings.job import TrainJob
from core.settings.presets.files import to_values
from core.tasks import Task, tasks


def own_settings_of(task: Task) -> dict[str, Declared]:
    """The settings that a task's form asks for, by name; the project's groups hold for the others."""
    entries = [entry for entry in declared(task.job) if entry.group not in TrainJob.model_fields]
    names = [entry.name for entry in entries]
    return {entry.name if names.count(entry.name) == 1 else entry.path: entry for entry in entries}


def titles() -> dict[str, str]:
    """{path: title} of what the forms of tasks ask for."""
    asked = (entry for task in tasks().values() for entry in own_settings_of(task).values())
    return {entry.path: entry.title for entry in asked}


def main_setting(task: Task) -> str:
    """The setting that names what a task works on; "" where there is none."""
    return next((name for name, entry in own_settings_of(task).items() if entry.names), "")


def job_of(task: Task, values: dict[str, Any], project: TrainJob) -> Settings:
    """The job of a filled form. Raises ProblemsError."""
    whole = to_values(project)
    given: dict[str, Any] = {group: whole[group] for group in task.job.model_fields if group in whole}
    for name, entry in own_settings_of(task).items():
        if name in values:
            given.setdefault(entry.group, {})[entry.name] = values[name]
    return build(task.job, given)
