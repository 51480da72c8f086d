"""The fields of Train's form, from the declarations in core/settings: order, HTML, and facts for the page's script."""

from collections.abc import Iterator, Sequence
from typing import Any

from core.settings.base import ROWS, Declared
from core.settings.job import TrainJob
from core.settings.values import shown_value
from tabs.form.bars import rate_bars, size_bars
from tabs.form.project import FIELDS
from tabs.form.view import TRAIN, FieldView, element_id
from tabs.pieces import piece


def first_screen() -> list[tuple[str, list[Declared]]]:
    """Return [(row, its settings)] of the first screen, from the top."""
    return [(row, [entry for entry in FIELDS.values() if entry.first == row]) for row in ROWS]


def in_group(entry: Declared) -> bool:
    """Whether a setting is in its group below the first screen: not if it is on the first screen, on another tab, or has one choice."""
    return not (entry.first or entry.elsewhere or entry.one_choice)


def groups() -> dict[str, list[Declared]]:
    """Return {group: settings below the first screen}, in the order of declaration, without empty groups."""
    members: dict[str, list[Declared]] = {}
    for entry in FIELDS.values():
        if in_group(entry):
            members.setdefault(entry.group, []).append(entry)
    return members


def group_title(group: str) -> str:
    """Return the title of a group of settings."""
    return TrainJob.model_fields[group].title or group


def sections(entries: Sequence[Declared]) -> list[tuple[str, list[Declared]]]:
    """Split settings of a group into [(heading or "", settings)], in their order."""
    parts: list[tuple[str, list[Declared]]] = []
    for entry in entries:
        if entry.section or not parts:
            parts.append((entry.section, []))
        parts[-1][1].append(entry)
    return parts


# -- one field


def block(entry: Declared, offers: bool = False) -> str:
    """Return HTML of a field without its value. offers: whether it has a list of suggestions."""
    elem, listed = element_id(entry.path), f"{element_id(entry.path)}-list" if offers else ""
    empty = entry.hint or ("empty" if entry.optional or entry.default in ("", []) else "")
    if entry.kind == "choice":
        empty = entry.labels.get("", "off")
    view = FieldView(entry, id=f"{elem}-control", form=TRAIN, empty=empty, offers=listed)
    return view.block(size_bars(entry, view.id) if entry.widget == "blocks" else "") + _shared_control(entry)


def _shared_control(entry: Declared) -> str:
    """Return HTML of a control for several fields, below the last of them (bars) or below the field of layers (their tree); else ""."""
    if entry.widget == "layers":
        return f'<div class="joint">{piece("layer_tree")}</div>'
    rate_entries = [each for each in FIELDS.values() if each.group == entry.group and each.widget == "block rates"]
    if not rate_entries or entry != rate_entries[-1]:
        return ""
    return f'<div class="joint">{rate_bars([f"{element_id(each.path)}-control" for each in rate_entries])}</div>'


def on_form() -> Iterator[Declared]:
    """Yield the settings that have a field in Train's form."""
    return (entry for entry in FIELDS.values() if entry.first or in_group(entry))


# -- what the browser knows


def facts() -> dict[str, dict[str, Any]]:
    """Return {path: `_facts_of`} of the settings, with which the page's script searches them, explains them and finds their fields."""
    return {path: _facts_of(entry) for path, entry in FIELDS.items() if not entry.one_choice}


def _facts_of(entry: Declared) -> dict[str, Any]:
    """Return {"title", "unit", "help", "only", "costs", "kohya", "source"} of a setting's declaration, "default" and "range" as text, and
    where its field is: {"id", "tab", "group": "" on the first screen, "groupTitle"}."""
    tab, _, id = entry.elsewhere.partition("#")
    return {name: getattr(entry, name) for name in ("title", "unit", "help", "only", "costs", "kohya", "source")} | {
        "id": id or element_id(entry.path),
        "tab": tab or "Train",
        "group": "" if entry.first else entry.group,
        "groupTitle": group_title(entry.group),
        "default": shown_value(entry, entry.default),
        "range": entry.range_text,
    }


def paths_of(where: str) -> list[str]:
    """Return the paths of the fields in a Problem's `where`; "memory.fp8_base, fp8_base_unet" names two of one group."""
    paths, group = [], ""
    for name in where.split(", "):
        group = name.split(".")[0] if "." in name else group
        path = name if "." in name else f"{group}.{name}"
        paths += [path] if path in FIELDS else []
    return paths
