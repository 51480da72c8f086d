"""The LoRA axis of a grid on the page: its LoRAs as cards, chosen from the list of LoRAs."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from core.generation.grids.axes import LETTERS, LORA, NONE, joined, setting_named, texts_of
from core.generation.model.index import facts_of_file
from core.generation.model.library import find_file, portable_name
from core.record.file_titles import titles_of
from core.record.problems import ProblemsError
from core.settings.base import Declared, setting
from tabs.context import Page
from tabs.form.lora_card import card, copy_button, step_buttons, strip
from tabs.form.lora_steps import Checkpoint, Lora, checkpoints, lora_of
from tabs.form.model_lists import network_words
from tabs.form.picker import misfit
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
    found = [find_file(name, page.workspace) for _, name in listed]
    paths = [path if path is not None and page.roots.holds(path) else None for path in found]
    files = [[path or Path(name)] for path, (_, name) in zip(paths, listed, strict=True)]
    titles = titles_of(files, page.workspace.runs)
    cards = {letter: "" for letter in LETTERS if setting_named(axes[f"{letter}_axis"]) == LORA}
    for number, ((letter, name), path, title) in enumerate(zip(listed, paths, titles, strict=True)):
        cards[letter] += _card(number, name, path, title, family, page)
    return {
        letter: f'<ul class="loras lora-cards axis-cards">{rows}</ul>' if rows else "" for letter, rows in cards.items()
    }


def _card(number: int, name: str, path: Path | None, title: str, family: str, page: Page) -> str:
    """HTML of a card. number: its index in `loras_in`; title: distinguishes it from the others"""
    lora, about, why, tools = Lora(Path(name), title), "", "", ""
    if name.casefold() == NONE:
        title, about = NO_LORA, "the model alone"
    elif path is not None:
        lora, facts = lora_of(page, path), facts_of_file(path)
        about = network_words(facts)
        why = facts.problem or misfit(facts, path, ["lora"], family)
        tools = copy_button(path, title, "quiet")
    elif "/" in name or "\\" in name:  # a bare name is searched for in all folders at the start
        why = "is not on this machine"
    if lora.here:
        title = title.replace(f", {lora.here.label}", "", 1)
    if len(lora.steps) > 1:
        words = f"All {len(lora.steps)} steps"
        tools = button("lora_steps", words, number, kind="quiet", label=f"{words} of {title}") + tools
    cross = button("lora_off", "\u00d7", number, kind="quiet", label=f"Remove {title}")
    below = f"<p class=field-error>{esc(why)}</p>" if why else ""
    if lora.here:

        def swaps(each: Checkpoint) -> str:
            return f'data-act="lora_step" data-arg="{number}:{esc(each.path.name)}"'

        below += strip(lora.here, step_buttons(lora.steps, lora.here.path, swaps, page.thumb_url))
    return card(
        lora,
        page.thumb_url,
        head=f'<b title="{esc(title)}">{middle(title)}</b><span class="grow"></span>{cross}',
        middle=f'<div class="strip">{tools}</div>',
        words="",
        about=about,
        below=below,
        attributes=row_of(name),
    )


def add_buttons(letter: str) -> str:
    """HTML of the buttons that add a LoRA, or a value without one, to an axis. The list of LoRAs puts its choice into a hidden field."""
    field, words = f"{letter}_values", f"LoRA for {letter.upper()}"
    about = f'data-pick="{field}" data-form="{AXES}" data-looks="file" data-title="{words}" aria-label="{words}"'
    none = button("lora_none", f"+ {NO_LORA}", letter, label=f"No {words}", title="The model alone, first")
    return (
        f'<div class="axis-adds"><textarea hidden data-act="lora_add" data-arg="{letter}"></textarea>'
        f'<button type="button" class="btn" {about}>+ LoRA</button>{none}</div>'
    )


def changed(act: str, arg: str, value: str, axes: Mapping[str, str], page: Page) -> dict[str, str]:
    """{field: text} of an axis after an action on its cards; {} if the card is gone.

    arg     the letter for "lora_add" and "lora_none", else the number of the card, with a file for "lora_step"
    value   the files to add, a line each
    """
    if act in ("lora_add", "lora_none"):
        names = names_in(axes.get(f"{arg}_values", ""))
        added = [_portable(line.strip(), page) for line in value.splitlines() if line.strip()]
        names = [*names, *added] if act == "lora_add" else [NONE, *names]
        return {f"{arg}_values": joined(list(dict.fromkeys(names)))} if arg in LETTERS else {}
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
