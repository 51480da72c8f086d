"""Settings to widgets: what each field of the Train form looks like and where it stands.

Everything is read from the declarations in core/settings; no setting is known here by name.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import gradio as gr

from core.settings.base import ROWS, Declared, Settings
from core.settings.job import TrainJob
from core.settings.values import shown_value, text_of
from tabs.form.project import FIELDS

WIDE = {"lines", "sizes", "arguments", "prompt"}
LONG = 220  # letters of help that are a tower in one column
RADIO_CHOICES = 4
RADIO_LETTERS = 34


def element_id(path: str) -> str:
    """The id of a field's element in the page."""
    return "field-" + path.replace(".", "-").replace("_", "-")


def first_screen() -> list[tuple[str, list[Declared]]]:
    """[(row, its settings)] of what is shown without opening anything, from the top."""
    return [(row, [entry for entry in FIELDS.values() if entry.first == row]) for row in ROWS]


def in_group(entry: Declared) -> bool:
    """Whether a setting has its place in its group, below the first screen. Where there is nothing to choose, it has none."""
    return not (entry.first or entry.elsewhere or entry.one_choice)


def groups() -> dict[str, list[Declared]]:
    """The groups below the first screen with their fields, in the order of declaration; empty groups are left out."""
    found: dict[str, list[Declared]] = {}
    for entry in FIELDS.values():
        if in_group(entry):
            found.setdefault(entry.group, []).append(entry)
    return found


def group_title(group: str) -> str:
    return TrainJob.model_fields[group].title or group


def label(entry: Declared) -> str:
    """Title and unit: "Warmup (steps)"; on the first screen the line below the title says the unit."""
    told = bool(entry.brief) or entry.unit.lower().removesuffix("s") in entry.title.lower()
    return entry.title if told else f"{entry.title} ({entry.unit})"


def sections(entries: Sequence[Declared]) -> list[tuple[str, list[Declared]]]:
    """[(heading or "", settings)], in the same order."""
    found: list[tuple[str, list[Declared]]] = []
    for entry in entries:
        if entry.section or not found:
            found.append((entry.section, []))
        found[-1][1].append(entry)
    return found


def choices(entry: Declared) -> list[tuple[str, Any]]:
    """(words, value); of a setting that may be empty, that first."""
    none = [(entry.labels.get("", "off"), "")] if entry.optional else []
    return none + [(entry.label(choice), choice) for choice in entry.choices]


def widget(
    entry: Declared, job: Settings, paths: Callable[[Declared], list[Any]] | None = None, elem_id: str = ""
) -> Any:
    """The widget for one setting, chosen by its type. `paths` lists what a model or folder field may offer."""
    value = text_of(entry, getattr(getattr(job, entry.group), entry.name))
    about = entry.brief or entry.help
    wide = entry.widget in WIDE or len(about) > LONG
    common: dict[str, Any] = {
        "label": label(entry),
        "info": about,
        "elem_id": elem_id or element_id(entry.path),
        "elem_classes": ["field", f"field-{entry.kind}", *(["field-wide"] if wide else [])],
        "interactive": True,
        "min_width": 120,
    }
    if entry.kind == "choice":
        options = choices(entry)
        if len(options) <= RADIO_CHOICES and sum(len(words) for words, _ in options) <= RADIO_LETTERS:
            return gr.Radio(options, value=value, **common)
        return gr.Dropdown(options, value=value, filterable=False, **common)
    if entry.kind == "bool":
        return gr.Checkbox(value=value, **common)
    if paths is not None and entry.widget in ("model", "folder", "optimizer"):
        return gr.Dropdown(offered(paths(entry), value), value=value, allow_custom_value=True, **common)
    if entry.widget in WIDE:
        lines = 2 if entry.widget in ("sizes", "prompt") else 3
        return gr.Textbox(value=value, lines=lines, max_lines=8, **common)
    number = entry.kind in ("int", "float", "pair")
    return gr.Textbox(
        value=value, max_lines=1, text_align="right" if number else "left", placeholder=placeholder(entry), **common
    )


def offered(options: list[Any], value: Any) -> list[Any]:
    """The list of a free field always holds its present value."""
    known = {option[1] if isinstance(option, tuple) else option for option in options}
    return options if value in known or not value else [value, *options]


def placeholder(entry: Declared) -> str:
    """What an empty field shows: what emptiness means, where the declaration says it."""
    return entry.hint or ("empty" if entry.optional or entry.default in ("", []) else "")


def events(component: Any) -> list[Any]:
    """The events that mean a person has changed the widget; never `change`, which a loaded preset fires too."""
    if isinstance(component, gr.Textbox):
        return [component.blur, component.submit]
    if isinstance(component, gr.Slider):
        return [component.release]
    return [component.input]


def facts() -> dict[str, dict[str, Any]]:
    """What the browser knows about every field: for search, for the note on hover, and for where to find it."""
    return {path: _facts_of(entry) for path, entry in FIELDS.items() if not entry.one_choice}


def _facts_of(entry: Declared) -> dict[str, Any]:
    tab, _, place = entry.elsewhere.partition("#")
    return {
        "id": place or element_id(entry.path),
        "tab": tab or "Train",
        "title": entry.title,
        "unit": entry.unit,
        "help": entry.help,
        "group": "" if entry.first else entry.group,
        "groupTitle": group_title(entry.group),
        "more": entry.level != "shown" and not entry.first,
        "only": entry.only,
        "default": shown_value(entry, entry.default),
        "range": entry.range_text,
        "costs": entry.costs,
        "kohya": entry.kohya,
        "source": entry.source,
    }


def places(where: str) -> list[str]:
    """The fields that a problem names: "memory.fp8_base, fp8_base_unet" are two of one group."""
    found, group = [], ""
    for name in where.split(", "):
        group = name.split(".")[0] if "." in name else group
        path = name if "." in name else f"{group}.{name}"
        found += [path] if path in FIELDS else []
    return found
