"""HTML of X/Y/Z grids: the axes in the Generate form, the list of grids, and the tables of cells."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

from core.generation.grids.axes import (
    LETTERS,
    LORA,
    SIZE,
    SPECIAL,
    STRENGTH,
    WEIGHT,
    setting_named,
    settings_of_axes,
    title_in_group,
)
from core.generation.grids.choices import axes_to_choose, preference_text
from core.generation.grids.folder import AxisTexts, GridContent, GridFolder, Index
from core.record.units import count
from core.settings.job import GenerateJob
from tabs.generate.cards import GRID, frame
from tabs.generate.grid_axis import FileAxis, add_buttons, drop_field
from tabs.markup import button, esc, link, middle, options, section, short

WHERE = {"x": "columns", "y": "rows", "z": "tables"}
EXAMPLES = {  # of values, by axis without a setting, or else by setting or its kind
    "x": "20-40 (+10)",
    "y": "ddim, Euler a",
    "z": 'fox, dog, "red hat"',
    STRENGTH: "0.6, 0.8, 1",
    WEIGHT: "0.6, 0.8, 1",
    SIZE: "512x512, 512x768",
    "generate.guidance_scale": "4-8 (+2)",
    "generate.sampler": "ddim, Euler a",
    "int": "20-40 (+10)",
    "float": "0.5, 0.75, 1",
    "bool": "on, off",
}
HIDDEN = ("memory", "generation_memory", "output")  # groups whose settings change no image: accepted, not offered
FIRST = (  # of the settings of an axis: those that people compare most
    "model.base_model",
    "generate.prompt",
    "generate.sampler",
    "generate.schedule_type",
    "generate.steps",
    "generate.guidance_scale",
    "generate.seed",
    "image_to_image.strength",
    "hires.highres_fix_scale",
    "model.clip_skip",
    "model.vae",
)


@dataclass(frozen=True)
class GridRow:
    """A grid in the list of grids.

    done, total, failed  numbers of cells
    doing                "waiting", "running", "damaged", or "" if no job is active
    """

    name: str
    title: str
    done: int
    total: int
    failed: int
    doing: str

    @property
    def progress(self) -> str:
        """Text of the grid's progress, such as "6 images" or "3 of 6, 1 failed, running"."""
        images = count(self.total, "image") if self.done >= self.total else f"{self.done:,} of {self.total:,}"
        return ", ".join(filter(None, [images, f"{self.failed} failed" if self.failed else "", self.doing]))


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint that is an axis value.

    name    name under which it is marked to keep, "" for the file's own name; None if it is not marked
    copied  HTML of the state of its copy
    """

    name: str | None
    copied: str


def recent(grids: Sequence[GridRow]) -> str:
    """Return the HTML of buttons that open the grids of this session; "" without any."""
    if not grids:
        return ""
    links = (button("open", f"{each.title}, {each.progress}", each.name, kind="small quiet") for each in grids)
    return (
        '<div class="strip grid-recent" role="group" aria-label="Grids of this session"><span class="hint">Grids</span>'
        f"{''.join(links)}</div>"
    )


# -- the panel


def panel(
    axes: Mapping[str, str],
    invalid: set[str],
    summary: str,
    error: bool,
    loras: Mapping[str, str],
    earlier: str,
    kinds: Mapping[str, FileAxis],
    cards: Mapping[str, str],
    is_visible: bool,
) -> str:
    """Return the HTML of the Grid card: the three axes, a summary, and the list of grids.

    axes        {"x_axis": name of a setting, "x_values": text, ... for y and z}
    invalid     names of the fields in `axes` with problems
    summary     text next to the button; an error message if `error`
    loras       {file stem: title} of the LoRAs in the form
    earlier     HTML of the list of grids
    kinds       {letter: axis} of the axes of model files
    cards       {letter: HTML of the axis values as cards} of these axes
    is_visible  whether the card is visible
    """
    rows = "".join(_axis(letter, axes, invalid, kinds.get(letter), cards.get(letter, ""), loras) for letter in LETTERS)
    offered = options((title, value) for value, title in _axis_suggestions(loras))
    text = f'<span class="hint{" bad" if error else ""}" role="status">{esc(summary)}</span>'
    go = button("make", "Generate grid", kind="primary")
    body = (
        f'<div class="grid-axes">{rows}</div><div class="grid-go">{go}{text}</div>{earlier}'
        f'<datalist id="grid-settings">{offered}</datalist>'
    )
    return frame(GRID, "Grid", body, is_visible)


def _axis(
    letter: str, axes: Mapping[str, str], invalid: set[str], kind: FileAxis | None, cards: str, loras: Mapping[str, str]
) -> str:
    """Return the HTML of one axis.

    axes, invalid, loras: as of `panel`; kind: the axis's FileAxis, None for an axis of texts; cards: HTML of its values if it has one
    """
    name, values, upper = f"{letter}_axis", f"{letter}_values", letter.upper()
    named, text = axes.get(name, ""), axes.get(values, "")
    setting = setting_named(named) or ""
    mark = {each: ' aria-invalid="true"' if each in invalid else "" for each in (name, values)}
    title = loras.get(setting.removeprefix(f"{STRENGTH}:"), "")
    face = f'<span class="pick-face"><span><b>{middle(title)}</b></span></span>' if title else ""
    entry, hint = settings_of_axes().get(setting), ""
    if entry and named.strip().casefold() not in (entry.title.casefold(), title_in_group(entry).casefold()):
        hint = f'<span class="hint replaces">{esc(entry.title)}</span>'
    label = "Strength" if title else "Values"
    values_box = (
        f'<label class="own"><span>{label}</span><textarea rows="1" id="grid-{letter}-values" aria-label="{label} of {upper}" '
        f'data-act="field" data-arg="{values}" data-live placeholder="such as {esc(_example(letter, setting))}" '
        f'spellcheck="false"{mark[values]}>'
        f"{esc(text)}</textarea></label>{drop_field(letter)}"
    )
    about_fill = "All known values" if kind is None else "One file of each run, and all others"
    tools = button("clear", "Clear", letter, kind="quiet", label=f"Clear the values of {upper}") if text.strip() else ""
    tools += button(
        "fill", "Fill in all", letter, kind="quiet", label=f"Fill in all values of {upper}", title=about_fill
    )
    return (
        f'<div class="grid-axis"><label class="own"><span>{upper} ({WHERE[letter]})</span><input type="text" class="text" '
        f'list="grid-settings" id="grid-{letter}-axis" data-act="field" data-arg="{name}" value="{esc(named)}" '
        f'placeholder="none" autocomplete="off" spellcheck="false"{mark[name]}>{face}</label>'
        f"{values_box if kind is None else add_buttons(letter, kind)}"
        f'<div class="axis-tools">{tools}</div>'
        f"{cards}{_replaced_lora_html(kind, loras)}{hint}</div>"
    )


def _replaced_lora_html(kind: FileAxis | None, loras: Mapping[str, str]) -> str:
    """Return the HTML that names the LoRA of the form which an axis of LoRAs replaces; "" for other axes."""
    if kind is None or kind.name != LORA or not loras:
        return ""
    others = "; the others act in each image" if len(loras) > 1 else ""
    return f'<span class="hint replaces">In place of {esc(next(iter(loras.values())))}{others}.</span>'


def _example(letter: str, setting: str) -> str:
    """Return example values for an axis, which suit its setting."""
    entry = settings_of_axes().get(setting)
    kind = letter if entry is None else entry.kind
    return EXAMPLES.get(setting.partition(":")[0]) or EXAMPLES.get(kind, EXAMPLES["z"])


def _axis_suggestions(loras: Mapping[str, str]) -> list[tuple[str, str]]:
    """Return [(name, label)] of the settings that an axis can change, the special ones and those in FIRST first.

    name: the setting's title, with the group's if other settings have the same title; label: the group's title. loras: {file stem: title}
    """
    titles = {name: str(info.title) for name, info in GenerateJob.model_fields.items()}
    entries = [entry for entry in settings_of_axes().values() if entry.group not in HIDDEN]
    entries.sort(key=lambda entry: FIRST.index(entry.path) if entry.path in FIRST else len(FIRST))
    special = [
        *((title, "") for title in SPECIAL.values()),
        *((f"{SPECIAL[STRENGTH]}: {name}", f"Strength of {title}") for name, title in loras.items()),
    ]
    names = [entry.title if setting_named(entry.title) == entry.path else title_in_group(entry) for entry in entries]
    return special + [(name, titles[entry.group]) for name, entry in zip(names, entries, strict=True)]


def grid_list_html(grids: Sequence[GridRow], open_name: str, older: int) -> str:
    """Return the HTML of the list of grids; "" without any. open_name: name of the open grid; older: number of grids that are not listed"""
    if not grids:
        return ""
    rows = "".join(_earlier(grid, grid.name == open_name) for grid in grids)
    older_html = f'<p class="hint">{older:,} older grids are in outputs/grids.</p>' if older > 0 else ""
    return f'<ul class="grid-list" aria-label="Grids">{rows}</ul>{older_html}'


def _earlier(grid: GridRow, is_open: bool) -> str:
    """Return the HTML of a grid's row in the list."""
    opens = button("open", grid.title, grid.name, kind="quiet", label=f"Open the grid {grid.title}, {grid.name}")
    current = ' aria-current="true"' if is_open else ""
    return f'<li{current}>{opens}<span class="hint" title="{esc(grid.name)}">{esc(grid.progress)}</span></li>'


# -- the table


@dataclass(frozen=True)
class State:
    """State of the open grid.

    entry    id of its waiting or running job, "" without one
    waits    whether that job is waiting
    message  error that ended its newest job, "" if none
    """

    entry: str = ""
    waits: bool = False
    message: str = ""


@dataclass(frozen=True)
class OpenGrid:
    """The open grid.

    checkpoints  {axis letter and index, such as "x3": checkpoint} of the axis values that are checkpoints
    """

    folder: GridFolder
    content: GridContent
    state: State
    checkpoints: Mapping[str, Checkpoint]
    thumb_url: Callable[..., str]
    file_url: Callable[..., str]

    def html(self) -> str:
        """Return the HTML of the grid: buttons, progress and one table of cells per z value."""
        cells, generated = self.content.cells, self.folder.generated()
        bodies = "".join(self._table(z, generated) for z in range(self.content.size[2]))
        return (
            f'<section class="block-part grid-shown" aria-label="Grid {esc(self.content.title)}">'
            f"{self._head(len(cells & generated), len(cells))}{bodies}</section>"
        )

    def _head(self, done: int, total: int) -> str:
        """Return the HTML above the grid's tables: title, progress, buttons, messages. done, total: numbers of cells"""
        folder, content, state, buttons = self.folder, self.content, self.state, ""
        if not state.entry:
            buttons += button("resume", "Resume", folder.name, kind="primary") if done < total else ""
            for path, label in ((folder.png, "Image"), (folder.html, "HTML")):
                name = f"{folder.name}{path.suffix}"
                buttons += link(self.file_url(path), label, download=name) if path.is_file() else ""
            buttons += button("delete", "Delete", folder.name, kind="quiet", label=f"Delete the grid {content.title}")
        if axes_to_choose(content) and not content.run:  # a run's are on Monitor
            about = "Choose between two images without names; once there are three pairs"
            buttons += f'<button type="button" class="btn" data-choose="{esc(folder.name)}" title="{about}">Blind choice</button>'
        if content.run:
            buttons += f'<a class="btn" href="#Monitor/{quote(content.run)}" title="Compare its checkpoints on Monitor">Its run</a>'
        buttons += button("close", "Close", kind="quiet")
        progress = f"{done:,} of {count(total, 'image')}"
        wait = f', <span data-waits="{esc(state.entry)}"></span>' if state.waits else ""
        message = f'<p class="run-message error"><strong>{esc(state.message)}</strong></p>' if state.message else ""
        if preferred := preference_text(folder, content):
            message += f'<p class="grid-preferred">{esc(preferred)}</p>'
        return (
            f'<div class="grid-head"><h3 tabindex="-1" data-land="{esc(folder.name)}">{esc(content.title)}</h3>'
            f'<span class="hint">{esc(progress)}{wait}</span>'
            f'<span class="grow"></span><span class="does">{buttons}</span></div>{message}'
        )

    def _table(self, z: int, done: set[Index]) -> str:
        """Return the HTML of the table of cells at z index `z`. done: the generated cells"""
        columns, rows, _ = self.content.size
        x_axis, y_axis, z_axis = (self.content.axis(letter) for letter in LETTERS)
        corner = "<td></td>" if y_axis else ""
        titles = "".join(f'<th scope="col">{self._label(x_axis, x)}</th>' for x in range(columns)) if x_axis else ""
        body = ""
        for y in range(rows):
            side = f'<th scope="row">{self._label(y_axis, y)}</th>' if y_axis else ""
            cells = "".join(self._cell((x, y, z), done) for x in range(columns))
            body += f"<tr>{side}{cells}</tr>"
        title = f"<h4>{self._label(z_axis, z)}</h4>" if z_axis else ""
        name = esc(f"{z_axis.title} {z_axis.texts[z]}" if z_axis else self.content.title)
        head = f"<thead><tr>{corner}{titles}</tr></thead>" if x_axis else ""
        return (
            f'{title}<div class="grid-scroll" tabindex="0" role="region" aria-label="{name}">'
            f'<table class="grid-table">{head}<tbody>{body}</tbody></table></div>'
        )

    def _label(self, axis: AxisTexts, index: int) -> str:
        """Return the HTML of the header of the axis value at `index`, with the button that keeps a checkpoint."""
        note = f'<span class="hint">{esc(axis.notes[index])}</span>' if axis.notes[index] else ""
        text = axis.texts[index]
        title_html = f'<small>{esc(axis.title)}</small><b title="{esc(text)}">{esc(short(text, 120))}</b>{note}'
        return title_html + self._keep_button(axis, index)

    def _keep_button(self, axis: AxisTexts, index: int) -> str:
        """Return the HTML that marks the checkpoint at `index` of an axis to keep, or shows its mark; "" for other values."""
        key, name = f"{axis.letter}{index}", axis.texts[index]
        checkpoint = self.checkpoints.get(key)
        if checkpoint is None:
            return ""
        if checkpoint.name is None:
            about = "Marks it in Runs and in the lists of Generate"
            keep = button("keep", "Keep this one", key, label=f"Keep {name}", title=about)
            return f'<span class="grid-keep">{keep}</span>{checkpoint.copied}'
        field = (
            f'<input type="text" class="text" data-act="keep" data-arg="{key}" value="{esc(checkpoint.name)}" maxlength="80" '
            f'placeholder="{esc(name)}" aria-label="Name of {esc(name)}">'
        )
        undo = button("unkeep", "Undo", key, kind="quiet", label=f"Do not keep {name}")
        return f'<span class="grid-keep"><span class="good">Kept as</span>{field}{undo}</span>{checkpoint.copied}'

    def _cell(self, position: Index, done: set[Index]) -> str:
        """Return the HTML of the table cell at `position` (x, y, z): its thumbnail, error or placeholder.

        done: positions of the generated cells; several cells can share one image (`GridContent.source`)
        """
        content, source = self.content, self.content.source(position)
        texts = [
            f"{axis.title}: {axis.texts[index]}"
            for letter, index in zip(LETTERS, position, strict=True)
            if (axis := content.axis(letter))
        ]
        label = esc(", ".join(texts))
        if source in done:
            path = self.folder.cell(source)
            name, small = f"grid:{self.folder.name}/{path.name}", self.thumb_url(path, 256)
            return (
                f'<td><button type="button" class="grid-cell" data-name="{esc(name)}" data-full="{esc(self.file_url(path))}" '
                f'data-row="{position[1]}" data-column="{position[0]}" title="{label}">'
                f'<img src="{esc(small)}" alt="{label}" loading="lazy"></button></td>'
            )
        if source in content.failed:
            return f'<td><div class="grid-cell failed" title="{label}"><span>{esc(short(content.failed[source], 160))}</span></div></td>'
        return f'<td><div class="grid-cell waits" title="{label}"></div></td>'


def removed(state: Mapping[str, Any]) -> str:
    """Return the HTML with the Undo of the last removal of the axes or a grid; "" without one. state: the stored state of the grids"""
    what = "The axes were removed." if state.get("axes") else "The grid was moved to the trash."
    if not (state.get("axes") or state.get("trashed")):
        return ""
    return (
        f'<p class="strip grid-removed" role="status"><span class="hint">{what}</span>{button("put_back", "Undo")}</p>'
    )


def unreadable(name: str, message: str) -> str:
    """Return the HTML of an open grid whose file is damaged. message: the error"""
    close: Any = button("close", "Close", kind="quiet")
    return section(name, f'<p class="run-message error"><strong>{esc(message)}</strong></p>{close}')
