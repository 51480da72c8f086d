"""Values of form fields: parsing and checking typed text, and checking stored values. view.py has the fields' HTML."""

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from functools import cache
from typing import Annotated, Any

from pydantic import TypeAdapter, ValidationError

from core.record.problems import ProblemsError
from core.settings.base import Declared, Settings
from core.settings.check import allowed, invalid_value
from core.settings.dataset.source import ONE_FOR_ALL, SHARED, Source
from core.settings.elsewhere import ELSEWHERE
from core.settings.values import shown_value, value_from
from tabs.form.project import FIELDS
from tabs.form.view import NOTHING, is_path, plain
from tabs.roots import Roots


def entries(model: type[Settings], group: str) -> dict[str, Declared]:
    """Return {name: declaration} of a settings model, as the group `group`."""
    return {name: Declared(f"{group}.{name}", group, name, info) for name, info in model.model_fields.items()}


SOURCE = entries(Source, "source")
GROUPS = {"ImageSettings": "Images", "CaptionSettings": "Captions", "ValidationSettings": "Validation"}
SHARED_NAMES: dict[str, list[str]] = {
    GROUPS[group.__name__]: [name for name in group.model_fields if name not in ONE_FOR_ALL] for group in SHARED
}


def control_input(entry: Declared, text: str) -> Any:
    """Convert a control's text to the input of `value_from`: a bool, a choice of the setting, or the text itself."""
    if entry.kind == "bool":
        return text == "true"
    return next((choice for choice in entry.choices if plain(choice) == text), text)


def read(entry: Declared, text: str, *, optional: bool = False) -> Any:
    """Parse a control's text into a value of the setting. Raises ProblemsError. optional: whether an empty text is None."""
    stripped = text.strip()
    if optional and not stripped:
        return None
    if stripped == NOTHING and entry.kind in ("text", "list"):
        return [] if entry.kind == "list" else ""
    value = control_input(entry, stripped if entry.kind in ("bool", "choice") else text)
    if entry.kind == "choice" and value not in entry.choices:
        raise bad_value(entry, text)
    try:
        return value_from(entry, value)
    except ProblemsError as error:
        raise ProblemsError(replace(each, where=entry.title) for each in error.problems) from None


def bad_value(entry: Declared, text: str, fix: str = "") -> ProblemsError:
    """Return the error for a text that is not a value of this setting; `fix` defaults to the allowed values."""
    what = f"{entry.title} cannot be '{text.strip()[:40]}'"
    return ProblemsError.one(what, entry.title, fix or f"use {allowed(entry)}", code="settings.bad-value")


def settings_text(names: Iterable[str], source: Source) -> str:
    """Return some settings of a dataset folder on one line: "Resolution 768, Random flip on"."""
    return ", ".join(f"{SOURCE[name].title} {shown_value(SOURCE[name], getattr(source, name))}" for name in names)


# -- values


def valid_values(known: Mapping[str, Declared], stored: Any) -> dict[str, Any]:
    """Return the stored values that are valid for the settings `known`. A damaged file, or one of another version, may have others."""
    if not isinstance(stored, Mapping):
        return {}
    return {name: value for name, value in stored.items() if name in known and _is_valid(known[name], value)}


def _is_valid(entry: Declared, value: Any) -> bool:
    """Whether a stored value is valid for a setting."""
    try:
        _validated(entry, value)
    except (ValidationError, TypeError):
        return False
    return True


def _validated(entry: Declared, value: Any) -> Any:
    """Validate a value with pydantic and return it as the setting's value, which may differ: -1 can mean None. Raises ValidationError."""
    kind: Any = Annotated[entry.info.annotation, entry.info]
    return _checker(kind).validate_json(json.dumps(value), strict=True)


_checker: Callable[[Any], TypeAdapter[Any]] = cache(TypeAdapter)


def changed_values(
    known: Mapping[str, Declared], values: Mapping[str, Any], name: str, text: str, roots: Roots
) -> dict[str, Any]:
    """Return `values` with the field `name` set to the parsed text, which is checked without the other fields. Raises ProblemsError.
    known: {name: declaration} of the fields"""
    entry = known[name]
    value = read(entry, text, optional=entry.optional)
    if value and is_path(entry):
        roots.check(value, entry.title)
    try:
        return {**values, name: _validated(entry, value)}
    except ValidationError as error:
        problem = invalid_value(entry.path, error.errors()[0], entry, entry.path)
        raise bad_value(entry, text, problem.fix) from None
    except TypeError:
        raise bad_value(entry, text) from None


def names_elsewhere() -> dict[str, str]:
    """Return {sd-scripts' name without a field in Train: text on where to find it, or why there is none}."""
    on_dataset = {
        name: f"'{entry.title}' is on Dataset, in each folder's settings"
        for entry in SOURCE.values()
        for name in (entry.name, *entry.kohya_names)
    }
    used = {name for entry in FIELDS.values() for name in (entry.name, *entry.kohya_names)}
    return {name: text for name, text in (on_dataset | ELSEWHERE).items() if name not in used}
