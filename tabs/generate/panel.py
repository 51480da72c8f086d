"""HTML of the Generate tab's panel: the main settings, and closed groups of the others."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from core.families.locate import GENERATED, family_of
from core.families.trained_size import trained_size
from core.formats.detect import FAMILY_NAMES
from core.generation.model.library import find_file
from core.record.problems import ProblemsError
from core.record.workspace import Workspace
from core.settings.base import chooser_of
from core.settings.job import GenerateJob
from core.settings.model import FAMILIES
from core.settings.values import shown_value
from tabs.form.view import browses, label
from tabs.generate import form
from tabs.markup import button, esc, short

RATIOS = ("1:1", "4:5", "2:3", "9:16", "5:4", "3:2", "16:9")
LARGE = 2.25  # times the pixels of the trained size, from which on images repeat their contents
SHOWN_ABOVE = ("base_model", "width", "height", "sampler", "schedule_type", "steps", "guidance_scale", "seed")

# {row: (title, groups)} of the groups that share a row. Each other group is a row.
TOGETHER = {
    "model": ("VAE and clip skip", ("model",)),
    "large": ("Large images", ("hires", "deep_shrink", "gradual_latent")),
    "prompts": ("Prompts from files, regions", ("prompts", "regions")),
    "conditioning": ("Refiner, SDXL sizes, noise", ("refiner", "sizes", "start_noise")),
    "controls": ("ControlNet, CLIP and VGG guidance", ("controls", "perceptual")),
    "output": ("Output, memory", ("output", "generation_memory")),
}
LAST = "generate"  # the row "More"

Draw = Callable[..., str]  # names of fields -> HTML of their controls


@dataclass(frozen=True)
class Model:
    """The chosen base model. family: "" if unknown, for the reason `problem`; trained: (width, height)"""

    family: str = ""
    trained: tuple[int, int] | None = None
    problem: str = ""

    @property
    def step(self) -> int:
        return FAMILIES[self.family].size_step if self.family in FAMILIES else 8


def model_of(values: Mapping[str, Any], project_model: Any, workspace: Workspace) -> Model:
    """Family and trained size of the chosen model, from its header."""
    chosen = str(values["base_model"]).strip()
    path = find_file(chosen or project_model.base_model, workspace)
    if path is None:
        return Model(problem="not on this machine")
    try:
        name = family_of(path, "auto" if chosen else project_model.family, GENERATED)
        return Model(name, trained_size(path, name))
    except (ProblemsError, OSError, StopIteration) as error:
        return Model(problem=error.problems[0].what if isinstance(error, ProblemsError) else "unreadable")


def settings(draw: Draw, model: Model, size: tuple[int, int], locked: bool, hires: bool = False) -> str:
    """HTML of base model, size and sampling settings.

    size   of the images      locked   whether a seed is set      hires   whether hires fix is on
    """
    fix = (
        button("hires", "Hires fix", title="Begins at the trained size")
        if hires_scale(model, size) and not hires
        else ""
    )
    ratios = "".join(f'<option value="{ratio}">{ratio}</option>' for ratio in RATIOS)
    swap = button("swap", "\u21c4", label="Swap width and height", title="Swap width and height")
    ratio = (
        f'<label class="own"><span>Ratio</span><select data-act="ratio" aria-label="Size by ratio">'
        f'<option value="">choose</option>{ratios}</select></label>'
    )
    seeds = (
        button("seed", "Random", "random", kind="quiet", title="A new seed for each generation (-1)")
        + button("seed", "Last", "last", kind="quiet", title="The seed of the newest image")
        + f'<button type="button" class="btn quiet" data-act="seed" data-arg="lock" aria-pressed="{str(locked).lower()}" '
        f'title="Keep one seed for all generations">Lock</button>'
    )
    return (
        f'<div class="block-part"><div class="gen-model">{draw("base_model")}{badge(model.family, model.problem)}</div>'
        f'<div class="gen-row size">{draw("width")}{swap}{draw("height")}{ratio}</div>'
        f'<p class="hint gen-says">{esc(about_size(model, size, hires))} {fix}</p>'
        f'<div class="gen-row ways">{draw("sampler", "schedule_type", "steps", "guidance_scale")}'
        f'<div class="gen-seed">{draw("seed")}<div class="strip">{seeds}</div></div></div></div>'
    )


def badge(family: str, problem: str = "") -> str:
    """HTML of a badge with the family of a file."""
    words = FAMILY_NAMES.get(family, family) if family else "unknown"
    return (
        f'<span class="badge{"" if family else " bad"}" title="{esc(problem or "Detected family")}">{esc(words)}</span>'
    )


def hires_scale(model: Model, size: tuple[int, int]) -> float:
    """Scale of hires fix at which its first stage has about the trained size; 0 if the size is not large."""
    if model.trained is None or _times(model, size) < LARGE:
        return 0.0
    return round(max(_times(model, size) ** -0.5, 0.1), 2)


def _times(model: Model, size: tuple[int, int]) -> float:
    width, height = model.trained or size
    return size[0] * size[1] / (width * height)


def about_size(model: Model, size: tuple[int, int], hires: bool = False) -> str:
    """Text on the valid sides, and on a size that differs much from the trained one. hires: whether hires fix is on"""
    text = f"Sides are multiples of {model.step}."
    if model.trained is None:
        return text
    width, height = model.trained
    text += f" Trained at {width} \u00d7 {height}."
    times = _times(model, size)
    if times >= LARGE:
        return text if hires else f"{text} {times:.0f} times the trained size: things will repeat."
    if times <= 1 / LARGE:
        return f"{text} Much smaller images lose quality."
    return text


# -- closed groups


@dataclass(frozen=True)
class Group:
    """A closed row of settings. summary: text of the settings that differ from their defaults; fields: HTML"""

    name: str
    title: str
    summary: str
    fields: str


def groups(rows: Iterable[Group]) -> str:
    listed = "".join(
        f'<details data-group="{esc(group.name)}"><summary class="row"><b>{esc(group.title)}</b> '
        f'<span class="hint" title="{esc(group.summary)}">{esc(short(group.summary, 70))}</span></summary>{group.fields}'
        f"</details>"
        for group in rows
    )
    return f'<div class="block-part gen-groups">{listed}</div>'


def rows_of(
    values: Mapping[str, Any],
    shown: Iterable[str],
    draw: Draw,
    first: Callable[[str], str] = lambda group: "",
    notes: Mapping[str, str] = {},
    wrong: Collection[str] = (),
) -> list[Group]:
    """The closed rows, with all settings that are not in `shown`.

    first   returns the HTML above the fields of a group      notes   {row: end of its summary}
    wrong   fields with invalid input: they are listed while they have no effect too, and counted in the summary
    """
    left = [name for name in (*form.MODEL, *form.FIELDS) if name not in set(shown)]
    left = [name for name in left if name in wrong or _of_use(name, values)]
    row_of = {group: row for row, (_, members) in TOGETHER.items() for group in members}
    names: dict[str, dict[str, list[str]]] = {}
    for name in left:
        group = form.ENTRIES[name].group
        names.setdefault(row_of.get(group, group), {}).setdefault(group, []).append(name)
    order = sorted(names, key=lambda row: row == LAST)  # stable
    rows = [_row(row, names[row], values, draw, first) for row in order]
    to_fix = {row: sum(name in wrong for group in names[row].values() for name in group) for row in order}
    words = (
        (f"{to_fix[row.name]} to fix" if to_fix[row.name] else "", row.summary, notes.get(row.name)) for row in rows
    )
    return [replace(row, summary=", ".join(filter(None, each))) for row, each in zip(rows, words, strict=True)]


def _row(
    row: str, members: Mapping[str, list[str]], values: Mapping[str, Any], draw: Draw, first: Callable[[str], str]
) -> Group:
    fields = ""
    for group, names in members.items():
        head = f"<h3>{esc(_title(group))}</h3>" if len(members) > 1 else ""
        fields += f'{head}{first(group)}<div class="concept-fields">{draw(*names)}</div>'
    changed = [name for names in members.values() for name in names if _is_set(name, values)]
    summary = ", ".join(f"{label(form.ENTRIES[name])} {_value_text(name, values[name])}" for name in changed)
    title = "More" if row == LAST else TOGETHER[row][0] if row in TOGETHER else _title(row)
    return Group(row, title, summary, fields)


def _value_text(name: str, value: Any) -> str:
    """Short text of a value; of a path, the file's name."""
    return Path(value).name if browses(form.ENTRIES[name]) else shown_value(form.ENTRIES[name], value)


def _of_use(name: str, values: Mapping[str, Any]) -> bool:
    """Whether a setting has an effect: not if its group belongs to a choice, such as a kind of guidance, that is not chosen."""
    group = form.ENTRIES[name].group
    chooser = chooser_of(GenerateJob.model_fields[group]) if group in GenerateJob.model_fields else ""
    return not chooser or bool(values.get(chooser.partition(".")[2]) == group)


def _title(group: str) -> str:
    return str(GenerateJob.model_fields[group].title)


def _is_set(name: str, values: Mapping[str, Any]) -> bool:
    return bool(values.get(name) != form.json_value(form.ENTRIES[name].default))
