"""Axes of an X/Y/Z grid whose values are model files, shown as cards."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from core.engine.run_grid import embedding_values
from core.generation.grids.axes import CONTROL, LETTERS, LORA, NONE, joined, setting_named, texts_of
from core.generation.model.embeddings import split_token
from core.generation.model.index import FileFacts
from core.generation.model.library import find_file, portable_name
from core.record.file_titles import titles_of
from core.record.problems import ProblemsError
from core.record.run_folder import run_of
from core.settings.base import Declared, setting
from tabs.context import Page
from tabs.form.lora_card import card, copy_button, strip
from tabs.form.lora_steps import Checkpoint, Lora, checkpoints
from tabs.form.model_lists import network_text
from tabs.form.picker import file_named, is_path
from tabs.form.plain_form import PlainForm
from tabs.markup import button, esc, index_of, middle, row_of

AXES = "axes"  # id of the form
ACTS = ("file_add", "file_none", "file_off", "file_step", "file_steps")


@dataclass(frozen=True)
class FileAxis:
    """A grid axis whose values are model files.

    name        path of the axis's setting
    title       of the axis
    holds       kinds of model files that it accepts
    none        title of its value without a file ("No LoRA"); "" if each value needs a file
    about_none  help of that value
    any_family  whether files of any model family are accepted
    tokens      whether a value may be TOKEN=FILE, or several of these separated by semicolons
    """

    name: str
    title: str
    holds: tuple[str, ...]
    none: str = ""
    about_none: str = ""
    any_family: bool = False
    tokens: bool = False

    @property
    def declared(self) -> Declared:
        """The axis as a declared setting, for the file picker."""
        info = setting("", title=self.title, help="", holds=", ".join(self.holds))
        return Declared(f"axes.{self.name}", AXES, self.name, info)

    def family(self, fields: PlainForm) -> str:
        """Return the model family that the files must have, "" for any. fields: form with the settings of the cells' images"""
        return "" if self.any_family else fields.family_for("loras")

    def parts(self, value: str) -> list[tuple[str, str]]:
        """Return [(token or "", file name)] of the files in an axis value."""
        return [split_token(each.strip()) for each in value.split(";")] if self.tokens else [("", value)]

    def value(self, path: Path, page: Page) -> str:
        """Return the axis value of a file: its name, or TOKEN=FILE for an embedding of a run."""
        run = run_of(path, page.workspace.runs) if self.tokens else None
        job = page.readable_job(run.name) if run is not None else None
        texts = embedding_values(job, [path], page.workspace) if job is not None and job.method.traits.new_words else []
        return texts[0] if texts else portable_name(path, page.workspace)


FILE_AXES: Mapping[str, FileAxis] = {  # by name
    kind.name: kind
    for kind in (
        FileAxis(LORA, "LoRA", ("lora",), "No LoRA", "the model alone"),
        FileAxis(CONTROL, "ControlNet", ("controlnet", "controlnet_lllite"), "No ControlNet", "the prompt alone"),
        FileAxis("model.base_model", "Model", ("checkpoint",), any_family=True),
        FileAxis("model.vae", "VAE", ("vae",), "Model's VAE"),
        FileAxis("generate.embeddings", "Embedding", ("embedding",), "No embedding", "the prompt alone", tokens=True),
    )
}


class AxisForm:
    """The grid axes as a form of the file picker.

    fields  form with the settings of the cells' images
    axes    function that returns the texts of the axes, as for `kinds_in`
    """

    def __init__(self, page: Page, fields: PlainForm, axes: Callable[[], Mapping[str, str]]):
        self._fields, self._axes = fields, axes
        page.picker.forms[AXES] = self

    @property
    def known(self) -> Mapping[str, Declared]:
        """{"x_values": declared setting, ...} of the axes whose values are model files."""
        return {f"{letter}_values": kind.declared for letter, kind in kinds_in(self._axes()).items()}

    def family_for(self, name: str) -> str:
        """Return the model family that files of axis setting `name` must have, "" for any."""
        return FILE_AXES[name].family(self._fields)


def kinds_in(axes: Mapping[str, str]) -> dict[str, FileAxis]:
    """Return {letter: axis} of the axes of model files. axes: {"x_axis": name of a setting, "x_values": text, ... for y and z}"""
    named = {letter: setting_named(axes.get(f"{letter}_axis", "")) or "" for letter in LETTERS}
    return {letter: FILE_AXES[name] for letter, name in named.items() if name in FILE_AXES}


def names_in(text: str) -> list[str]:
    """Return the values in the text of an axis; [] if it cannot be parsed."""
    with suppress(ProblemsError):
        return texts_of(text)
    return []


def files_in(axes: Mapping[str, str]) -> list[tuple[str, str]]:
    """Return [(axis letter, value)] for each value of the axes of model files. axes: as for `kinds_in`"""
    return [(letter, name) for letter in kinds_in(axes) for name in names_in(axes[f"{letter}_values"])]


def file_axes(axes: Mapping[str, str], fields: PlainForm, page: Page) -> dict[str, str]:
    """Return {letter: HTML of the values as cards} for each axis of model files.

    axes: as for `kinds_in`; fields: form with the settings of the cells' images
    """
    kinds, listed = kinds_in(axes), files_in(axes)
    families = {letter: kind.family(fields) for letter, kind in kinds.items()}
    named = [
        [file_named(file, page, families[letter], kinds[letter].holds) for _, file in kinds[letter].parts(name)]
        for letter, name in listed
    ]
    titles = titles_of([[lora.path for lora, _, _ in files] for files in named], page.workspace.runs)
    cards = dict.fromkeys(kinds, "")
    for index, ((letter, name), title) in enumerate(zip(listed, titles, strict=True)):
        cards[letter] += _card(index, name, title, kinds[letter], named[index], page)
    return {
        letter: f'<ul class="loras lora-cards axis-cards">{rows}</ul>' if rows else "" for letter, rows in cards.items()
    }


def _card(
    index: int, name: str, title: str, kind: FileAxis, files: Sequence[tuple[Lora, FileFacts | None, str]], page: Page
) -> str:
    """Return the HTML of an axis value's card.

    index  index in `files_in`
    name   the axis value
    title  distinguishes the card from the others
    files  `file_named` of each file in the value
    """
    (lora, facts, _), why = files[0], next((why for _, _, why in files if why), "")
    lora = lora if len(files) == 1 else Lora(lora.path, title, lora.image)
    parts = kind.parts(name)
    about = " \u00b7 ".join(
        each for each in (*(token for token, _ in parts), network_text(facts) if facts else "") if each
    )
    tools = copy_button(lora.path, title) if facts else ""
    if kind.none and name.casefold() == NONE:
        title, about, why = kind.none, kind.about_none, ""
    elif not facts and not is_path(parts[0][1]):  # a bare name is searched for at the start, a Hub id downloaded
        why = ""
    if lora.checkpoint:
        title = title.replace(f", {lora.checkpoint.label}", "", 1)
    if len(lora.steps) > 1:
        label = f"All {len(lora.steps)} steps"
        tools = button("file_steps", label, index, kind="quiet", label=f"{label} of {title}") + tools
    remove = button("file_off", "\u00d7", index, kind="quiet", label=f"Remove {title}")

    def step_attributes(checkpoint: Checkpoint) -> str:
        return f'data-act="file_step" data-arg="{index}:{esc(checkpoint.path.name)}"'

    return card(
        lora,
        page.thumb_url,
        first_line=f'<b title="{esc(title)}">{middle(title)}</b><span class="grow"></span>{remove}',
        second_line=f'<div class="strip">{tools}</div>',
        third_line="",
        about=about,
        reason=why,
        steps=strip(lora, step_attributes, page.thumb_url),
        attributes=row_of(name),
    )


def add_buttons(letter: str, kind: FileAxis) -> str:
    """Return the HTML of the buttons that add a file, or the value without a file, to an axis.

    The picker writes its choice into the hidden `drop_field`.
    """
    field, title = f"{letter}_values", f"{kind.title} for {letter.upper()}"
    attributes = f'data-pick="{field}" data-form="{AXES}" data-looks="any" data-title="{title}" aria-label="{title}"'
    none = (
        button("file_none", "+ None", letter, label=f"+ None for {letter.upper()}: {kind.none}", title=kind.about_none)
        if kind.none
        else ""
    )
    return (
        f'<div class="axis-adds" data-of="{kind.title}">{drop_field(letter)}<button type="button" class="btn" {attributes}>'
        f"+ {kind.title}</button>{none}</div>"
    )


def drop_field(letter: str) -> str:
    """Return the HTML of an axis's hidden field; file names written into it by the picker or a dropped LoRA card are added as values."""
    return f'<textarea hidden data-act="file_add" data-arg="{letter}"></textarea>'


def changed(act: str, arg: str, value: str, axes: Mapping[str, str], page: Page) -> dict[str, str]:
    """Return {field: new text} of an axis after an event on its cards; {} if the card is gone or the file cannot be added.

    act    "file_add", "file_none", "file_off", "file_step" or "file_steps"
    arg    axis letter for "file_add" and "file_none", else index of the card, followed by ":file name" for "file_step"
    value  files to add, one per line
    axes   as for `kinds_in`
    """
    if act in ("file_add", "file_none"):
        name, values = axes.get(f"{arg}_axis", ""), axes.get(f"{arg}_values", "")
        kind = FILE_AXES[LORA] if arg in LETTERS and not name and not values else kinds_in(axes).get(arg)
        if kind is None or (act == "file_none" and not kind.none):
            return {}
        added = [_value(line.strip(), kind, page) for line in value.splitlines() if line.strip()]
        names = [*names_in(values), *added] if act == "file_add" else [NONE, *names_in(values)]
        return {f"{arg}_axis": name or LORA, f"{arg}_values": joined(list(dict.fromkeys(names)))}
    listed, (number, _, file) = files_in(axes), arg.partition(":")
    card_index = index_of(number, len(listed))
    if card_index is None:
        return {}
    letter, name = listed[card_index]
    kind = kinds_in(axes)[letter]
    rows = [
        [each] if index != card_index else _replacements(act, name, file, kind, page)
        for index, (_, each) in enumerate(listed)
    ]
    names = [each for (axis_letter, _), row in zip(listed, rows, strict=True) if axis_letter == letter for each in row]
    return {f"{letter}_values": joined(list(dict.fromkeys(names)))}


def _value(name: str, kind: FileAxis, page: Page) -> str:
    """Return the axis value for the file `name`; `name` itself if there is no such file."""
    path = find_file(name, page.workspace)
    return kind.value(path, page) if path is not None else name


def _replacements(act: str, name: str, file: str, kind: FileAxis, page: Page) -> list[str]:
    """Return the values that replace axis value `name`: none ("file_off"), the checkpoint `file` of its run, or all checkpoints."""
    if act == "file_off":
        return []
    steps = checkpoints(page, find_file(kind.parts(name)[0][1], page.workspace))
    return [kind.value(each.path, page) for each in steps if act == "file_steps" or each.path.name == file] or [name]
