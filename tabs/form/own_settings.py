"""Settings of forms by name, and what a person wrote into their fields (view.py draws them) as values."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import replace
from functools import cache
from typing import Annotated, Any

from pydantic import TypeAdapter, ValidationError

from core.record.problems import ProblemsError
from core.settings.base import Declared, Settings
from core.settings.check import allowed
from core.settings.dataset.source import ONE_FOR_ALL, SHARED, Source
from core.settings.elsewhere import ELSEWHERE
from core.settings.values import shown_value, value_from
from tabs.form.project import FIELDS
from tabs.form.view import NOTHING, is_path, plain
from tabs.roots import Roots


def entries(model: type[Settings], group: str) -> dict[str, Declared]:
    """The settings of one model by name."""
    return {name: Declared(f"{group}.{name}", group, name, info) for name, info in model.model_fields.items()}


SOURCE = entries(Source, "source")
GROUPS = {"ImageSettings": "Images", "CaptionSettings": "Captions", "ValidationSettings": "Validation"}
SHARED_NAMES: dict[str, list[str]] = {
    GROUPS[group.__name__]: [name for name in group.model_fields if name not in ONE_FOR_ALL] for group in SHARED
}


def raw(entry: Declared, text: str) -> Any:
    """What a control's text stands for, as `value_from` reads it: whether a switch is on, a choice, else the text."""
    if entry.kind == "bool":
        return text == "true"
    return next((choice for choice in entry.choices if plain(choice) == text), text)


def read(entry: Declared, text: str, *, optional: bool = False) -> Any:
    """The value that a control's text stands for. optional: empty means that nothing is given. Raises ProblemsError."""
    stripped = text.strip()
    if optional and not stripped:
        return None
    if stripped == NOTHING and entry.kind in ("text", "list"):
        return [] if entry.kind == "list" else ""
    given = raw(entry, stripped if entry.kind in ("bool", "choice") else text)
    if entry.kind == "choice" and given not in entry.choices:
        raise refused(entry, text)
    try:
        return value_from(entry, given)
    except ProblemsError as error:
        raise ProblemsError(replace(each, where=entry.title) for each in error.problems) from None


def refused(entry: Declared, text: str) -> ProblemsError:
    """What is said of a text that this setting cannot have."""
    what = f"{entry.title} cannot be '{text.strip()[:40]}'"
    return ProblemsError.one(what, entry.title, f"use {allowed(entry)}", code="settings.bad-value")


def in_words(names: Iterable[str], source: Source) -> str:
    """The folder's own settings in one line: "Resolution 768, Mirror by chance on"."""
    return ", ".join(f"{SOURCE[name].title} {shown_value(SOURCE[name], getattr(source, name))}" for name in names)


# -- values


def usable(known: Mapping[str, Declared], stored: Any) -> dict[str, Any]:
    """Of stored values those that these settings can have: a file of another version, or a damaged one, may hold anything."""
    if not isinstance(stored, Mapping):
        return {}
    return {name: value for name, value in stored.items() if name in known and _can_be(known[name], value)}


def _can_be(entry: Declared, value: Any) -> bool:
    try:
        _checked(entry, value)
    except (ValidationError, TypeError):
        return False
    return True


def _checked(entry: Declared, value: Any) -> Any:
    """The value as the setting has it: -1 may stand for none."""
    kind: Any = Annotated[entry.info.annotation, entry.info]
    return _checker(kind).validate_json(json.dumps(value), strict=True)


@cache
def _checker(kind: Any) -> TypeAdapter[Any]:
    return TypeAdapter(kind)


def changed_values(
    known: Mapping[str, Declared], values: Mapping[str, Any], name: str, text: str, roots: Roots
) -> dict[str, Any]:
    """`values` with one field as a person wrote it; checked alone. Raises ProblemsError."""
    entry = known[name]
    value = read(entry, text, optional=entry.optional)
    if value and is_path(entry):
        roots.check(value, entry.title)
    try:
        return {**values, name: _checked(entry, value)}
    except (ValidationError, TypeError):
        raise refused(entry, text) from None


def names_elsewhere() -> dict[str, str]:
    """{name of sd-scripts that no field of Train has: where it is found, or why there is none}."""
    places = {
        name: f"'{entry.title}' is on Dataset, in each folder's settings"
        for entry in SOURCE.values()
        for name in (entry.name, *entry.kohya_names)
    }
    taken = {name for entry in FIELDS.values() for name in (entry.name, *entry.kohya_names)}
    return {name: words for name, words in (places | ELSEWHERE).items() if name not in taken}
