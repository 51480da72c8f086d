"""The fields of the Train form: what each looks like and where it stands.

Everything is read from the declarations in core/settings; no setting is known here by name.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from core.settings.base import ROWS, Declared
from core.settings.job import TrainJob
from core.settings.values import shown_value
from tabs.form.bars import rate_bars, size_bars
from tabs.form.own_settings import browse_button, choice_of, choices, control, label, pick_button
from tabs.form.project import FIELDS
from tabs.markup import esc
from tabs.pieces import piece

WIDE = {"lines", "layers", "sizes", "arguments", "prompt"}
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


def sections(entries: Sequence[Declared]) -> list[tuple[str, list[Declared]]]:
    """[(heading or "", settings)], in the same order."""
    found: list[tuple[str, list[Declared]]] = []
    for entry in entries:
        if entry.section or not found:
            found.append((entry.section, []))
        found[-1][1].append(entry)
    return found


# -- one field


def block(entry: Declared, offers: bool = False) -> str:
    """A field with its title, what is said of it and its control, empty: the page's script fills it in and says below it what is
    so now (assets/form.js). offers: with a list of what could be written."""
    elem, about = element_id(entry.path), entry.brief or entry.help
    wide = " field-wide" if entry.widget in WIDE or len(about) > LONG else ""
    words, said = esc(label(entry)), f'<span class="info-text" id="{elem}-info">{esc(about)}</span>'
    data = f'data-set="{entry.path}" aria-describedby="{elem}-info {elem}-foot" aria-keyshortcuts="F1"'
    single = f'{data} id="{elem}-control"'
    title = f'<label class="field-title" for="{elem}-control">{words}</label>'
    if entry.kind == "bool":
        inside = f'<label class="field-switch">{control(entry, False, single)}<span>{words}</span></label>{said}'
    elif entry.kind == "choice" and _few(choices(entry)):
        inside = f'<span class="field-title" id="{elem}-title">{words}</span>{said}{_radios(entry, elem, data)}'
    elif offers:
        drawn = control(entry, "", f'{single} list="{elem}-list"', empty=placeholder(entry))
        more = f'<select class="offered" data-offers="{entry.path}" aria-label="List: {words}"></select>'
        more = pick_button(entry, "train") or more
        inside = f'{title}{said}<div class="line">{drawn}{more}</div><datalist id="{elem}-list"></datalist>'
    else:
        drawn, look = (
            control(entry, "", single, empty=placeholder(entry)),
            pick_button(entry, "train") or browse_button(entry),
        )
        inside = title + said + (f'<div class="line">{drawn}{look}</div>' if look else drawn)
    if entry.widget == "blocks":
        inside, wide = inside + size_bars(entry, f"{elem}-control"), " field-wide"
    ask = f'<button type="button" class="field-help" aria-label="About {esc(entry.title)}" title="F1 in the field"'
    return (
        f'<div class="field field-{entry.kind}{wide}" id="{elem}" data-path="{entry.path}">{inside}'
        f'{ask} tabindex="-1">?</button><div class="field-foot" id="{elem}-foot"></div></div>{_joint(entry)}'
    )


def _joint(entry: Declared) -> str:
    """A control of several fields, below one of them: the bars of all, or the tree of layers."""
    if entry.widget == "layers":
        return f'<div class="joint">{piece("layer_tree")}</div>'
    several = [each for each in FIELDS.values() if each.group == entry.group and each.widget == "block rates"]
    if not several or entry != several[-1]:
        return ""
    return f'<div class="joint">{rate_bars([f"{element_id(each.path)}-control" for each in several])}</div>'


def _few(offered: Sequence[tuple[str, Any]]) -> bool:
    return len(offered) <= RADIO_CHOICES and sum(len(words) for words, _ in offered) <= RADIO_LETTERS


def _radios(entry: Declared, elem: str, data: str) -> str:
    each = "".join(
        f'<label><input type="radio" name="{elem}" value="{esc(value)}" {data}><span>{esc(words)}</span></label>'
        for words, value in choices(entry)
    )
    return f'<div class="few" role="radiogroup" aria-labelledby="{elem}-title">{each}</div>'


def placeholder(entry: Declared) -> str:
    """What an empty field shows: what emptiness means, where the declaration says it."""
    return entry.hint or ("empty" if entry.optional or entry.default in ("", []) else "")


def on_form() -> Iterator[Declared]:
    """The settings that the form has a field for."""
    return (entry for entry in FIELDS.values() if entry.first or in_group(entry))


def raw(entry: Declared, text: str) -> Any:
    """What a control's text stands for, as `Project.edit` takes it."""
    if entry.kind == "bool":
        return text == "true"
    chosen = choice_of(entry, text)
    return text if chosen is None else chosen


# -- what the browser knows


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
