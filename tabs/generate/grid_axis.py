"""The LoRA axis of a grid on the page: its LoRAs as cards, chosen from the list of LoRAs."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress

from core.generation.grids.axes import LETTERS, LORA, NONE, joined, setting_named, texts_of
from core.generation.model.index import FileFacts
from core.generation.model.library import find_file, portable_name
from core.record.file_titles import titles_of
from core.record.problems import ProblemsError
from core.settings.base import Declared, setting
from tabs.context import Page
from tabs.form.lora_card import card, copy_button, step_buttons, strip
from tabs.form.lora_steps import Checkpoint, Lora, checkpoints
from tabs.form.model_lists import network_words
from tabs.form.picker import lora_named
from tabs.form.plain_presets import PlainForm
from tabs.markup import button, esc, middle, row_of

NO_LORA = "No LoRA"
AXES = "axes"  # id of the form
FILE = Declared("axes.lora", "axes", "lora", setting("", title="LoRA", help="", holds="lora"))
ACTS = ("lora_add", "lora_none", "lora_off", "lora_step", "lora_steps")


class AxisForm:
    """The axes as a form of the picker: each takes LoRAs. fields: of the cells' images"""

    known: Mapping[str, Declared] = {f"{letter}_values": FILE for letter in LETTERS}

    def __init__(self, page: Page, fields: PlainForm):
        self._fields = fields
        page.picker.forms[AXES] = self

    def family_for(self, name: str) -> str:
        return self._fields.family_for(name)


def names_in(text: str) -> list[str]:
    """The values of an axis; [] for a text that cannot be read."""
    with suppress(ProblemsError):
        return texts_of(text)
    return []


def loras_in(axes: Mapping[str, str]) -> list[tuple[str, str]]:
    """(letter of the axis, name) of each LoRA of the LoRA axes. axes: {"x_axis": text, "x_values": text, ...}"""
    letters = [letter for letter in LETTERS if setting_named(axes[f"{letter}_axis"]) == LORA]
    return [(letter, name) for letter in letters for name in names_in(axes[f"{letter}_values"])]


def lora_axes(axes: Mapping[str, str], family: str, page: Page) -> dict[str, str]:
    """{letter: HTML of its LoRAs as cards and of the buttons that add one} of the LoRA axes. family: of the model"""
    listed = loras_in(axes)
    found = [lora_named(name, page, family) for _, name in listed]
    titles = titles_of([[lora.path] for lora, _, _ in found], page.workspace.runs)
    cards = {letter: "" for letter in LETTERS if setting_named(axes[f"{letter}_axis"]) == LORA}
    for number, ((letter, name), title) in enumerate(zip(listed, titles, strict=True)):
        cards[letter] += _card(number, name, title, *found[number], page)
    return {
        letter: f'<ul class="loras lora-cards axis-cards">{rows}</ul>' if rows else "" for letter, rows in cards.items()
    }


def _card(number: int, name: str, title: str, lora: Lora, facts: FileFacts | None, why: str, page: Page) -> str:
    """HTML of a card. number: its index in `loras_in`; title: distinguishes it from the others; others: see `lora_named`"""
    about = network_words(facts) if facts else ""
    tools = copy_button(lora.path, title) if facts else ""
    if name.casefold() == NONE:
        title, about, why = NO_LORA, "the model alone", ""
    elif not facts and "/" not in name and "\\" not in name:  # a bare name is searched for in all folders at the start
        why = ""
    if lora.here:
        title = title.replace(f", {lora.here.label}", "", 1)
    if len(lora.steps) > 1:
        words = f"All {len(lora.steps)} steps"
        tools = button("lora_steps", words, number, kind="quiet", label=f"{words} of {title}") + tools
    cross = button("lora_off", "\u00d7", number, kind="quiet", label=f"Remove {title}")
    steps = ""
    if lora.here:

        def swaps(each: Checkpoint) -> str:
            return f'data-act="lora_step" data-arg="{number}:{esc(each.path.name)}"'

        steps = strip(lora.here, step_buttons(lora.steps, lora.here.path, swaps, page.thumb_url))
    return card(
        lora,
        page.thumb_url,
        head=f'<b title="{esc(title)}">{middle(title)}</b><span class="grow"></span>{cross}',
        middle=f'<div class="strip">{tools}</div>',
        words="",
        about=about,
        steps=steps,
        below=f"<p class=field-error>{esc(why)}</p>" if why else "",
        attributes=row_of(name),
    )


def add_buttons(letter: str) -> str:
    """HTML of the buttons that add a LoRA, or a value without one, to an axis. The list of LoRAs puts its choice into a hidden field."""
    field, words = f"{letter}_values", f"LoRA for {letter.upper()}"
    about = f'data-pick="{field}" data-form="{AXES}" data-looks="file" data-title="{words}" aria-label="{words}"'
    none = button("lora_none", f"+ {NO_LORA}", letter, label=f"No {words}", title="The model alone, first")
    return f'<div class="axis-adds">{drop_field(letter)}<button type="button" class="btn" {about}>+ LoRA</button>{none}</div>'


def drop_field(letter: str) -> str:
    """HTML of the hidden field of an axis that adds the LoRAs written into it: by the list, or by a card that is dropped on it."""
    return f'<textarea hidden data-act="lora_add" data-arg="{letter}"></textarea>'


def changed(act: str, arg: str, value: str, axes: Mapping[str, str], page: Page) -> dict[str, str]:
    """{fields: texts} of an axis after an action on its cards; {} if the card is gone, or to add to an axis of another setting.

    arg     the letter for "lora_add" and "lora_none", else the number of the card, with a file for "lora_step"
    value   the files to add, a line each
    """
    if act in ("lora_add", "lora_none"):
        name, values = axes.get(f"{arg}_axis", ""), axes.get(f"{arg}_values", "")
        if arg not in LETTERS or (setting_named(name) != LORA and (name or values)):
            return {}
        added = [_portable(line.strip(), page) for line in value.splitlines() if line.strip()]
        names = [*names_in(values), *added] if act == "lora_add" else [NONE, *names_in(values)]
        return {f"{arg}_axis": name or LORA, f"{arg}_values": joined(list(dict.fromkeys(names)))}
    listed, (number, _, file) = loras_in(axes), arg.partition(":")
    at = int(number) if number.isdecimal() and len(number) < 9 else len(listed)
    if at >= len(listed):
        return {}
    letter, name = listed[at]
    rows = [[each] if place != at else _instead(act, name, file, page) for place, (_, each) in enumerate(listed)]
    names = [each for (of, _), row in zip(listed, rows, strict=True) if of == letter for each in row]
    return {f"{letter}_values": joined(list(dict.fromkeys(names)))}


def _portable(name: str, page: Page) -> str:
    path = find_file(name, page.workspace)
    return portable_name(path, page.workspace) if path is not None else name


def _instead(act: str, name: str, file: str, page: Page) -> list[str]:
    """The values instead of one: none, another step of its run, or all of them."""
    if act == "lora_off":
        return []
    steps = checkpoints(page, find_file(name, page.workspace))
    chosen = [each.path for each in steps if act == "lora_steps" or each.path.name == file]
    return [portable_name(path, page.workspace) for path in chosen] or [name]
