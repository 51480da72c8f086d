"""What groups of settings answer about themselves (active, traits, rates, ...) for random values."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from dataclasses import is_dataclass
from random import Random
from typing import Any

from pydantic import BaseModel, ValidationError

from core import extensions
from core.settings.base import Declared, declared
from core.settings.job import JOBS
from tests.facts.jobs import sampled
from tests.facts.samples import figures
from tests.facts.store import Facts, digest, producer, refused

TRIED = 60


def groups() -> dict[type[BaseModel], list[Declared]]:
    """{class of a group: its settings} of all tasks."""
    extensions.load()
    found: dict[type[BaseModel], list[Declared]] = {}
    for model in JOBS.values():
        for entry in declared(model):
            kind = model.model_fields[entry.group].annotation
            assert isinstance(kind, type)
            entries = found.setdefault(kind, [])
            if entry.name not in [each.name for each in entries]:
                entries.append(entry)
    return found


def made(kind: type[BaseModel], entries: list[Declared], seed: int) -> BaseModel:
    """A group of random values: about half of the settings, without those that it refuses."""
    values = {}
    for entry in entries:
        draw = Random(f"{kind.__name__} {entry.name} {seed}")
        if draw.random() < 0.5:
            values[entry.name] = sampled(entry, draw)
    while True:
        try:
            return kind.model_validate(values)
        except ValidationError as error:
            refused_names = {each["loc"][0] for each in error.errors() if each["loc"]}
            values = (
                {name: value for name, value in values.items() if name not in refused_names} if refused_names else {}
            )


def shown(group: BaseModel, name: str) -> Any:
    value = getattr(group, name)
    value = value() if callable(value) else value
    if isinstance(value, bool):
        return int(value)
    if isinstance(value, str):
        return figures(value) if value.count(" ") > 1 else value
    if isinstance(value, Iterator):
        return [each[0] if name == "without_effect" else each for each in value]
    if isinstance(value, list) and value and isinstance(value[0], BaseModel):
        return len(value)
    return digest(value) if is_dataclass(value) else value


def asked(member: Any) -> bool:
    """Whether it is a property or a method without arguments of core."""
    function = member.fget if isinstance(member, property) else member
    if not inspect.isfunction(function) or not function.__module__.startswith("core."):
        return False
    return not function.__name__.startswith("_") and len(inspect.signature(function).parameters) == 1


@producer
def answers() -> Facts:
    """Each property of each group, and what it says in short."""
    for kind, entries in groups().items():
        tried = [made(kind, entries, seed) for seed in range(TRIED)]
        for name, _ in inspect.getmembers(kind, asked):
            found = [refused(shown, each, name) for each in tried]
            whole = all(isinstance(answer, int) and answer in (0, 1) for answer in found)
            yield (
                f"{kind.__module__}.{kind.__name__}.{name}".removeprefix("core.settings."),
                "".join(map(str, found)) if whole else found,
            )
