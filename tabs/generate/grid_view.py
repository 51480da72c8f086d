"""Grids as HTML: the group of axes in the panel, and the table of cells."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from core.generation.grids.axes import LETTERS, SPECIAL, settings_of_axes
from core.generation.grids.folder import AxisTexts, GridContent, GridFolder
from core.settings.job import GenerateJob
from tabs.markup import button, esc, link, section, short

WHERE = {"x": "columns", "y": "rows", "z": "tables"}
EXAMPLES = {"x": "20-40 (+10)", "y": "ddim, Euler a", "z": 'fox, dog, "red hat"'}


@dataclass(frozen=True)
class Earlier:
    """A grid of the list. doing: what it does now, "" for one that has ended"""

    name: str
    title: str
    made: int
    total: int
    failed: int
    doing: str


@dataclass(frozen=True)
class KeptCheckpoint:
    """A checkpoint that a column, row or table is of. kept: its name, None where it is not kept. copied: HTML"""

    kept: str | None
    copied: str


# -- the panel


def panel(given: Mapping[str, str], wrong: set[str], says: str, bad: bool, loras: Sequence[str], earlier: str) -> str:
    """Three axes, what they come to, and the grids made before.

    given   x_axis, x_values and so on       wrong   those that cannot be used       loras   names that have strengths
    """
    rows = "".join(_axis(letter, given, wrong) for letter in LETTERS)
    offered = "".join(f'<option value="{esc(value)}">{esc(words)}</option>' for value, words in _offers(loras))
    said = f'<span class="hint{" bad" if bad else ""}" role="status">{esc(says)}</span>'
    go = button("make", "Generate grid", kind="primary")
    return (
        f'<div class="block-part gen-groups"><details data-group="grid"><summary class="row"><b>X/Y/Z grid</b> '
        f'<span class="hint">{esc(_summary(given))}</span></summary>'
        f'<div class="grid-axes">{rows}</div><div class="grid-go">{go}{said}</div>{earlier}'
        f'<datalist id="grid-settings">{offered}</datalist></details></div>'
    )


def _summary(given: Mapping[str, str]) -> str:
    chosen = [f"{letter.upper()} {given[f'{letter}_axis']}" for letter in LETTERS if given.get(f"{letter}_axis")]
    return short(", ".join(chosen), 50)


def _axis(letter: str, given: Mapping[str, str], wrong: set[str]) -> str:
    name, values = f"{letter}_axis", f"{letter}_values"
    mark = {each: ' aria-invalid="true"' if each in wrong else "" for each in (name, values)}
    up = letter.upper()
    return (
        f'<div class="grid-axis"><label class="own"><span>{up} ({WHERE[letter]})</span><input type="text" class="text" '
        f'list="grid-settings" id="grid-{letter}-axis" data-act="field" data-arg="{name}" value="{esc(given.get(name, ""))}" '
        f'placeholder="none" autocomplete="off" spellcheck="false"{mark[name]}></label>'
        f'<label class="own"><span>Values</span><textarea rows="1" id="grid-{letter}-values" data-act="field" '
        f'data-arg="{values}" placeholder="{esc(EXAMPLES[letter])}" spellcheck="false"{mark[values]}>'
        f"{esc(given.get(values, ''))}</textarea></label>"
        f"{button('fill', 'All', letter, kind='quiet', label=f'All values of {up}', title='Fill in all known values')}</div>"
    )


def _offers(loras: Sequence[str]) -> list[tuple[str, str]]:
    """(name, words) of what an axis can change, the special ones first."""
    titles = {name: str(info.title) for name, info in GenerateJob.model_fields.items()}
    entries = settings_of_axes().values()
    special = [*SPECIAL.items(), *((f"lora_strength:{name}", f"Strength of {name}") for name in loras)]
    return special + [(entry.path, f"{entry.title} ({titles[entry.group]})") for entry in entries]


def earlier(grids: Sequence[Earlier], open_one: str, more: int) -> str:
    if not grids:
        return ""
    rows = "".join(_earlier(grid, grid.name == open_one) for grid in grids)
    rest = f'<p class="hint">{more:,} older grids are in outputs/grids.</p>' if more > 0 else ""
    return f'<ul class="grid-list" aria-label="Grids">{rows}</ul>{rest}'


def _earlier(grid: Earlier, is_open: bool) -> str:
    failed = f", {grid.failed} failed" if grid.failed else ""
    count = f"{grid.total:,} images{failed}" if grid.made >= grid.total else f"{grid.made:,} of {grid.total:,}{failed}"
    words = f"{count}, {grid.doing}" if grid.doing else count
    opens = button("open", grid.title, grid.name, kind="quiet", label=f"Open the grid {grid.title}, {grid.name}")
    now = ' aria-current="true"' if is_open else ""
    return f'<li{now}>{opens}<span class="hint" title="{esc(grid.name)}">{esc(words)}</span></li>'


# -- the table


@dataclass(frozen=True)
class State:
    """An open grid. entry: of the queue, "" where none; how far it is stands in the status line, with Cancel.
    message: why it ended before its time"""

    entry: str = ""
    message: str = ""


def table(
    folder: GridFolder,
    content: GridContent,
    state: State,
    kept: Mapping[tuple[str, int], KeptCheckpoint],
    thumb_url: Callable[..., str],
    file_url: Callable[..., str],
) -> str:
    """An open grid: its state, files and tables. kept: {(axis, index): what is kept of that checkpoint}."""
    made = folder.generated()
    columns, rows, tables = content.size
    total = columns * rows * tables
    bodies = "".join(_table(folder, content, z, made, kept, thumb_url, file_url) for z in range(tables))
    there = sum(content.source((x, y, z)) in made for x in range(columns) for y in range(rows) for z in range(tables))
    return (
        f'<section class="block-part grid-shown" aria-label="Grid {esc(content.title)}">'
        f"{_head(folder, content, state, there, total, file_url)}{bodies}</section>"
    )


def _head(
    folder: GridFolder, content: GridContent, state: State, there: int, total: int, file_url: Callable[..., str]
) -> str:
    does = ""
    if not state.entry:
        does += button("resume", "Resume", folder.name, kind="primary") if there < total else ""
        for path, words in ((folder.png, "Image"), (folder.html, "HTML")):
            name = f"{folder.name}{path.suffix}"
            does += link(file_url(path), words, download=name) if path.is_file() else ""
        sure = "Its folder moves to the trash of the outputs folder."
        name = f"Delete the grid {content.title}"
        does += button("delete", "Delete", folder.name, kind="quiet", label=name, sure=sure)
    does += button("close", "Close", kind="quiet")
    words = f"{there:,} of {total:,} cells"
    message = f'<p class="run-message error"><strong>{esc(state.message)}</strong></p>' if state.message else ""
    return (
        f'<div class="grid-head"><h3 tabindex="-1" data-land="{esc(folder.name)}">{esc(content.title)}</h3>'
        f'<span class="hint">{esc(words)}</span>'
        f'<span class="grow"></span><span class="does">{does}</span></div>{message}'
    )


def _table(
    folder: GridFolder,
    content: GridContent,
    z: int,
    made: set[tuple[int, int, int]],
    kept: Mapping[tuple[str, int], KeptCheckpoint],
    thumb_url: Callable[..., str],
    file_url: Callable[..., str],
) -> str:
    columns, rows, _ = content.size
    x_axis, y_axis, z_axis = (content.axis(letter) for letter in LETTERS)
    corner = "<td></td>" if y_axis else ""
    heads = "".join(_label(x_axis, x, kept, "col") for x in range(columns)) if x_axis else ""
    body = ""
    for y in range(rows):
        side = _label(y_axis, y, kept, "row") if y_axis else ""
        cells = "".join(_cell(folder, content, (x, y, z), made, thumb_url, file_url) for x in range(columns))
        body += f"<tr>{side}{cells}</tr>"
    title = f"<h4>{_words(z_axis, z)}{_keeping(z_axis, z, kept)}</h4>" if z_axis else ""
    name = esc(f"{z_axis.title} {z_axis.texts[z]}" if z_axis else content.title)
    head = f"<thead><tr>{corner}{heads}</tr></thead>" if x_axis else ""
    return (
        f'{title}<div class="grid-scroll" tabindex="0" role="region" aria-label="{name}">'
        f'<table class="grid-table">{head}<tbody>{body}</tbody></table></div>'
    )


def _label(axis: AxisTexts, number: int, kept: Mapping[tuple[str, int], KeptCheckpoint], scope: str) -> str:
    return f'<th scope="{scope}">{_words(axis, number)}{_keeping(axis, number, kept)}</th>'


def _words(axis: AxisTexts, number: int) -> str:
    note = f'<span class="hint">{esc(axis.notes[number])}</span>' if axis.notes[number] else ""
    text = axis.texts[number]
    return f'<small>{esc(axis.title)}</small><b title="{esc(text)}">{esc(short(text, 120))}</b>{note}'


def _keeping(axis: AxisTexts, number: int, kept: Mapping[tuple[str, int], KeptCheckpoint]) -> str:
    """Keep this checkpoint, or under which name it is kept."""
    about = kept.get((axis.letter, number))
    if about is None:
        return ""
    place, name = f"{axis.letter}{number}", axis.texts[number]
    if about.kept is None:
        keep = button(
            "keep", "Keep this one", place, label=f"Keep {name}", title="Marks it in Runs and in the lists of Generate"
        )
        return f'<span class="grid-keep">{keep}</span>{about.copied}'
    field = (
        f'<input type="text" class="text" data-act="keep" data-arg="{place}" value="{esc(about.kept)}" maxlength="80" '
        f'aria-label="Name of {esc(name)}">'
    )
    undo = button("unkeep", "Undo", place, kind="quiet", label=f"Do not keep {name}")
    return f'<span class="grid-keep"><span class="good">Kept as</span>{field}{undo}</span>{about.copied}'


def _cell(
    folder: GridFolder,
    content: GridContent,
    place: tuple[int, int, int],
    made: set[tuple[int, int, int]],
    thumb_url: Callable[..., str],
    file_url: Callable[..., str],
) -> str:
    source = content.source(place)
    texts = [
        f"{axis.title}: {axis.texts[number]}"
        for letter, number in zip(LETTERS, place, strict=True)
        if (axis := content.axis(letter))
    ]
    words = esc(", ".join(texts))
    if source in made:
        path = folder.cell(source)
        name = f"grid:{folder.name}/{path.name}"
        return (
            f'<td><button type="button" class="grid-cell" data-name="{esc(name)}" data-full="{esc(file_url(path))}" '
            f'data-row="{place[1]}" data-column="{place[0]}" title="{words}"><img src="{esc(thumb_url(path, 256))}" alt="{words}" '
            f'loading="lazy"></button></td>'
        )
    if source in content.failed:
        return f'<td><div class="grid-cell failed" title="{words}"><span>{esc(short(content.failed[source], 160))}</span></div></td>'
    return f'<td><div class="grid-cell waits" title="{words}"></div></td>'


def unreadable(name: str, what: str) -> str:
    """An open grid whose file is damaged."""
    close: Any = button("close", "Close", kind="quiet")
    return section(name, f'<p class="run-message error"><strong>{esc(what)}</strong></p>{close}')
