"""Settings that have no effect without another one of their group, from what they declare (`needs`): the reason that forms and
the command line give, and the fields that a tool's form leaves out."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from core.record.problems import Problem
from core.settings.base import Declared, Settings, fields_of


def lacking(group: type[Settings], values: Mapping[str, Any]) -> dict[str, str]:
    """{name: reason} of the settings of a group whose need is not met. values: by name, those that are missing are the defaults."""
    fields = {name: Declared(name, "", name, info) for name, info in fields_of(group).items()}
    found = {}
    for name, entry in fields.items():
        reasons = (_unmet(need, fields, values) for need in entry.needs.split("; ") if need)
        if reason := next(filter(None, reasons), ""):
            found[name] = reason
    return found


def lacking_in(job: Settings) -> Iterator[tuple[str, str]]:
    """(dotted path, "ignored: ...") of the settings of a job whose need is not met."""
    for group in type(job).model_fields:
        settings = getattr(job, group)
        for name, reason in lacking(type(settings), settings.__dict__).items():
            yield f"{group}.{name}", f"ignored: {reason}"


def without_effect(settings: Settings, group: str) -> Iterator[Problem]:
    """Advice about each setting that is not at its default and lacks what it needs. group: the name of these settings in a job."""
    for name, reason in sorted(lacking(type(settings), settings.__dict__).items()):
        if getattr(settings, name) != type(settings).model_fields[name].default:
            what = f"{settings.title_of(name)} has no effect: {reason}"
            yield Problem(what, f"{group}.{name}", "leave it out", "advice", code="tools.no-effect")


def _unmet(need: str, fields: Mapping[str, Declared], values: Mapping[str, Any]) -> str:
    """Why a need is not met, "" where it is."""
    name, _, choices = need.partition("=")
    entry = fields[name.removeprefix("!")]
    value = values.get(entry.name, entry.default)
    if choices:
        met = str(value) in choices.split(", ")
        state = f"not {' or '.join(map(entry.label, choices.split(', ')))}"
    else:
        met = bool(value) != name.startswith("!")
        switch = entry.kind in ("bool", "int", "float", "span") or entry.hint == "off"
        states = ("on", "off") if switch else ("set", "not set")
        state = states[0] if value else states[1]
    return "" if met else f"'{entry.title}' is {state}"
