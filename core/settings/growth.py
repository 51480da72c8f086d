"""Extend declared settings: add a choice to a setting, or a group of settings to a job."""

from collections.abc import Iterator
from typing import Literal, get_args

from pydantic import Field
from pydantic.fields import FieldInfo

from core.settings.base import Job, Settings, about_of, chooser_of


def add_choice(model: type[Settings], name: str, choice: str, label: str) -> None:
    """Add `choice`, shown as `label`, to the setting `name` of a group, and rebuild the models that contain the group."""
    info = model.__pydantic_fields__[name]
    if choice not in get_args(info.annotation):
        info.annotation = Literal[(*get_args(info.annotation), choice)]  # type: ignore[assignment]
    about = about_of(info)
    # new dicts, since groups that inherit the setting share the old ones
    info.json_schema_extra = {"about": about | {"labels": about["labels"] | {choice: label}}}
    for group in (model, *_groups_with_list_of(model)):
        group.model_rebuild(force=True)
        for job in _jobs_with(group):
            job.model_rebuild(force=True)


def _groups_with_list_of(model: type[Settings]) -> list[type[Settings]]:
    """Return the groups with a setting that is a list of `model`."""
    fields = ((group, info) for group in Settings.__subclasses__() for info in group.model_fields.values())
    return [group for group, info in fields if model in get_args(info.annotation)]


def add_group(after: type[Settings], name: str, settings: type[Settings], title: str, chosen_by: str = "") -> None:
    """Add a group of settings to every job that has the group `after`, behind it and behind earlier groups of the same `chosen_by`.

    name       field of the group in the job
    chosen_by  the setting ("network.kind") that has the group's name as a choice: the form shows the group only if it is chosen
    """
    jobs = list(_jobs_with(after))
    assert jobs, f"no job has {after.__name__} yet: extensions come after core.settings.job"
    for job in jobs:
        info: FieldInfo = Field(default_factory=settings, title=title, json_schema_extra={"chosen_by": chosen_by})  # type: ignore[assignment]
        info.annotation = settings
        _insert_after(job.__pydantic_fields__, after, chosen_by, name, info)
        job.model_rebuild(force=True)


def _insert_after(
    fields: dict[str, FieldInfo], after: type[Settings], chosen_by: str, name: str, info: FieldInfo
) -> None:
    """Insert the field `name` in place, behind the group `after` and groups of the same `chosen_by`. The order of fields is that of forms,
    presets and docs."""
    before = list(fields.items())
    at = max(n for n, (_, each) in enumerate(before) if each.annotation is after or chooser_of(each) == chosen_by != "")
    fields.clear()
    fields.update([*before[: at + 1], (name, dict(before).get(name, info)), *before[at + 1 :]])


def _jobs_with(group: type[Settings], base: type[Job] = Job) -> Iterator[type[Job]]:
    """Yield the job models that have this group, subclasses after their bases."""
    for job in base.__subclasses__():
        if any(info.annotation is group for info in job.model_fields.values()):
            yield job
        yield from _jobs_with(group, job)
