"""HTML of the Generate form: model, size and sampling settings, and collapsed groups of the other settings."""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from core.families.locate import GENERATED, family_of
from core.families.trained_size import trained_size
from core.formats.detect import FAMILY_NAMES
from core.generation.model.library import find_file
from core.generation.plan.stages import hires_sizes
from core.record.problems import ProblemsError
from core.record.workspace import Workspace
from core.settings.base import chooser_of
from core.settings.job import GenerateJob
from core.settings.model import FAMILIES
from core.settings.values import shown_value
from tabs.form.view import browses, label
from tabs.generate import cards, form
from tabs.markup import button, esc, middle, short
from tabs.pieces import piece

SHORT = {"steps": "Steps", "guidance_scale": "Guidance"}  # titles in a narrow row
RATIOS = ("1:1", "4:5", "2:3", "9:16", "3:2", "16:9")
LARGE = 2.25  # times the pixels of the trained size, from which on images repeat their contents
SHOWN_ABOVE = ("width", "height", "sampler", "schedule_type", "steps", "guidance_scale", "seed")

# {row: (title, groups)} of the groups that share a row. Each other group is a row.
TOGETHER = {
    "model": ("Model, VAE, clip skip", ("model",)),
    "large": ("Deep Shrink, Gradual Latent", ("deep_shrink", "gradual_latent")),
    "conditioning": ("Refiner, SDXL sizes, noise", ("refiner", "sizes", "start_noise")),
    "output": ("Output, memory", ("output", "generation_memory")),
}
LAST, BASE = "generate", "base_model"  # the row "More", the field of the chosen model

Draw = Callable[..., str]  # names of fields -> HTML of their controls


@dataclass(frozen=True)
class Model:
    """The chosen base model.

    family   such as "sdxl"; "" if unknown
    trained  (width, height) it was trained at, in pixels; None if unknown
    problem  why the family is unknown, "" if it is known
    """

    family: str = ""
    trained: tuple[int, int] | None = None
    problem: str = ""

    @property
    def step(self) -> int:
        """Step of image sides in pixels: width and height must be multiples of it."""
        return FAMILIES[self.family].size_step if self.family in FAMILIES else 8


def model_of(values: Mapping[str, Any], project_model: Any, workspace: Workspace) -> Model:
    """Return the chosen base model, identified by its header, or one with a problem. project_model: model settings of Train"""
    chosen = str(values["base_model"]).strip()
    path = find_file(chosen or project_model.base_model, workspace)
    if path is None:
        return Model(problem="not on this machine")
    try:
        name = family_of(path, "auto" if chosen else project_model.family, GENERATED)
        return Model(name, trained_size(path, name))
    except (ProblemsError, OSError, StopIteration) as error:
        return Model(problem=error.problems[0].what if isinstance(error, ProblemsError) else "unreadable")


def settings(
    render_fields: Draw,
    model: Model,
    size: tuple[int, int],
    locked: bool,
    model_html: str,
    hires: float | None = None,
    note: str = "",
) -> str:
    """Return the HTML of base model, size and sampling settings.

    render_fields  function of field names that returns the HTML of the fields
    size           (width, height) of the images in pixels
    locked         whether a seed is set
    model_html     HTML of the base model's button
    hires          scale factor of hires fix, None if it is off
    note           advice about the sampling settings
    """
    hires_button = (
        button("hires", "Hires fix", title="Begins at the trained size")
        if hires_scale(model, size) and hires is None
        else ""
    )
    swap = button("swap", "\u21c4", label="Swap width and height", title="Swap width and height")
    lock = (
        f'<button type="button" class="btn" data-act="seed" data-arg="lock" aria-pressed="{str(locked).lower()}" '
        f'title="Keep one seed, that of the newest image, for all generations">Lock</button>'
    )
    sizes = " then ".join(f"{w} \u00d7 {h}" for w, h in dict.fromkeys(hires_sizes(size, hires) if hires else (size,)))
    return (
        f'<div class="block-part">{model_html}<fieldset class="gen-sizes"><legend>Size '
        f'<b>{sizes}</b></legend>{_ratios(model, size)}<div class="gen-own-size">'
        f'<div class="gen-row size">{render_fields("width")}{swap}{render_fields("height")}</div>'
        f'<p class="hint gen-says">{esc(about_size(model, size, hires is not None))} {hires_button}</p></div></fieldset>'
        f'<div class="gen-row steps">{render_fields("steps", "guidance_scale", "seed", titles=SHORT)}{lock}</div>'
        f'<div class="gen-row ways">{render_fields("sampler", "schedule_type")}</div>'
        f'<p class="hint gen-says">{esc(note)}</p></div>'
    )


def _ratios(model: Model, size: tuple[int, int]) -> str:
    """Return the HTML of a radio button for each aspect ratio, and one for custom sizes. size: (width, height) of the images in pixels"""
    native = model.trained or size
    sizes = {ratio: form.ratio_size(ratio, native) for ratio in RATIOS}
    chosen = next((ratio for ratio, each in sizes.items() if each == size), "")
    chips = ""
    for ratio, (width, height) in sizes.items():
        wide, high = (int(part) for part in ratio.split(":"))
        shape = f"width:{14 * min(1, wide / high):.0f}px;height:{14 * min(1, high / wide):.0f}px"
        chips += (
            f'<label title="{width} \u00d7 {height}"><input type="radio" name="gen-ratio" data-act="ratio" value="{ratio}" '
            f'id="gen-ratio-{ratio.replace(":", "-")}"{" checked" if ratio == chosen else ""}>'
            f'<span><i style="{shape}"></i>{ratio}</span></label>'
        )
    custom = "" if chosen else " checked"
    return (
        f'<div class="gen-ratios">{chips}<label title="Width and height"><input type="radio" name="gen-ratio" '
        f'id="gen-ratio-custom" value=""{custom}><span>Custom</span></label></div>'
    )


def model_chip(name: str, model: Model, image: str) -> str:
    """Return the HTML of the button that shows the base model and opens the list of models. image: HTML of the model's preview"""
    trained = f"{model.trained[0]} \u00d7 {model.trained[1]}" if model.trained else ""
    return (
        f'<div class="gen-model"><button type="button" class="btn gen-chip" data-pick="base_model" data-form="gen" '
        f'data-looks="any" data-title="Base model">{image}<span class="unseen">Base model: </span><b>{middle(name)}</b>'
        f'<span class="hint">{trained}</span>{badge(model.family, model.problem)}</button></div>'
    )


def badge(family: str, problem: str = "") -> str:
    """Return the HTML of a badge with a model family, or "unknown" with `problem` as tooltip."""
    text = FAMILY_NAMES.get(family, family) if family else "unknown"
    return (
        f'<span class="badge{"" if family else " bad"}" title="{esc(problem or "Detected family")}">{esc(text)}</span>'
    )


def hires_scale(model: Model, size: tuple[int, int]) -> float:
    """Return the hires fix scale that makes the first stage about as large as the trained size; 0 if `size` is not much larger.

    size: (width, height) of the images in pixels
    """
    if model.trained is None or _times(model, size) < LARGE:
        return 0.0
    return round(max(_times(model, size) ** -0.5, 0.1), 2)


def _times(model: Model, size: tuple[int, int]) -> float:
    """Return the pixel count of `size` (width, height) divided by that of the trained size."""
    width, height = model.trained or size
    return size[0] * size[1] / (width * height)


def about_size(model: Model, size: tuple[int, int], hires: bool = False) -> str:
    """Return the text on valid sides, with a warning if `size` (width, height) is far from the trained size. hires: hires fix is on"""
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
    """A collapsed row of settings.

    name     of the row
    summary  text next to the title
    fields   HTML of the settings
    in_use   text shown while all rows are collapsed: number of fields to fix, and the settings that are not defaults
    """

    name: str
    title: str
    summary: str
    fields: str
    in_use: str = ""


def groups(rows: Sequence[Group]) -> str:
    """Return the HTML of "All settings, presets": a search field and the collapsed rows."""
    rows_html = "".join(
        f'<details data-group="{esc(group.name)}"><summary class="row"><b>{esc(group.title)}</b> '
        f'<span class="hint" title="{esc(group.summary)}">{esc(short(group.summary, 70))}</span></summary>{group.fields}'
        f"</details>"
        for group in rows
    )
    summary = ", ".join(group.in_use for group in rows if group.in_use)
    return (
        f'<details data-group="all" class="block-part gen-all"><summary class="btn row"><b>All settings, presets</b> '
        f'<span class="hint" title="{esc(summary)}">{esc(short(summary, 60))}</span></summary>{piece("gen_search")}'
        f'<div class="gen-groups">{rows_html}</div></details>'
    )


def rows_of(
    values: Mapping[str, Any],
    shown_above: Iterable[str],
    render_fields: Draw,
    html_above: Callable[[str], str] = lambda group: "",
    notes: Mapping[str, str] = {},
    invalid: Collection[str] = (),
) -> list[Group]:
    """Return the collapsed rows, with the settings that are neither in `shown_above` nor on a card.

    render_fields  function of field names that returns the HTML of the fields
    html_above     function of a group name that returns the HTML above its fields
    notes          {group: text added to the summary of its row}
    invalid        names of fields with invalid input: counted in the summary, and shown even if they have no effect
    """
    elsewhere = {*shown_above, cards.STRENGTH, *(name for card in cards.CARDS for name in card.fields)}
    remaining = [name for name in (BASE, *form.MODEL, *form.FIELDS) if name not in elsewhere]
    remaining = [name for name in remaining if name in invalid or _has_effect(name, values)]
    row_of = {group: row for row, (_, members) in TOGETHER.items() for group in members}
    names: dict[str, dict[str, list[str]]] = {}
    for name in remaining:
        group = "model" if name == BASE else form.ENTRIES[name].group
        names.setdefault(row_of.get(group, group), {}).setdefault(group, []).append(name)
    order = sorted(names, key=lambda row: row == LAST)  # stable
    first = {row: next((notes[group] for group in names[row] if group in notes), "") for row in order}
    return [_row(row, names[row], values, render_fields, html_above, first[row], invalid) for row in order]


def _row(
    row: str,
    members: Mapping[str, list[str]],
    values: Mapping[str, Any],
    render_fields: Draw,
    html_above: Callable[[str], str],
    note: str,
    invalid: Collection[str],
) -> Group:
    """Return the collapsed row `row` with the fields of its groups. members: {group: field names}; others as of `rows_of`"""
    fields = ""
    for group, names in members.items():
        head = f"<h3>{esc(_title(group))}</h3>" if len(members) > 1 else ""
        fields += f'{head}{html_above(group)}<div class="concept-fields">{render_fields(*names)}</div>'
    all_names = [name for names in members.values() for name in names]
    to_fix = sum(name in invalid for name in all_names)
    changed = [name for name in all_names if form.is_set(name, values)]
    in_use = [f"{to_fix} to fix"] if to_fix else []
    in_use += [f"{label(form.ENTRIES[name])} {_value_text(name, values[name])}" for name in changed]
    summary = ", ".join([*in_use, *filter(None, [note])])
    title = "More" if row == LAST else TOGETHER[row][0] if row in TOGETHER else _title(row)
    return Group(row, title, summary, fields, ", ".join(in_use))


def _value_text(name: str, value: Any) -> str:
    """Return a value as short text: the file name of a path, else the value as the page shows it."""
    return Path(value).name if browses(form.ENTRIES[name]) else shown_value(form.ENTRIES[name], value)


def _has_effect(name: str, values: Mapping[str, Any]) -> bool:
    """Return whether a setting has an effect: False if its group belongs to a choice, such as a guidance method, that is not chosen."""
    group = form.ENTRIES[name].group
    chooser = chooser_of(GenerateJob.model_fields[group]) if group in GenerateJob.model_fields else ""
    return not chooser or bool(values.get(chooser.partition(".")[2]) == group)


def _title(group: str) -> str:
    """Return the title of a settings group of GenerateJob."""
    return str(GenerateJob.model_fields[group].title)
