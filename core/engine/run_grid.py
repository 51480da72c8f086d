"""Grids that compare checkpoints: of one run (checkpoints x strengths x sample prompts), or one checkpoint of each of several runs."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from core.engine.points import spread
from core.generation.grids.axes import CONTROL, LORA, MOST_CELLS, NONE, STRENGTH, WEIGHT, joined, texts_of, title_of
from core.generation.grids.folder import Index
from core.generation.model.library import find_file, portable_name
from core.generation.prompt.sample_prompts import SamplePrompt
from core.generation.prompt.wildcards import escape_variants
from core.record.events import WITHOUT_CONTROL
from core.record.file_titles import BASE_MODEL, is_average
from core.record.problems import ProblemsError
from core.record.run_folder import safe_name
from core.record.units import loss_text
from core.record.workspace import Workspace
from core.settings.check import build
from core.settings.job import GridJob, TrainJob
from core.settings.names import without_signs
from core.settings.presets.files import to_values
from core.training.loop.samples import prompts_of, settings_digest

STRENGTHS = (0.6, 0.8, 1.0)
MOST_CHECKPOINTS, MOST_PROMPTS = 12, 12
PROMPTS_EACH = 3  # of each of several runs
# {field of SamplePrompt: its option after a prompt}, for the settings that reproduce a sample.
SWITCHES = {"width": "w", "height": "h", "seed": "d", "steps": "s", "guidance": "l", "sampler": "ss"}
SWITCHES |= {"control": "cn", "negative": "n"}


@dataclass(frozen=True)
class RunGrid:
    """A grid of checkpoints.

    job      settings of the grid: the base model is the first value of the X axis
    notes    {axis: text next to each of its values}, such as the validation loss
    files    checkpoint of each value of the X axis, None for the base model
    rows     number of prompts, limited by the largest grid
    samples  {cell: file name of the run's sample with the settings of that cell}
    """

    job: GridJob
    notes: Mapping[str, Sequence[str]] = field(default_factory=dict)
    files: Sequence[Path | None] = ()
    rows: int = 1
    samples: Mapping[Index, str] = field(default_factory=dict)


def run_grid_of(
    facts: Mapping[str, Any],
    job: TrainJob,
    workspace: Workspace,
    strengths: Sequence[float] = STRENGTHS,
    fallback_prompt: str = "",
    prompts: Sequence[SamplePrompt] = (),
) -> RunGrid:
    """Return the grid of a run's checkpoints. Raises ProblemsError without checkpoints or prompts.

    facts            `RunView.snapshot` of the run
    strengths        of LoRAs or ControlNets, as an axis; empty for no axis and the usual strength
    fallback_prompt  for a run without sample prompts
    prompts          to use instead of the run's sample prompts
    """
    saved = [file for file in facts["files"] if not is_average(file["name"])]
    averages = [Path(file["path"]) for file in facts["files"] if is_average(file["name"])][:MOST_CHECKPOINTS]
    steps = spread_steps(sorted({file["step"] for file in saved}), facts.get("best"))
    if not (steps or averages):
        fix = "wait until it has saved one"
        raise ProblemsError.one("This run has no saved file", str(facts["run"]), fix, "run.no-file")
    base = find_file(job.model.base_model, workspace)
    prompts = prompts or _prompts(job, base, fallback_prompt)
    by_step = {step: [Path(file["path"]) for file in saved if file["step"] == step] for step in steps}
    files: list[Path | None] = [None, *(paths[0] for paths in by_step.values()), *averages]
    values = [NONE, *(portable_name(path, workspace) for path in files if path is not None)]
    grid: dict[str, str] = {"name": f"{safe_name(str(facts['title']))[:60]} checkpoints"}
    free_axes = iter("yz")
    if job.method.traits.new_words:
        grid["x_axis"] = "generate.embeddings"
        values = [NONE, *("; ".join(embedding_values(job, paths, workspace)) for paths in by_step.values())]
    elif job.method.traits.base_trains:
        grid["x_axis"] = "model.base_model"
        values[0] = job.model.base_model
    else:
        files_of, strength_of = (CONTROL, WEIGHT) if job.method.traits.control_images else (LORA, STRENGTH)
        grid["x_axis"] = files_of
        if strengths:
            grid |= {"y_axis": strength_of, "y_values": ", ".join(f"{each:g}" for each in strengths)}
            next(free_axes)
    grid["x_values"] = joined(values)
    prompts = prompts[: max(1, MOST_CELLS // (len(values) * max(len(strengths), 1)))]
    if len(prompts) > 1:
        axis = next(free_axes)
        grid |= {f"{axis}_axis": "generate.prompt", f"{axis}_values": joined([_prompt_line(each) for each in prompts])}
    grid_job = build(
        GridJob,
        {
            "model": to_values(job.model),
            "memory": to_values(job.memory),
            "grid": grid,
            "generate": _generation_settings(prompts[0], job) | ({"negative_prompt": ""} if len(prompts) > 1 else {}),
            "controls": {"control_image": prompts[0].control},
        },
    )
    notes = [BASE_MODEL, *(_note(facts, step) for step in steps), *("" for _ in averages)]
    samples: dict[Index, str] = {}
    if not strengths or 1.0 in strengths:  # samples are generated at strength 1
        for (x, row), name in _samples(facts, job, steps, prompts).items():
            samples[(x, strengths.index(1.0), row) if strengths else (x, row, 0)] = name
    return RunGrid(grid_job, {"x": notes}, files, len(prompts), samples)


def _samples(
    facts: Mapping[str, Any], job: TrainJob, steps: Sequence[int], prompts: Sequence[SamplePrompt]
) -> dict[tuple[int, int], str]:
    """Return {(column, row): file name of the run's sample with the settings of that image}, for the base model and the checkpoints.

    steps     of the checkpoints, which are columns 1, 2 ...
    prompts   of the rows
    {} for a run that samples with other weights than it saves, or with another schedule than a grid.
    """
    merged = job.method.traits.uses_network and job.network.base_weights
    other_weights = job.method.ema and job.method.ema_use != "all"
    if other_weights or merged or job.noise.zero_terminal_snr or job.samples.compatibility != "none":
        return {}
    names = {(each["step"], each.get("settings")): Path(each["file"]).name for each in facts.get("samples", ())}
    step_of_column = dict(enumerate(steps, 1))
    if job.method.traits.control_images:
        step_of_column[0] = WITHOUT_CONTROL
    elif job.starts_at_base:
        step_of_column[0] = 0
    samples: dict[tuple[int, int], str] = {}
    for row, prompt in enumerate(prompts):
        digest = settings_digest(prompt, job.samples)
        samples |= {(x, row): names[step, digest] for x, step in step_of_column.items() if (step, digest) in names}
    return samples


def grid_of_runs(
    runs: Sequence[tuple[Mapping[str, Any], TrainJob]], workspace: Workspace, fallback_prompt: str = ""
) -> RunGrid:
    """Return the grid of one checkpoint of each run, with the prompts of all and the base model of the first.

    runs             (`RunView.snapshot` with only this checkpoint in "files", the run's settings)
    fallback_prompt  for a run without sample prompts
    Raises ProblemsError without checkpoints or prompts, and if the runs trained files of different kinds.
    """
    prompts: dict[str, SamplePrompt] = {}
    for _, job in runs:
        prompts_of_run = _prompts(job, find_file(job.model.base_model, workspace), fallback_prompt)
        prompts |= {each.prompt: each for each in prompts_of_run[:PROMPTS_EACH] if each.prompt not in prompts}
    grids = [run_grid_of(facts, job, workspace, (), prompts=list(prompts.values())) for facts, job in runs]
    kinds = {each.job.grid.x_axis for each in grids}
    if len(kinds) > 1:
        what = f"These runs trained files of several kinds: {', '.join(sorted(title_of(kind) for kind in kinds))}"
        raise ProblemsError.one(what, "", "compare runs of one training method", "run-grid.kinds")
    values = [texts_of(each.job.grid.x_values) for each in grids]  # for each run: base model, checkpoint
    titles = [safe_name(str(facts["title"]))[:25] for facts, _ in runs]
    first = grids[0].job
    changes = {"x_values": joined([values[0][0], *(value for each in values for value in each[1:])])}
    changes |= {"name": ", ".join(titles)}
    grid_job = first.with_settings(grid=changes)
    notes = [BASE_MODEL, *(note for each in grids for note in each.notes["x"][1:])]
    files = [None, *(path for each in grids for path in each.files[1:])]
    return RunGrid(grid_job, {"x": notes}, files, grids[0].rows)


def spread_steps(steps: Sequence[int], best: Mapping[str, Any] | None) -> list[int]:
    """Return at most MOST_CHECKPOINTS of the steps, evenly spaced, with the last, the best one and up to half of them that may be as good.
    best: `Best.to_dict`"""
    if len(steps) <= MOST_CHECKPOINTS:
        return list(steps)
    as_good = sorted({*best.get("as_good", ())} & {*steps}) if best else []
    chosen = {as_good[index] for index in spread(len(as_good), MOST_CHECKPOINTS // 2)}
    chosen |= {best["step"]} & {*steps} if best else set()
    return sorted(chosen | {steps[index] for index in spread(len(steps), MOST_CHECKPOINTS - max(len(chosen), 1))})


def _prompts(job: TrainJob, base: Path | None, fallback_prompt: str) -> list[SamplePrompt]:
    """Return the run's sample prompts, at most MOST_PROMPTS, else `fallback_prompt`. Raises ProblemsError without any.
    base: path of the base model"""
    prompts = [each for each in prompts_of(job, base) if each.prompt][:MOST_PROMPTS]
    if prompts:
        return prompts
    fix = "" if fallback_prompt.strip() else "write a prompt in Generate: it is used instead"
    if job.method.traits.control_images:
        fix = "compare its files in Generate, by a grid with the axis ControlNet"
    if fix:
        raise ProblemsError.one("This run has no sample prompts", "samples.sample_prompts", fix, "run-grid.no-prompt")
    return [sample_of(job, base, fallback_prompt.replace(" --", " "))]


def sample_of(job: TrainJob, base: Path | None, prompt: str) -> SamplePrompt:
    """Return `prompt` with the settings of the run's samples. base: path of the base model."""
    alone = to_values(job.samples) | {"sample_prompts": [prompt], "sample_prompts_file": None}
    samples = build(TrainJob, {"samples": alone}).samples
    return prompts_of(job.model_copy(update={"samples": samples}), base)[0]


def _generation_settings(sample: SamplePrompt, job: TrainJob) -> dict[str, Any]:
    """Return the settings of the group `generate` that reproduce a sample: prompt, size, steps, guidance scale, seed, sampler, by setting
    name."""
    return {
        "prompt": escape_variants(sample.prompt),
        "negative_prompt": escape_variants(sample.negative or ""),
        "width": sample.width,
        "height": sample.height,
        "steps": sample.steps,
        "guidance_scale": sample.guidance,
        "seed": sample.seed,
        "sampler": sample.sampler,
        "prompt_weights": job.samples.prompt_weights,
    }


def _prompt_line(sample: SamplePrompt) -> str:
    """Return a sample as a prompt with options in one line: "a fox --w 512 --h 512"."""
    sample = replace(sample, prompt=escape_variants(sample.prompt), negative=escape_variants(sample.negative or ""))
    values = ((switch, getattr(sample, field)) for field, switch in SWITCHES.items())
    options = "".join(f" --{switch} {value}" for switch, value in values if value not in (None, ""))
    return " ".join(sample.prompt.split()) + options


def embedding_values(job: TrainJob, paths: Sequence[Path], workspace: Workspace) -> list[str]:
    """Return "word=name" for each embedding file saved at one step, as values of an axis.
    paths: of the files; the first word's file name has no suffix, the others end in -WORD"""
    words, values = job.embedding.words, []
    suffixes = tuple(f"-{without_signs(word)}" for word in words[1:])
    for number, word in enumerate(words):
        if number:
            matching = [path for path in paths if path.stem.endswith(suffixes[number - 1])]
        else:
            matching = [path for path in paths if not path.stem.endswith(suffixes)]
        values += [f"{word}={portable_name(path, workspace)}" for path in matching[:1]]
    return values


def _note(facts: Mapping[str, Any], step: int) -> str:
    """Return the text below a checkpoint: "validation loss 0.1234, best"; "" if its loss was not measured."""
    point = next((each for each in facts.get("measured", []) if each["step"] == step), None)
    parts, best = [], facts.get("best")
    if point is not None:
        name = "validation loss" if point["measured_on"] == "held_out" else "loss on training images"
        parts.append(f"{name} {loss_text(point['loss'])}")
    if best and best["label"] and best["step"] == step:
        parts.append(best["label"])
    return ", ".join(parts)
