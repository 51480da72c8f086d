"""The axes of a grid: the setting that each changes, and its values, parsed from texts as in A1111's X/Y/Z plot."""

import csv
import difflib
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from io import StringIO
from typing import Any

from core.generation.prompt.options import split_schedule
from core.record.file_titles import file_stem
from core.record.problems import Problem, ProblemsError, collected, raise_if_errors
from core.record.units import number_text
from core.settings.base import Declared, declared
from core.settings.check import build
from core.settings.generation.controls import ControlUse
from core.settings.generation.generate import LoraUse
from core.settings.job import GenerateJob, GridJob
from core.settings.samples import ALSO_CALLED
from core.settings.values import value_typed

LETTERS = ("x", "y", "z")
PROMPT_SR, SIZE, LORA, STRENGTH = "prompt_sr", "size", "lora", "lora_strength"
CONTROL, WEIGHT = "control_net", "control_weight"
STYLES = "prompts.styles"
SPECIAL = {  # titles
    PROMPT_SR: "Prompt S/R",
    SIZE: "Size",
    LORA: "LoRA",
    STRENGTH: "LoRA strength",
    CONTROL: "ControlNet",
    WEIGHT: "ControlNet weight",
}
FILES = (LORA, CONTROL)
NONE = "none"  # an empty setting among the values of an axis
# A1111's names that differ from a setting's name and title.
A1111_NAMES = {
    "checkpoint": "model.base_model",
    "checkpoint name": "model.base_model",
    "cfg scale": "generate.guidance_scale",
    "var. seed": "generate.variation_seed",
    "var. strength": "generate.variation_strength",
    "denoising": "image_to_image.strength",
    "hires upscale": "hires.highres_fix_scale",
    "upscale by": "hires.highres_fix_scale",
    "hires upscaler": "hires.highres_fix_upscaler",
    "rng source": "start_noise.noise_source",
    "[controlnet] weight": WEIGHT,
    "lora weight": STRENGTH,
    "refiner checkpoint": "refiner.refiner_checkpoint",
    "refiner switch at": "refiner.refiner_switch_at",
    "lora file": LORA,
    "lora step": LORA,
    "lora steps": LORA,
    "checkpoint step": LORA,
}
NO_AXIS = ("generate.count", "generate.batch_size", "generate.loras")  # a cell is one image; LoRAs have separate axes
MOST_VALUES, MOST_CELLS, LONGEST = 1000, 1000, 200_000

OPTIONS = re.compile(r"\s--[a-z]")  # the first option of a prompt
INTEGER = r"([+-]?\d+)"
NUMBER = r"([+-]?(?:\d+\.?\d*|\.\d+))"
RANGE = r"\s*{0}\s*-\s*{0}\s*(?:\(\s*{0}\s*\)|\[\s*(\d+)\s*\])?\s*"
INTEGER_RANGE, NUMBER_RANGE = re.compile(RANGE.format(INTEGER)), re.compile(RANGE.format(NUMBER))


@dataclass(frozen=True)
class Value:
    """A value of an axis. text: the label of its row or column"""

    value: Any
    text: str


@dataclass(frozen=True)
class Axis:
    """An axis of a grid.

    letter    "x", "y" or "z"
    setting   a path such as "generate.steps", a key of SPECIAL, or "lora_strength:NAME"
    """

    letter: str
    setting: str
    title: str
    values: tuple[Value, ...]

    @property
    def field(self) -> str:
        """The setting that contains the values, such as "grid.x_values"."""
        return f"grid.{self.letter}_values"


@cache
def settings_of_axes() -> Mapping[str, Declared]:
    """Return {path: declaration} of the settings that an axis can change, without SPECIAL."""
    return {
        entry.path: entry
        for entry in declared(GenerateJob)
        if (entry.group != "prompts" or entry.path == STYLES)
        and entry.path not in NO_AXIS
        and (entry.kind != "list" or entry.path in (STYLES, "generate.embeddings"))
    }


def axes_of(job: GridJob) -> list[Axis]:
    """Parse the axes of a grid, without unused ones. Raises ProblemsError with all their problems."""
    problems: list[Problem] = []
    axes: list[Axis] = []
    for letter in LETTERS:
        name, text = getattr(job.grid, f"{letter}_axis").strip(), getattr(job.grid, f"{letter}_values")
        if name or text.strip():
            axes += _axis(letter, name, text, problems)
    problems += _repeated_settings(axes)
    if not axes and not problems:
        what, fix = "The grid has no axis", "choose a setting for the X axis and write its values"
        problems.append(Problem(what, "grid.x_axis", fix, code="grid.no-axis"))
    cells = math.prod(len(axis.values) for axis in axes)
    if cells > MOST_CELLS and not problems:
        what = f"The grid has {cells:,} images; the limit is {MOST_CELLS:,}"
        problems.append(Problem(what, axes[0].field, "use fewer values", code="grid.too-many-cells"))
    problems += _search_problems(job, axes)
    raise_if_errors(problems)
    return axes


def _axis(letter: str, name: str, text: str, problems: list[Problem]) -> list[Axis]:
    """Parse the X, Y or Z axis; return it in a list, or [] after adding its errors to `problems`.

    name   the setting to change, as the user wrote it
    text   its values, as the user wrote them
    """
    where, values_at = f"grid.{letter}_axis", f"grid.{letter}_values"
    if not name:
        what = f"The values of the {letter.upper()} axis have no setting"
        problems.append(Problem(what, where, "choose what they are of", code="grid.no-setting"))
        return []
    setting = setting_named(name)
    if setting is None:
        problems.append(Problem(f"There is no setting '{name[:80]}'", where, _nearest(name), code="grid.unknown-axis"))
        return []
    try:
        values = read_values(setting, text)
    except ProblemsError as error:
        problems += [replace(each, where=values_at) for each in error.problems]
        return []
    return [Axis(letter, setting, title_of(setting), tuple(values))]


def _repeated_settings(axes: list[Axis]) -> Iterator[Problem]:
    """Yield errors of axes that change the same setting."""
    changed_before: set[str] = set()
    for axis in axes:
        changed = {"generate.width", "generate.height"} if axis.setting == SIZE else {axis.setting}
        if changed_before & changed:
            what = f"Two axes change {axis.title}"
            yield Problem(what, f"grid.{axis.letter}_axis", "choose another setting", code="grid.axis-twice")
        changed_before |= changed


def _search_problems(job: GridJob, axes: list[Axis]) -> Iterator[Problem]:
    """Yield errors of prompt S/R axes whose first value is in no prompt."""
    texts = [job.generate.prompt, job.generate.negative_prompt]
    prompts = ("generate.prompt", "generate.negative_prompt")
    texts += [str(value.value) for axis in axes if axis.setting in prompts for value in axis.values]
    for axis in axes:
        if axis.setting == PROMPT_SR and not any(axis.values[0].value in text for text in texts):
            what = f"'{axis.values[0].text[:60]}', the first value, is not in the prompt"
            yield Problem(what, axis.field, "begin with words of the prompt", code="grid.search-not-found")


# -- settings


def setting_named(name: str) -> str | None:
    """Return the path of a setting that an axis can change, a key of SPECIAL, or "lora_strength:NAME"; None for unknown names.
    name: its path, name or title (also with the group's, "Layers (Skip-layer (SLG))"), or its name in sd-scripts or A1111"""
    normalized = name.strip().casefold()
    head, colon, lora = name.strip().partition(":")
    if colon and head.strip().casefold() in (STRENGTH, SPECIAL[STRENGTH].casefold()) and lora.strip():
        return f"{STRENGTH}:{lora.strip()}"
    return _names().get(normalized)


@cache
def _names() -> dict[str, str]:
    """Return {any name of a setting in lower case: its path}; of equal names the first, `generate` before other groups."""
    paths: dict[str, str] = {}
    entries = sorted(settings_of_axes().values(), key=lambda entry: entry.group != "generate")
    for path in (entry.path for entry in entries):
        paths.setdefault(path.casefold(), path)
    paths |= {key: name for name, title in SPECIAL.items() for key in (name, title.casefold())} | A1111_NAMES
    for entry in entries:
        for name in (entry.name, entry.title, title_in_group(entry), *entry.kohya_names):
            paths.setdefault(name.casefold(), entry.path)
    return paths


def _nearest(name: str) -> str:
    """Return a fix for an unknown name: at most two settings with a similar name or with the same words."""
    wanted, names = name.strip().casefold()[:80], _names()
    words = {word for word in wanted.split() if len(word) > 2}
    same_words = [each for each in names if words & {*each.split()}]
    near = difflib.get_close_matches(wanted, list(names), n=1, cutoff=0.75) or same_words
    near = near or difflib.get_close_matches(wanted, list(names), n=1, cutoff=0.5)
    paths = list(dict.fromkeys(names[each] for each in near))[:2]
    titles = [
        title if names.get((title := title_of(path)).casefold()) == path else title_in_group(settings_of_axes()[path])
        for path in paths
    ]
    return f"did you mean {' or '.join(titles)}?" if titles else "choose one of the list"


def title_of(setting: str) -> str:
    """Return the title of a setting that an axis can change: "Sampling steps", "LoRA strength (fox)"."""
    name, colon, lora = setting.partition(":")
    if name in SPECIAL:
        return f"{SPECIAL[name]} ({lora})" if colon else SPECIAL[name]
    return str(settings_of_axes()[setting].title)


def title_in_group(entry: Declared) -> str:
    """Return the title of a setting with that of its group: "Layers (Skip-layer (SLG))"."""
    return f"{entry.title} ({GenerateJob.model_fields[entry.group].title})"


# -- values


def texts_of(text: str) -> list[str]:
    """Split a text into values, separated by commas or lines; values with commas are in double quotes. Raises ProblemsError for a text or
    value that is too long."""
    if len(text) > LONGEST:
        what = f"The values have {len(text):,} characters; the limit is {LONGEST:,}"
        raise ProblemsError.one(what, "", "use fewer", "grid.text-too-long")
    rows = csv.reader(StringIO(text, newline=None), skipinitialspace=True)
    try:
        return [each.strip() for row in rows for each in row if each.strip()]
    except csv.Error:  # of a reader that is not strict, the only one
        what = f"A value has more than {csv.field_size_limit():,} characters"
        raise ProblemsError.one(what, "", "shorten it, or close its quotes", "grid.value-too-long") from None


def joined(texts: Sequence[str]) -> str:
    """Join values into one text, the inverse of `texts_of`."""
    quoted = ('"' + text.replace('"', '""') + '"' if set(',"\n\r') & set(text) else text for text in texts)
    return ", ".join(quoted)


def read_values(setting: str, text: str) -> list[Value]:
    """Parse and validate the values of an axis, expanding ranges of numbers. Raises ProblemsError with all errors, `where` empty.

    setting   path, or key of SPECIAL
    text      the values as written by the user
    """
    texts = texts_of(text)
    name = setting.partition(":")[0]
    if not texts:
        raise ProblemsError.one("The axis has no values", "", "add at least one", "grid.empty-axis")
    entry = NUMBERS.get(name) or settings_of_axes().get(name)
    if entry is not None and entry.kind in ("int", "float"):
        texts = [each for text in texts for each in _range(text, entry.kind == "int")]
    if len(texts) > MOST_VALUES:
        what = f"The axis has more than {MOST_VALUES:,} values"
        raise ProblemsError.one(what, "", "use fewer", "grid.too-many-values")
    problems: list[Problem] = []
    values = [_value(setting, entry, each, problems) for each in texts]
    raise_if_errors(problems)
    if setting == PROMPT_SR:
        return [values[0], *(replace(each, value="") if each.text.casefold() == NONE else each for each in values[1:])]
    bare = [OPTIONS.split(value.text)[0] for value in values]
    if setting == "generate.prompt" and len(set(bare)) == len(values):  # labels without options are still unique
        return [replace(value, text=text) for value, text in zip(values, bare, strict=True)]
    return values


NUMBERS = {  # of the files in a list, which are not separate settings
    STRENGTH: Declared("loras.strength", "loras", "strength", LoraUse.model_fields["strength"]),
    WEIGHT: Declared("nets.weight", "nets", "weight", ControlUse.model_fields["weight"]),
}


def _range(text: str, integers: bool) -> Iterator[str]:
    """Yield the numbers of `20-40 (+10)`, both ends included, or of `1-10 [5]`, evenly spaced; other texts unchanged.

    Raises ProblemsError for an empty or endless range.

    integers   parse and yield whole numbers only
    """
    match = (INTEGER_RANGE if integers else NUMBER_RANGE).fullmatch(text)
    if match is None:
        yield text
        return
    first, last = float(match[1]), float(match[2])
    number = int(match[4]) if match[4] else 0
    step = float(match[3]) if match[3] else math.copysign(1.0, last - first)
    if match[4]:
        number = max(number, 1)
        offsets = ((last - first) / max(number - 1, 1) * each for each in range(min(number, MOST_VALUES + 1)))
    else:
        if not step or (last - first) * step < 0:
            what = f"The range '{text}' never ends" if not step else f"The range '{text}' is empty"
            raise ProblemsError.one(what, "", "use a step towards its end", "grid.bad-range")
        number = int((last - first) / step + 1e-9) + 1
        offsets = (step * each for each in range(min(number, MOST_VALUES + 1)))
    for offset in offsets:
        value = first + offset
        yield str(int(value)) if integers else number_text(round(value, 10))


def _value(setting: str, entry: Declared | None, text: str, problems: list[Problem]) -> Value:
    """Parse and validate a text; for an invalid one, add its errors to `problems` and return a placeholder.

    setting   path, or key of SPECIAL
    entry     declaration of the setting; None for prompt S/R, size and files
    text      one value as the user wrote it
    """
    if setting == SIZE:
        return _size(text, problems)
    if setting in (PROMPT_SR, *FILES):
        value = None if setting in FILES and text.casefold() == NONE else text
        return Value(value, file_stem(text) if setting in FILES and value else text)
    assert entry is not None
    value = _value_of_text(entry, text)
    if entry in NUMBERS.values():
        return _strength(entry, text, value, problems)
    try:
        checked = getattr(getattr(build(GenerateJob, {entry.group: {entry.name: value}}), entry.group), entry.name)
    except ProblemsError as error:
        problems += [replace(each, fix=_near_choice(entry, text) or each.fix) for each in error.problems]
        return Value(value, text)
    return Value(checked, label_of(entry, checked, text))


def _value_of_text(entry: Declared, text: str) -> Any:
    """Convert a text to a setting's type. A text that does not fit is returned unchanged, for validation to reject."""
    normalized = text.casefold()
    if entry.kind == "choice":
        for choice in entry.choices:
            if normalized in (str(choice).casefold(), entry.label(choice).casefold()):
                return choice
        return None if normalized == NONE and entry.optional else ALSO_CALLED.get(normalized, text)
    if entry.kind == "bool":
        return {"on": True, "true": True, "yes": True, "off": False, "false": False, "no": False}.get(normalized, text)
    if normalized == NONE and (entry.optional or entry.widget == "prompt"):
        return None if entry.optional else ""
    if entry.kind == "list":
        return [] if normalized == NONE else [each.strip() for each in text.split(";") if each.strip()]
    return value_typed(entry, text)


def _near_choice(entry: Declared, text: str) -> str:
    """Return a fix with the most similar choice of the setting, without a schedule type at the end of `text`; "" if there is none."""
    if entry.kind != "choice":
        return ""
    choices = {key.casefold(): str(each) for each in entry.choices for key in (str(each), entry.label(each))}
    near = difflib.get_close_matches(split_schedule(text)[0].casefold(), list(choices), n=1, cutoff=0.6)
    return f"did you mean '{choices[near[0]]}'?" if near else ""


def label_of(entry: Declared, value: Any, text: str) -> str:
    """Return the label of a value's row or column. text: as the user wrote it"""
    if value in (None, [], ""):
        return NONE
    if entry.kind == "bool":
        return "on" if value else "off"
    if entry.kind == "choice":
        return entry.label(value)
    if entry.kind in ("int", "float"):
        return number_text(value)
    if entry.path == STYLES:
        return ", ".join(value)
    if entry.kind == "list":
        return ", ".join(each.partition("=")[0] if "=" in each else file_stem(each) for each in value)
    return file_stem(text) if entry.names else text


def _size(text: str, problems: list[Problem]) -> Value:
    """Parse "512x768" into (width, height); for an invalid text, add errors to `problems`."""
    sides = re.fullmatch(r"(\d{1,5})\s*[x×:]\s*(\d{1,5})", text.casefold())
    if sides is None:
        problems.append(Problem(f"Size is '{text[:40]}'", "", "write width x height, as 512x768", code="grid.bad-size"))
        return Value((0, 0), text)
    width, height = int(sides[1]), int(sides[2])
    collected(problems, build, GenerateJob, {"generate": {"width": width, "height": height}})
    return Value((width, height), f"{width} × {height}")


def _strength(entry: Declared, text: str, value: Any, problems: list[Problem]) -> Value:
    """Return a strength and its label; if `value` is not a number within the bounds, add an error to `problems`."""
    low, high = entry.bounds["ge"], entry.bounds["le"]
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not low <= value <= high:
        fix = f"use a number, {low:g} to {high:g}"
        problems.append(Problem(f"{entry.title} is '{text[:40]}'", "", fix, code="settings.bad-value"))
        return Value(0.0, text)
    return Value(float(value), number_text(float(value)))
