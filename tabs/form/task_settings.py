"""The settings in a task's form, and the job of the form's values."""

from typing import Any

from core.settings.base import Declared, Settings, declared
from core.settings.check import build
from core.settings.dataset.concepts import captions_in_force
from core.settings.job import TrainJob
from core.settings.presets.files import to_values
from core.tasks import Task, tasks


def form_settings(task: Task) -> dict[str, Declared]:
    """Return {name: declaration} of the settings in a task's form; the path is the name where two have the same name.

    Settings of Train's groups have no field: they are taken from the project.
    """
    entries = [entry for entry in declared(task.job) if entry.group not in TrainJob.model_fields]
    names = [entry.name for entry in entries]
    return {entry.name if names.count(entry.name) == 1 else entry.path: entry for entry in entries}


def titles() -> dict[str, str]:
    """Return {path: title} of the settings in all tasks' forms."""
    entries = (entry for task in tasks().values() for entry in form_settings(task).values())
    return {entry.path: entry.title for entry in entries}


def main_setting(task: Task) -> str:
    """Return the name of the setting with a task's input files; "" if there is none."""
    return next((name for name, entry in form_settings(task).items() if entry.names), "")


def job_of(task: Task, values: dict[str, Any], project: TrainJob) -> Settings:
    """Return the job of a form's values, {name: value}, with Train's groups from the project: captions as they train, with the token of a
    textual inversion as trigger word. Raises ProblemsError."""
    train = to_values(project.model_copy(update={"captions": captions_in_force(project)}))
    groups: dict[str, Any] = {group: train[group] for group in task.job.model_fields if group in train}
    for name, entry in form_settings(task).items():
        if name in values:
            groups.setdefault(entry.group, {})[entry.name] = values[name]
    return build(task.job, groups)
