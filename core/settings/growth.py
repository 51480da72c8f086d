"""Settings that grow: an extension adds a choice to a setting, and a group of settings of its own to a job."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal, get_args

from pydantic import Field
from pydantic.fields import FieldInfo

from core.settings.base import Job, Settings, about_of, chooser_of


def add_choice(model: type[Settings], name: str, choice: str, label: str) -> None:
    """Let the setting `name` of a group take one more value."""
    info = model.__pydantic_fields__[name]
    if choice not in get_args(info.annotation):
        info.annotation = Literal[(*get_args(info.annotation), choice)]  # type: ignore[assignment]
    about = about_of(info)
    # new ones: groups that inherit the setting share the old
    info.json_schema_extra = {"about": about | {"labels": about["labels"] | {choice: label}}}
    for group in (model, *_listing(model)):
        group.model_rebuild(force=True)
        for job in _jobs_with(group):
            job.model_rebuild(force=True)


def _listing(model: type[Settings]) -> list[type[Settings]]:
    """The groups with a list of it."""
    fields = ((group, info) for group in Settings.__subclasses__() for info in group.model_fields.values())
    return [group for group, info in fields if model in get_args(info.annotation)]


def add_group(beside: type[Settings], name: str, settings: type[Settings], title: str, chosen_by: str = "") -> None:
    """Give the jobs with the group `beside` one more, after it and those that it was given before. chosen_by: the setting
    ("network.kind") whose choice has the group's name; the form shows the group only while it is chosen."""
    jobs = list(_jobs_with(beside))
    assert jobs, f"no job has {beside.__name__} yet: extensions come after core.settings.job"
    for job in jobs:
        info: FieldInfo = Field(default_factory=settings, title=title, json_schema_extra={"chosen_by": chosen_by})  # type: ignore[assignment]
        info.annotation = settings
        _put_after(job.__pydantic_fields__, beside, chosen_by, name, info)
        job.model_rebuild(force=True)


def _put_after(
    fields: dict[str, FieldInfo], beside: type[Settings], chosen_by: str, name: str, info: FieldInfo
) -> None:
    """In place: the order of a job's fields is that of its form, its presets and the docs."""
    before = list(fields.items())
    at = max(
        n for n, (_, each) in enumerate(before) if each.annotation is beside or chooser_of(each) == chosen_by != ""
    )
    fields.clear()
    fields.update([*before[: at + 1], (name, dict(before).get(name, info)), *before[at + 1 :]])


def _jobs_with(group: type[Settings], made_from: type[Job] = Job) -> Iterator[type[Job]]:
    """The jobs that have a group; those made from others come after them."""
    for job in made_from.__subclasses__():
        if any(info.annotation is group for info in job.model_fields.values()):
            yield job
        yield from _jobs_with(group, job)
