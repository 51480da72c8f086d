"""Settings as controls: drawn from their declarations, read back as values. Every form uses them."""

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
from core.settings.values import BadText, shown_value, text_of, value_from
from tabs.form.project import FIELDS
from tabs.markup import esc
from tabs.server.safety import Roots

NOTHING = '""'  # typed in a field whose emptiness means "as for all"
LONG = 20  # letters of a choice that a narrow column would cut
NOT_OWN: Any = object()  # the field has no common value behind it
PATHS = frozenset(("folder", "metadata_file"))


def entries(model: type[Settings], group: str) -> dict[str, Declared]:
    """The settings of one model by name."""
    return {name: Declared(f"{group}.{name}", group, name, info) for name, info in model.model_fields.items()}


SOURCE = entries(Source, "source")
GROUPS = {"ImageSettings": "Images", "CaptionSettings": "Captions", "ValidationSettings": "Validation"}
SHARED_NAMES: dict[str, list[str]] = {
    GROUPS[group.__name__]: [name for name in group.model_fields if name not in ONE_FOR_ALL] for group in SHARED
}


def is_path(entry: Declared) -> bool:
    """Whether the value names a file or folder that would be read."""
    return entry.names != "path or name" and (entry.widget == "folder" or entry.name in PATHS)


def _browses(entry: Declared) -> str:
    """What is chosen for it in the page's file browser: "folder", "file" or "any" of both; "" where it names no path."""
    if entry.names not in ("path", "path or name") and not is_path(entry):
        return ""
    if entry.widget == "file" or entry.name == "metadata_file":
        return "file"
    return "folder" if entry.widget == "folder" or entry.kind == "list" else "any"


def _text(entry: Declared, value: Any) -> str:
    if isinstance(value, str):  # the value of a text, or what a person wrote in vain
        return value
    return str(text_of(entry, value))


def label(entry: Declared) -> str:
    """Title and unit: "Warmup (steps)"; on the first screen the line below the title says the unit."""
    told = bool(entry.brief) or entry.unit.lower().removesuffix("s") in entry.title.lower()
    return entry.title if told else f"{entry.title} ({entry.unit})"


def choices(entry: Declared) -> list[tuple[str, Any]]:
    """(words, value); of a setting that may be empty, that first."""
    none = [(entry.labels.get("", "off"), "")] if entry.optional else []
    return none + [(entry.label(choice), choice) for choice in entry.choices]


def has_lines(entry: Declared) -> bool:
    """Whether what is written takes several lines."""
    return entry.kind in ("list", "arguments", "object") or entry.widget in ("lines", "sizes", "prompt")


def control(entry: Declared, value: Any, about: str, *, common: Any = NOT_OWN, empty: str = "", only: str = "") -> str:
    """The bare control of a setting with the attributes `about`.

    common, empty   what holds when it is left empty; what stands in it then      only    the one option of a list
    """
    if entry.kind == "bool" and common is NOT_OWN:
        return f'<input type="checkbox" {about}{" checked" if value else ""}>'
    if entry.kind in ("bool", "choice"):
        options = f"<option>{esc(only)}</option>" if only else _options(entry, value, common, empty)
        return f"<select {about}>{options}</select>"
    if has_lines(entry):
        # A line break at the beginning of a textarea is not part of its text.
        return f'<textarea rows="2" {about} placeholder="{esc(empty)}">\n{esc(_text(entry, value))}</textarea>'
    number = " num" if entry.kind in ("int", "float", "pair", "span") else ""
    written = _empty_text(entry, value) if common is not NOT_OWN else _text(entry, value)
    return (
        f'<input type="text" class="text{number}" {about} value="{esc(written)}" placeholder="{esc(empty)}" '
        f'autocomplete="off" spellcheck="false">'
    )


def browse_button(entry: Declared) -> str:
    """Opens the page's file browser for a setting that names a path; "" for another."""
    browses = _browses(entry)
    words = f'data-browse="{browses}" aria-label="Browse: {esc(label(entry))}"'
    return f'<button type="button" class="btn" {words}>Browse</button>' if browses else ""


def pick_button(entry: Declared, form: str) -> str:
    """Opens the list of the model files that a setting can name, which leads to the file browser; "" for another setting.
    form: the id of its form"""
    if not entry.holds or not form:
        return ""
    name, looks = (entry.path, entry.widget) if form == "train" else (entry.name, "")
    looks = looks if looks == "model" else _browses(entry)
    about = f'data-pick="{esc(name)}" data-form="{esc(form)}" data-looks="{looks}"'
    return f'<button type="button" class="btn" {about} aria-label="List: {esc(label(entry))}">List</button>'


def field(
    entry: Declared,
    value: Any,
    act: str,
    arg: str,
    *,
    common: Any = NOT_OWN,
    hint: str = "",
    elem: str = "",
    wrong: bool = False,
    replaced: str = "",
    offers: str = "tool-files",
    changed: bool | None = None,
    of_all: bool = True,
    form: str = "",
) -> str:
    """A labeled control that reports `act` with `arg`; one that names a path has a button that opens the file browser.

    common   what holds when this is left empty; the control then offers to leave it so
    hint     stands in the empty field in place of the common value
    elem     the id of the control
    replaced the title of the setting that is used in place of this one
    offers   the id of the list that is offered where it names a file
    changed  whether it is marked; None: where it is given in place of the common value
    of_all   whether the common value is what holds for all folders
    form     the id of the form it belongs to, for its list of model files
    """
    own = (common is not NOT_OWN and value is not None) if changed is None else changed
    about = f'data-act="{esc(act)}" data-arg="{esc(arg)}" aria-description="{esc(entry.help)}"'
    about += f' id="{esc(elem)}"' if elem else ""
    about += ' aria-invalid="true"' if wrong else ""
    about += " disabled" if replaced else ""
    about += f' list="{esc(offers)}"' if entry.names == "path or name" else ""
    behind = hint or ("" if common is NOT_OWN else shown_value(entry, common))
    only = f"set by {replaced}" if replaced else ""
    listed = of_all and entry.kind in ("bool", "choice")
    drawn = control(entry, value, about, common=common, empty=f"as for all: {behind}" if listed else behind, only=only)
    words, look = esc(label(entry)), pick_button(entry, form) or browse_button(entry)
    if drawn.startswith('<input type="checkbox"'):
        mark = " is-own" if own else ""
        return f'<label class="own switch{mark}" title="{esc(entry.help)}">{drawn}<span>{words}</span></label>'
    kind = (" is-own" if own else "") + (" wide" if has_lines(entry) or look else "")
    shown = (behind, *(each for each, _ in choices(entry)))
    kind += " long" if max(map(len, shown)) >= LONG else ""
    title = esc(_note(entry, common))
    if not look:
        return f'<label class="own{kind}" title="{title}"><span>{words}</span>{drawn}</label>'
    return f'<div class="own browses{kind}" title="{title}"><label><span>{words}</span>{drawn}</label>{look}</div>'


def _note(entry: Declared, common: Any) -> str:
    """What the field does; how to say "nothing" where the common value says something."""
    takes_nothing = entry.kind in ("text", "list") and not entry.choices and common not in (NOT_OWN, None, "", [])
    return entry.help + (f" Write {NOTHING} for none." if takes_nothing else "")


def _empty_text(entry: Declared, value: Any) -> str:
    return NOTHING if value == "" else _text(entry, value)


def _options(entry: Declared, value: Any, common: Any, empty: str) -> str:
    offered = [("on", True), ("off", False)] if entry.kind == "bool" else choices(entry)
    if common is not NOT_OWN:
        offered = [(empty, None), *(each for each in offered if each[1] != "" or "" in entry.choices)]
    return "".join(
        f'<option value="{esc(_plain(each))}"{" selected" if each == value else ""}>{esc(words)}</option>'
        for words, each in offered
    )


def _plain(choice: Any) -> str:
    if choice is None:
        return ""
    return str(choice).lower() if isinstance(choice, bool) else str(choice)


def choice_of(entry: Declared, text: str) -> Any:
    """The choice that a list's text stands for; None where it has no such one."""
    return next((choice for choice in entry.choices if _plain(choice) == text), None)


def read(entry: Declared, text: str, *, optional: bool = False) -> Any:
    """The value that a control's text stands for. optional: empty means that nothing is given. Raises ProblemsError."""
    stripped = text.strip()
    if optional and not stripped:
        return None
    if stripped == NOTHING and entry.kind in ("text", "list"):
        return [] if entry.kind == "list" else ""
    if entry.kind == "bool":
        return stripped == "true"
    if entry.kind == "choice":
        known = choice_of(entry, stripped)
        if known is None:
            raise refused(entry, text)
        return known
    try:
        return value_from(entry, text)
    except BadText as error:
        raise ProblemsError([replace(error.problem, where=entry.title)]) from None


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
