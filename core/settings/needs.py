"""Find settings without effect because of another one in their group, as declared by `needs`. Forms and the command line show the reason;
forms of tools hide these fields."""

from collections.abc import Iterator, Mapping
from typing import Any

from core.record.problems import Problem
from core.settings.base import Declared, Settings, declared, fields_of, value_of


def unmet_needs(group: type[Settings], values: Mapping[str, Any]) -> dict[str, str]:
    """Return {name: reason} for a group's settings whose declared `needs` are not met.
    values: {name: value}; missing settings are at their default"""
    fields = {name: Declared(name, "", name, info) for name, info in fields_of(group).items()}
    unmet = {}
    for name, entry in fields.items():
        reasons = (_unmet(need, fields, values) for need in entry.needs.split("; ") if need)
        if reason := next(filter(None, reasons), ""):
            unmet[name] = reason
    return unmet


def ignored(*rows: tuple[object, str, str]) -> Iterator[tuple[str, str]]:
    """Yield (dotted path, "ignored: REASON") for each setting of the rows whose condition is true.
    rows: (condition, "group.name name ...", reason)"""
    for applies, settings, reason in rows:
        group, _, names = settings.partition(".")
        if applies:
            yield from ((f"{group}.{name}", f"ignored: {reason}") for name in names.split())


def problems_if(*rows: tuple[object, str, str, str, str], level: str = "error") -> Iterator[Problem]:
    """Yield a problem for each row whose condition is true. rows: (condition, what, where, fix, code)"""
    for applies, what, where, fix, code in rows:
        if applies:
            yield Problem(what, where, fix, level, code=code)


def no_effect(job: Settings, reasons: Mapping[str, str]) -> list[Problem]:
    """Return advice on settings without effect that are not at their default, for the command line, which cannot gray out fields.
    reasons: {dotted path: reason} of those without effect"""
    defaults = {entry.path: entry.default for entry in declared(type(job))}
    return [
        Problem(f"{path} has no effect", path, reason, "advice", code="settings.no-effect")
        for path, reason in reasons.items()
        if value_of(job, path) != defaults[path]
    ]


def all_but(settings: Settings, group: str, *names: str) -> str:
    """Return "group.name name ..." with all settings of a group except `names`, in the form that `ignored` takes."""
    return f"{group}.{' '.join(name for name in fields_of(type(settings)) if name not in names)}"


def unmet_in(job: Settings) -> Iterator[tuple[str, str]]:
    """Yield (dotted path, "ignored: REASON") for each setting of a job whose declared `needs` are not met."""
    for group in type(job).model_fields:
        settings = getattr(job, group)
        for name, reason in unmet_needs(type(settings), settings.__dict__).items():
            yield f"{group}.{name}", f"ignored: {reason}"


def without_effect(settings: Settings, group: str) -> Iterator[Problem]:
    """Yield advice on each setting that differs from its default although its declared `needs` are not met.
    group: name of `settings` in the job"""
    for name, reason in sorted(unmet_needs(type(settings), settings.__dict__).items()):
        if getattr(settings, name) != fields_of(type(settings))[name].get_default(call_default_factory=True):
            what = f"{settings.title_of(name)} has no effect: {reason}"
            yield Problem(what, f"{group}.{name}", "leave it out", "advice", code="tools.no-effect")


def _unmet(need: str, fields: Mapping[str, Declared], values: Mapping[str, Any]) -> str:
    """Return the reason why one condition of a declared `needs`, such as "!no_vae", is not met; "" if it is met."""
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
