"""Validate raw values into a job, or list every problem with them."""

import difflib
import json
import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, TypeVar

from pydantic import ValidationError

from core.record.problems import MOST, Problem, ProblemsError, raise_any, whole_text
from core.settings.base import (
    Declared,
    Settings,
    compatibility_values,
    declared,
    item_of,
    settings_called,
)
from core.settings.elsewhere import ELSEWHERE
from core.settings.names import FORBIDDEN_IN_NAMES

Job = TypeVar("Job", bound=Settings)
LONGEST_NAME = 200  # longer names are not compared with the known ones
BOUNDS = {"ge": "{} or more", "le": "{} or less", "gt": "more than {}", "lt": "less than {}"}


def build(model: type[Job], values: dict[str, Any], where: str = "") -> Job:
    """Validate nested values ({"noise": {"min_snr_gamma": 5}}) into a job; missing ones take their default.

    Types are strict, as in JSON: "5" is not a number and 1 is not true. `where` is the file that problems name.
    Raises ProblemsError with all problems.
    """
    try:
        job = model.model_validate_json(whole_text(json.dumps(values, ensure_ascii=False)), strict=True)
    except ValidationError as error:
        raise ProblemsError(explain(model, error, where)) from None
    raise_any(_derived_field_problems(model, values, where))
    return job


def _derived_field_problems(model: type[Settings], values: Mapping[str, Any], where: str) -> list[Problem]:
    """Return an error for each value of a derived field (`follows_compatibility`), which cannot be set."""
    groups = {name: info.annotation for name, info in model.model_fields.items() if isinstance(values.get(name), dict)}
    return [
        Problem(
            f"There is no setting '{group}.{name}'",
            f"{where}, {group}.{name}" if where else f"{group}.{name}",
            "use model.compatibility",
            code="settings.unknown-name",
        )
        for group, kind in groups.items()
        if isinstance(kind, type) and issubclass(kind, Settings)
        for name in compatibility_values(kind)
        if name in values[group]
    ]


def explain(model: type[Settings], error: ValidationError, where: str = "") -> list[Problem]:
    """Convert pydantic's errors to Problems: one per setting, with the nearest known name or the allowed range as the fix."""
    known = {entry.path: entry for entry in declared(model)}
    problems: dict[str, Problem] = {}
    for item in error.errors():
        path = _setting_path(item["loc"], known)
        location = f"{where}, {path}" if where else path
        if path in problems:  # a union reports one error per member
            continue
        if len(problems) > MOST:  # finding the nearest name takes a millisecond each
            problems[path] = Problem(
                f"'{path}' is invalid", location, "fix the others first", code="settings.more-problems"
            )
            continue
        if item["type"] == "extra_forbidden":
            fix = _fix_for_unknown(path, model, _fields_of(path, known) or known)
            problems[path] = Problem(f"There is no setting '{path}'", location, fix, code="settings.unknown-name")
        # a missing number of a pair has its index as location
        elif item["type"] == "missing" and not isinstance(item["loc"][-1], int):
            problems[path] = Problem(f"'{path}' is missing", location, "set a value", code="settings.missing")
        else:
            problems[path] = _bad_item(item, known, location) or invalid_value(path, item, known.get(path), location)
    return list(problems.values())


def _setting_path(loc: tuple, known: dict[str, Declared]) -> str:
    """Return the dotted path of an error location `loc`, without union members and indexes into pairs; indexes into lists stay."""
    names = [str(part) for part in loc]
    first_two = ".".join(names[:2])
    if first_two in known and known[first_two].kind != "list":
        return first_two
    entry = _plain_list(loc, known)
    return ".".join(names[: 4 if item_of(entry) else 3] if entry else names)


def _fields_of(path: str, known: dict[str, Declared]) -> dict[str, Declared]:
    """Return {dotted path: setting} of the list item that `path` is in, such as "controls.nets.0.weight"; {} for other paths."""
    setting, number, _ = path.rsplit(".", 2) if path.count(".") == 3 else ("", "", "")
    item = item_of(known[setting]) if setting in known else None
    fields = item.model_fields if item is not None else {}
    return {
        f"{setting}.{number}.{name}": Declared(f"{setting}[].{name}", "", name, each) for name, each in fields.items()
    }


def _plain_list(loc: tuple, known: dict[str, Declared]) -> Declared | None:
    """Return the list setting that the error location `loc` is an item of; None for other settings."""
    entry = known.get(".".join(str(part) for part in loc[:2]))
    if entry is None or entry.kind != "list" or len(loc) < 3 or not isinstance(loc[2], int):
        return None
    return entry


def _bad_item(item: Mapping[str, Any], known: dict[str, Declared], location: str) -> Problem | None:
    """Return the problem with one item of a list, or a setting of the item; None if the error is in another kind of setting.

    item       pydantic's error
    known      {dotted path: setting}
    location   of the item, for the problem
    """
    entry, number = _plain_list(item["loc"], known), item["loc"][2] if len(item["loc"]) > 2 else 0
    if entry is None:
        return None
    path = _setting_path(item["loc"], known)
    # With the number of the folder for `sources`: imports correct single folders
    where = location if entry.name == "sources" else location.replace(path, entry.path)
    if field := _fields_of(path, known).get(path):
        problem = invalid_value(path, item, field, where)
        return replace(problem, what=f"{entry.title}, item {number + 1}: {problem.what}")
    what = f"{entry.title}: item {number + 1} is {shorten(item['input'])}"
    return Problem(what, where, f"use {_bound(item)}", code="settings.bad-value")


def _bound(item: Mapping[str, Any]) -> str:
    """Return the limit that a value violates as text ("1 or more"), else the expected type ("a whole number"). item: pydantic's error"""
    limits = item.get("ctx", {})
    bounds = [words.format(f"{limits[name]:g}") for name, words in BOUNDS.items() if name in limits]
    kinds = {"int": "a whole number", "string": "text in quotes", "model": "a JSON object of its settings"}
    return bounds[0] if bounds else kinds.get(item["type"].partition("_")[0], "a number")


def invalid_value(path: str, item: Mapping[str, Any], entry: Declared | None, location: str) -> Problem:
    """Return the problem of an invalid value, with the allowed values as the fix.

    path       of the setting
    item       pydantic's error
    entry      the setting; None if `path` is not a known one
    location   for the problem: `path`, or one with the file's name
    """
    value = shorten(item["input"])
    if entry is None:
        return Problem(f"'{path}' is {value}", location, item["msg"].lower(), code="settings.bad-value")
    if item["type"] == "wanted":
        return Problem(f"{entry.title} is {value}", location, item["msg"], code="settings.bad-value")
    if item["type"] == "string_pattern_mismatch":
        signs = " ".join(FORBIDDEN_IN_NAMES)
        part = entry.names == "part"
        fix = f"use none of {signs}: file names cannot contain them" if part else f"use text such as {entry.default}"
        return Problem(f"{entry.title} is {value}", location, fix, code="settings.bad-value")
    if item["type"] == "string_too_short":
        fix = "write at least one character"
        return Problem(f"{entry.title} is empty", location, fix, code="settings.bad-value")
    if item["type"] == "string_too_long":
        longest = item.get("ctx", {}).get("max_length")
        what = f"{entry.title} has {len(item['input'])} characters: {value}"
        return Problem(what, location, f"use at most {longest} characters", code="settings.bad-value")
    expected = allowed(entry, empty="leave it empty" if location == path else "null")
    if entry.kind == "pair" and not entry.range_text and (bound := _bound(item)) != "a number":
        expected = "whole numbers" if bound == "a whole number" else f"numbers of {bound}"
    return Problem(f"{entry.title} is {value}", location, f"use {expected}", code="settings.bad-value")


def allowed(entry: Declared, empty: str = "leave it empty") -> str:
    """Return the allowed values as text: "a whole number, 1 to 1000, or leave it empty".
    empty: how an optional setting is left unset: "null" in files and flags; "" omits that part"""
    kinds = {
        "bool": "true or false",
        "int": "a whole number",
        "float": "a number",
        "text": "text in quotes",
        "pair": "one number or two" if entry.takes_one else "two numbers",
        "list": "a list",
        "object": 'a JSON object, such as {"name": 1}',
        "span": "a number of steps (100), a fraction of the run below 1 (0.1) or a percentage (10%)",
        "arguments": "names with values, such as d_coef=2",
    }
    text = f"one of {entry.range_text}" if entry.kind == "choice" else kinds[entry.kind]
    if entry.kind in ("int", "float", "pair") and entry.range_text:
        text += f", {entry.range_text}"
    if entry.unit and entry.kind != "span":
        text += f" ({entry.unit})"
    return text + (f", or {empty}" if entry.optional and empty else "")


def shorten(value: Any) -> str:
    """Return a value as JSON, cut to 60 characters; NaN and infinity in words."""
    if isinstance(value, float) and not math.isfinite(value):
        return "not a number" if math.isnan(value) else "infinite"
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= 60 else text[:57] + "..."


def _fix_for_unknown(path: str, model: type[Settings], known: dict[str, Declared]) -> str:
    """Return the fix for an unknown setting: one with this name here or in sd-scripts, else the nearest spelling, else "remove it"."""
    name = path.rsplit(".", 1)[-1]
    if paths := settings_called(name, known):
        return f"did you mean '{paths[0]}'?"
    if name in ELSEWHERE:
        return ELSEWHERE[name]
    if len(path) > LONGEST_NAME:
        return "remove it"
    near = difflib.get_close_matches(path, known, n=1, cutoff=0.8) or [
        entry.path
        for entry in known.values()
        if difflib.get_close_matches(name, [entry.name, *entry.kohya_names], cutoff=0.75)
    ]
    if near:
        return f"did you mean '{near[0]}'?"
    groups = difflib.get_close_matches(path.split(".")[0], list(model.model_fields), n=1)
    return f"did you mean the group '{groups[0]}'?" if groups and "." not in path else "remove it"
