"""The plan of a grid, before anything is loaded: its cells, in the order with the fewest model loads."""

import secrets
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from math import prod
from pathlib import Path
from typing import Any, TypeVar

from core.generation.grids.axes import (
    CONTROL,
    FILES,
    LETTERS,
    LORA,
    PROMPT_SR,
    SIZE,
    SPECIAL,
    STRENGTH,
    STYLES,
    WEIGHT,
    Axis,
    axes_of,
    joined,
    settings_of_axes,
)
from core.generation.grids.folder import GridFolder, Index, require_writable
from core.generation.model.library import find_file
from core.generation.plan.files import model_problems
from core.generation.plan.hooks import with_hook_images
from core.generation.plan.idle import idle_settings
from core.generation.plan.initial import with_initial_images
from core.generation.plan.plan import Plan, plan_for, requests_and_notes
from core.generation.plan.requests import Request
from core.generation.plan.stages import sampling_steps
from core.generation.prompt.wildcards import has_variants
from core.record.allowed import may_reach
from core.record.file_titles import file_stem, title_of_file, titles_of
from core.record.problems import Problem, ProblemsError, collected, raise_if_errors
from core.record.units import count
from core.record.workspace import Workspace, resolve_path
from core.settings.base import FRESH_SEEDS, SEEDS, value_of
from core.settings.generation.controls import ControlUse
from core.settings.generation.generate import LoraUse
from core.settings.generation.prompts import PromptSettings
from core.settings.job import GenerateJob, GridJob
from core.settings.model import ModelSettings
from core.settings.named import named_in

Use = TypeVar("Use", LoraUse, ControlUse)
SEED, MODEL = "generate.seed", "model.base_model"
STAGED = ("image_to_image", "hires", "refiner")  # groups that decide an image's stages
FIRST_PROMPTS = 2  # of a comparison of checkpoints: made of all checkpoints before the others
BEFORE_TEXTS, TEXTS, AFTER, LAST = range(4)  # when an axis is applied; AFTER: once options and LoRA tags are parsed


@dataclass(frozen=True)
class Cell:
    """One image of a grid. position: (x, y, z), the indices of its values on the axes"""

    position: Index
    request: Request


@dataclass(frozen=True)
class Part:
    """Cells with the same model and LoRA files. loads: True for the first part of a model"""

    cells: list[Cell]
    loads: bool

    def plan(self, workspace: Workspace) -> Plan:
        """Plan the part's images. Raises ProblemsError for files that are missing or do not fit."""
        return plan_for(self.cells[0].request.job, [cell.request for cell in self.cells], workspace)


@dataclass(frozen=True)
class Grid:
    """A planned grid.

    axes    the axes in use
    parts   the distinct cells in processing order
    same    {cell: an equal cell before it, whose image it shares}
    notes   advice
    """

    job: GridJob
    axes: list[Axis]
    parts: list[Part]
    same: Mapping[Index, Index]
    notes: list[Problem]

    @property
    def cells(self) -> list[Cell]:
        """The distinct cells in processing order."""
        return [cell for part in self.parts for cell in part.cells]

    def stored_axes(self, notes: Mapping[str, Sequence[str]], workspace: Workspace) -> list[dict[str, Any]]:
        """Return the axes as stored in grid.json: [{"letter", "setting", "title", "values": [{"text": label, "value", "note"}]}]. In titles
        and labels, files have their titles.
        notes: {letter of an axis: a note for each of its values}"""
        axes = []
        for axis in self.axes:
            axis_notes = notes.get(axis.letter) or [""] * len(axis.values)
            values = [
                {"text": text, "value": value.value, "note": note}
                for value, text, note in zip(axis.values, _texts_of(axis, workspace), axis_notes, strict=True)
            ]
            title = self._title(axis, workspace)
            axes.append({"letter": axis.letter, "setting": axis.setting, "title": title, "values": values})
        return axes

    def _title(self, axis: Axis, workspace: Workspace) -> str:
        """Return an axis' title; for the strength of one LoRA it contains the LoRA's title."""
        name = axis.setting.partition(":")[2]
        uses = (use for cell in self.cells for use in cell.request.job.generate.loras if name and _is_lora(use, name))
        path = next((path for use in uses if (path := find_file(use.file, workspace))), None)
        return f"{SPECIAL[STRENGTH]} ({title_of_file(path, workspace.runs)})" if path else axis.title


def _texts_of(axis: Axis, workspace: Workspace) -> list[str]:
    """Return the labels of an axis' values. Different files have different labels, with their titles."""
    entry = settings_of_axes().get(axis.setting)
    if axis.setting not in FILES and (entry is None or not entry.names):
        return [value.text for value in axis.values]
    names = [value.value if isinstance(value.value, list) else [value.value or ""] for value in axis.values]
    paths = [[name.partition("=")[2] or name for name in each if name] for each in names]
    files = [[find_file(path, workspace) or Path(path) for path in each] for each in paths]
    return [title or value.text for title, value in zip(titles_of(files, workspace.runs), axis.values, strict=True)]


def with_seeds(job: GridJob) -> GridJob:
    """Return the job with all random seeds chosen, so that it can be resumed. Raises ProblemsError for invalid axes."""
    random = [name for name in ("seed", "variation_seed") if getattr(job.generate, name) is None]
    axes, job = axes_of(job), job.with_settings(generate={name: secrets.randbelow(FRESH_SEEDS) for name in random})
    for axis in axes:
        if axis.setting == SEED and any(value.value is None for value in axis.values):
            values = (value.value for value in axis.values)
            seeds = [secrets.randbelow(FRESH_SEEDS) if seed is None else seed for seed in values]
            job = job.with_settings(grid={f"{axis.letter}_values": joined([str(seed) for seed in seeds])})
    return job


def grid_of(job: GridJob, workspace: Workspace, run: str = "") -> Grid:
    """Plan a grid whose seeds are chosen (`with_seeds`). Raises ProblemsError with all problems of axes and prompts.
    run: folder name of the run whose checkpoints are compared, which is generated in rounds; "" for other grids"""
    axes = axes_of(job)
    base = GenerateJob(**{name: getattr(job, name) for name in GenerateJob.model_fields})
    notes: list[Problem] = list(_unsupported_settings(base))
    first_of: dict[str, Index] = {}
    same: dict[Index, Index] = {}
    cells: list[Cell] = []
    for position in _positions(axes):
        request = _request(base, job, axes, position, workspace, notes)
        if request is None:
            continue
        key = request.job.model_dump_json()
        if key in first_of:
            same[position] = first_of[key]
        else:
            first_of[key] = position
            cells.append(Cell(position, request))
    notes += [*_missing_lora_problems(axes, cells), *_idle_axes(axes, cells)]
    notes = list(dict.fromkeys(notes))
    raise_if_errors(notes)
    parts = parts_of(cells)
    return Grid(job, axes, _in_rounds(parts) if run else parts, same, notes)


def _positions(axes: Sequence[Axis]) -> Iterator[Index]:
    """Yield (x, y, z) of every cell: row by row, table by table."""
    sizes = {axis.letter: len(axis.values) for axis in axes}
    for z, y, x in product(*(range(sizes.get(letter, 1)) for letter in reversed(LETTERS))):
        yield x, y, z


def _idle_axes(axes: Sequence[Axis], cells: Sequence[Cell]) -> Iterator[Problem]:
    """Yield advice on each axis whose setting is ignored in all cells, which then show the same image."""
    idle = [idle_settings(cell.request.job) for cell in cells]
    for axis in axes:
        if idle and all(axis.setting in each for each in idle):
            what = f"{axis.title} of the axis is {idle[0][axis.setting]}"
            yield Problem(what, axis.field, "choose another axis", "advice", code="grid.idle-axis")


def _unsupported_settings(job: GenerateJob) -> Iterator[Problem]:
    """Yield advice if a number of images is set, and an error for prompts from a file or module."""
    fix = "leave it at its default"
    if job.generate.count > 1:
        what = "The number of images is ignored: a grid has one image in each cell"
        yield Problem(what, "generate.count", fix, "advice", code="grid.count-ignored")
    if job.prompts.from_file or job.prompts.from_module:
        what, name = "A grid takes no list of prompts", "from_file" if job.prompts.from_file else "from_module"
        yield Problem(what, f"prompts.{name}", "choose the prompt as an axis", code="grid.prompt-file")


def _request(
    base: GenerateJob, job: GridJob, axes: Sequence[Axis], position: Index, workspace: Workspace, notes: list[Problem]
) -> Request | None:
    """Return the request of a cell's image; None if there are errors, which are added to `notes`."""
    values = {axis.letter: axis.values[position[LETTERS.index(axis.letter)]].value for axis in axes}
    prompts = PromptSettings(dynamic_prompts=base.prompts.dynamic_prompts, styles=base.prompts.styles)
    single = {"count": 1, "seed": _seed(job, axes, position)}
    cell = base.with_settings(generate=single, prompts=dict(prompts))
    for when in (BEFORE_TEXTS, TEXTS):
        for axis in sorted(axes, key=lambda each: each.setting != MODEL):  # a model resets its family and prediction
            if _stage_of(axis) == when:
                cell = _with_value(cell, axis, values[axis.letter])
    result = collected(notes, requests_and_notes, cell, workspace)
    if result is None:
        return None
    requests, advice = result
    notes += advice
    if len(requests) != 1:
        what = f"The prompt makes {count(len(requests), 'image')}; a cell has one"
        notes.append(Problem(what, "generate.prompt", "remove {e$$...} from it", code="grid.several-images"))
        return None
    cell_job = requests[0].job
    texts = ("generate.prompt", STYLES, *(("generate.negative_prompt",) if cell.prompts.styles else ()))
    for axis in axes:
        if "." not in axis.setting or axis.setting in texts:
            continue
        value = value_of(cell, axis.setting)
        if value_of(cell_job, axis.setting) != value and not (isinstance(value, str) and has_variants(value)):
            what = f"{axis.title} of the axis is ignored: the prompt has an option for it"
            notes.append(Problem(what, axis.field, "remove the option", "advice", code="grid.option-wins"))
    for when in (AFTER, LAST):
        for axis in axes:
            if _stage_of(axis) == when:
                cell_job = _with_value(cell_job, axis, values[axis.letter])
    if closed := list(_closed_path_problems(cell_job)):
        notes += closed
        return None
    request = with_initial_images([replace(requests[0], job=cell_job)])[0]
    jobs = collected(list[Problem](), with_hook_images, [request.job])  # the cell reports problems of its images
    return replace(request, job=jobs[0]) if jobs else request


def _closed_path_problems(job: GenerateJob) -> Iterator[Problem]:
    """Yield an error for each file or folder in the job's settings that a shared page may not open.

    Models, LoRAs and embeddings are only searched for in open folders, so they need no check.
    """
    for reference in named_in(job):
        if reference.what == "path" and not may_reach(resolve_path(reference.value)):
            what = f"'{reference.value}' is not accessible from a shared page"
            yield Problem(
                what,
                reference.where,
                "use a file inside an open folder, or start the page with --allow FOLDER",
                code="shared.path-closed",
            )


def _seed(job: GridJob, axes: Sequence[Axis], position: Index) -> int:
    """Return a cell's seed: the job's, counted up along the axes that vary it, as in A1111."""
    seed, stride = job.generate.seed or 0, 1
    for number, letter in enumerate(LETTERS):
        if getattr(job.grid, f"vary_seeds_{letter}"):
            seed += position[number] * stride
            stride *= next((len(axis.values) for axis in axes if axis.letter == letter), 1)
    return seed % SEEDS


def _stage_of(axis: Axis) -> int:
    """Return when an axis is applied: BEFORE_TEXTS, TEXTS, AFTER or LAST."""
    name = axis.setting.partition(":")[0]
    return {PROMPT_SR: TEXTS, LORA: AFTER, CONTROL: AFTER, STRENGTH: LAST, WEIGHT: LAST}.get(name, BEFORE_TEXTS)


def _with_value(job: GenerateJob, axis: Axis, value: Any) -> GenerateJob:
    """Return the job with a value of an axis applied."""
    name, _, lora = axis.setting.partition(":")
    settings = job.generate
    if name == PROMPT_SR:
        search = axis.values[0].value
        texts = {each: getattr(settings, each).replace(search, value) for each in ("prompt", "negative_prompt")}
        return job.with_settings(generate=texts)
    if name == SIZE:
        return job.with_settings(generate={"width": value[0], "height": value[1]})
    if name == LORA:
        return job.with_settings(generate={"loras": _with_file(settings.loras, LoraUse, value)})
    if name == STRENGTH:
        strength = {"strength": value, "text_encoder_strength": None}
        matches = ((use, not lora or _is_lora(use, lora)) for use in settings.loras)
        uses = [use.model_copy(update=strength) if changed else use for use, changed in matches]
        return job.with_settings(generate={"loras": uses})
    if name in (CONTROL, WEIGHT):
        weighted = [use.model_copy(update={"weight": value}) for use in job.controls.nets]
        nets = weighted if name == WEIGHT else _with_file(job.controls.nets, ControlUse, value)
        return job.with_settings(controls={"nets": nets, "control_image": job.controls.control_image if nets else None})
    group, _, setting = name.partition(".")
    group_changes = {setting: value}
    if name == MODEL and value != job.model.base_model:  # set for the job's model only
        group_changes |= {each: ModelSettings.model_fields[each].default for each in ("family", "prediction")}
    return job.with_settings(**{group: group_changes})


def _with_file(uses: Sequence[Use], kind: type[Use], file: str | None) -> list[Use]:
    """Return LoRAs or ControlNets with another file in the first entry, which is added if there is none.

    kind   class of the entries
    file   None: remove the first entry
    """
    result: list[Use] = list(uses)
    result[:1] = [] if file is None else [uses[0].model_copy(update={"file": file}) if uses else kind(file=file)]
    return result


def _is_lora(use: LoraUse, name: str) -> bool:
    """Return whether an entry of `generate.loras` uses the LoRA of this name."""
    return file_stem(use.file).casefold() == file_stem(name).casefold()


def _missing_lora_problems(axes: Sequence[Axis], cells: Sequence[Cell]) -> Iterator[Problem]:
    """Yield errors of LoRA strength axes for which no cell has such a LoRA."""
    for axis in axes:
        head, _, name = axis.setting.partition(":")
        uses = [use for cell in cells for use in cell.request.job.generate.loras]
        if head == STRENGTH and not any(not name or _is_lora(use, name) for use in uses):
            names = ", ".join(dict.fromkeys(file_stem(use.file) for use in uses))
            what = f"There is no LoRA '{name}' in this grid" if name else "There is no LoRA in this grid"
            fix = f"use one of {names}" if names else "add a LoRA, or write <lora:name:1> in the prompt"
            yield Problem(what, f"grid.{axis.letter}_axis", fix, code="grid.no-lora")


# -- order


def parts_of(cells: Sequence[Cell]) -> list[Part]:
    """Sort the cells into parts in processing order.

    Each model is loaded once, each set of LoRA files attached once per model, and cells that can share a batch (they differ only
    in prompt and seed) are adjacent.
    """
    models: dict[str, dict[str, list[Cell]]] = {}
    for cell in cells:
        job = cell.request.job
        by_files = models.setdefault(job.model.model_dump_json() + job.memory.model_dump_json(), {})
        by_files.setdefault(_files_key(job), []).append(cell)
    return [
        Part(_batchable_adjacent(part), loads=number == 0)
        for by_files in models.values()
        for number, part in enumerate(by_files.values())
    ]


def _in_rounds(parts: Sequence[Part]) -> list[Part]:
    """Split parts into rounds, so that all files can be compared if the grid is stopped.

    First the first prompts at strength 1 of all files, then the other prompts, then the other strengths.
    """
    prompts = [cell.request.job.generate.prompt for part in parts for cell in part.cells if _has_strength_1(cell)]
    first = list(dict.fromkeys(prompts))[:FIRST_PROMPTS]

    def round_of(cell: Cell) -> int:
        return 2 if not _has_strength_1(cell) else int(cell.request.job.generate.prompt not in first)

    rounds = [[cell for cell in part.cells if round_of(cell) == each] for each in range(3) for part in parts]
    loads = [part.loads and each == 0 for each in range(3) for part in parts]
    return [Part(cells, new) for cells, new in zip(rounds, loads, strict=True) if cells]


def _has_strength_1(cell: Cell) -> bool:
    """Return whether all LoRAs and ControlNets of a cell have strength 1."""
    job = cell.request.job
    return {use.strength for use in job.generate.loras} | {use.weight for use in job.controls.used} <= {1.0}


def _files_key(job: GenerateJob) -> str:
    """Return a key of the LoRAs, embeddings and ControlNets, and of how LoRAs are merged."""
    settings = job.generate
    merged = settings.network_merge, settings.network_merge_n_models, settings.network_pre_calc
    nets = sorted(use.file for use in job.controls.used)
    return f"{sorted(use.file for use in settings.loras)} {settings.embeddings} {merged} {nets}"


def _batchable_adjacent(cells: Sequence[Cell]) -> list[Cell]:
    """Sort cells so that those that differ only in prompt and seed are adjacent."""
    groups: dict[str, list[Cell]] = {}
    for cell in cells:
        varying = {"prompt": "", "negative_prompt": "", "seed": None, "variation_seed": None}
        groups.setdefault(cell.request.job.with_settings(generate=varying).model_dump_json(), []).append(cell)
    return [cell for group in groups.values() for cell in group]


# -- the check


def expected_steps(job: GridJob, axes: Sequence[Axis]) -> int:
    """Return the sampling steps of all cells and stages, from the settings alone, without opening files or parsing prompts."""
    staged = [axis for axis in axes if axis.setting.partition(".")[0] in STAGED or axis.setting == "generate.steps"]
    steps = 0
    for values in product(*(axis.values for axis in staged)):
        cell: GenerateJob = job
        for axis, value in zip(staged, values, strict=True):
            cell = _with_value(cell, axis, value.value)
        steps += sampling_steps(cell)
    return steps * prod(len(axis.values) for axis in axes if axis not in staged)


def checked_grid(job: GridJob, workspace: Workspace) -> tuple[Grid, int]:
    """Return (the planned grid, its number of sampling steps). Raises ProblemsError with all problems, including those of files."""
    require_writable(workspace)
    grid = grid_of(with_seeds(job), workspace)
    problems: list[Problem] = []
    steps = 0
    for part in grid.parts:
        try:
            plan = part.plan(workspace)
            raise_if_errors(model_problems(plan.sources))
            steps += plan.steps()
        except ProblemsError as error:
            problems += [_at_axis(problem, grid.axes) for problem in error.problems]
    raise_if_errors(dict.fromkeys(problems))
    return grid, steps


def _at_axis(problem: Problem, axes: Sequence[Axis]) -> Problem:
    """Return a problem with the setting of an axis' values as `where`, if the axis changes the problem's setting or kind of file."""
    of_files = {"model": (MODEL, "model.vae"), "lora": (LORA,)}.get(problem.code.partition(".")[0], ())
    axis = next((axis for axis in axes if axis.setting in (problem.where, *of_files)), None)
    return replace(problem, where=axis.field) if axis is not None else problem


def check_task(job: GridJob, workspace: Workspace) -> str:
    """Return a summary of what a grid job would do, for --check. Raises ProblemsError if the job is invalid."""
    if job.grid.folder:
        folder = GridFolder.named(job.grid.folder, workspace)
        job = folder.job()
    grid, steps = checked_grid(job, workspace)
    cells, loads = len(grid.cells), sum(part.loads for part in grid.parts)
    lines = [f"{axis.letter.upper()}: {axis.title}, {count(len(axis.values), 'value')}" for axis in grid.axes]
    lines.append(f"{count(cells, 'image')}, {count(steps, 'step')}, {count(loads, 'model load')}")
    if grid.same:
        lines.append(f"{count(len(grid.same), 'cell')} equal to another, made once")
    if job.grid.folder is None and any(part.cells[0].request.job.generate.loras for part in grid.parts):
        lines.append(f"LoRA files are attached {count(len(grid.parts), 'time')}")
    return "\n".join([*lines, *(note.what for note in grid.notes), "The settings are valid."])
