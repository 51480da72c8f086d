"""Settings that grow: an extension adds a choice to a setting, and a group of settings of its own to a job."""

from __future__ import annotations

from typing import Literal, get_args

from pydantic import Field
from pydantic.fields import FieldInfo

from core.settings.base import Settings


def add_choice(model: type[Settings], name: str, choice: str, label: str) -> None:
    """Let the setting `name` of a group take one more value. Jobs that hold the group are to be rebuilt after it."""
    info = model.__pydantic_fields__[name]
    if choice not in get_args(info.annotation):
        info.annotation = Literal[(*get_args(info.annotation), choice)]  # type: ignore[assignment]
    extra = info.json_schema_extra
    assert isinstance(extra, dict)
    about = extra["about"]
    assert isinstance(about, dict)
    about["labels"] = {**about["labels"], choice: label}  # type: ignore[dict-item]
    model.model_rebuild(force=True)


def add_group(job: type[Settings], name: str, settings: type[Settings], title: str, chosen_by: str = "") -> None:
    """Give a job one more group of settings, after those it has. chosen_by: the setting ("network.kind") whose choice has the
    group's name; the form shows the group only while it is chosen."""
    for each in (job, *job.__subclasses__()):
        info: FieldInfo = Field(default_factory=settings, title=title, json_schema_extra={"chosen_by": chosen_by})  # type: ignore[assignment]
        info.annotation = settings
        each.__pydantic_fields__.setdefault(name, info)
    rebuild(job)


def rebuild(job: type[Settings]) -> None:
    """Let a job, and those made from it, see how its groups are declared now."""
    for each in (job, *job.__subclasses__()):
        each.model_rebuild(force=True)
