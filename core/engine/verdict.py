"""The comparison of a run's checkpoints from which the user chooses one: a grid of the base model, each checkpoint and a few prompts.

verdict.json in the run folder names the grid, and the checkpoints and prompts of its columns and rows.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from core.engine.proposed_prompts import ProposedPrompt, proposed_prompts, trigger_of
from core.engine.run_grid import RunGrid, run_grid_of, sample_of
from core.generation.grids.folder import GridFolder, Index
from core.generation.model.library import find_file
from core.generation.prompt.sample_prompts import SamplePrompt, as_prompt
from core.record import atomic
from core.record.bounded_json import read_json_object
from core.record.file_titles import MOST_NAMED, is_average, label_of
from core.record.preference import LEAST_CHOICES, Choice, preference
from core.record.problems import ProblemsError
from core.record.run_folder import RunFolder
from core.record.stamps import cached_until_changed
from core.record.units import count, first_of, listed
from core.record.workspace import Workspace
from core.settings.dataset.concepts import concepts_of
from core.settings.job import TrainJob
from core.training.loop.samples import prompts_of

FILE = "verdict.json"
FEW = 5  # prompts at first: one of each kind
MOST_BYTES = 64_000_000  # of dataset.json: the captions of larger ones are not read
BY_EYE = "compare the images, or make blind choices"
STRENGTHS = (0.4, 0.6, 0.8, 1.0, 1.2)  # that the comparison offers
USUAL_STRENGTHS = (1.0,)  # that it begins with


@dataclass(frozen=True)
class Comparison:
    """A grid of checkpoints to generate.

    prompts     of its rows
    proposed    number of prompts before the limit
    strengths   of the checkpoints, ascending
    """

    grid: RunGrid
    prompts: tuple[ProposedPrompt, ...]
    proposed: int
    strengths: tuple[float, ...] = USUAL_STRENGTHS

    @property
    def files(self) -> tuple[str, ...]:
        """File names of the checkpoints of the columns; "" for the base model."""
        return tuple(path.name if path is not None else "" for path in self.grid.files)

    @property
    def content(self) -> tuple[Any, ...]:
        """(files, prompts, strengths) of the images, to compare with `Verdict.content`."""
        return self.files, self.prompts, self.strengths


def comparison_of(
    facts: Mapping[str, Any],
    job: TrainJob,
    workspace: Workspace,
    most: int | None = FEW,
    fallback_prompt: str = "",
    strengths: Sequence[float] = USUAL_STRENGTHS,
) -> Comparison:
    """Return the comparison of a run's checkpoints. Raises ProblemsError as `run_grid_of`.

    facts            `RunView.snapshot` of the run
    most             number of prompts; None for all
    fallback_prompt  for a run without prompts
    strengths        of the checkpoints; ignored for a method whose checkpoints have none
    """
    strengths = tuple(sorted(strengths)) if has_strengths(job) else USUAL_STRENGTHS
    proposed = _prompts(job, RunFolder(workspace.runs / str(facts["run"])), workspace)
    samples = [sample for sample, _ in proposed[:most]]
    grid = run_grid_of(
        facts, job, workspace, () if strengths == USUAL_STRENGTHS else strengths, fallback_prompt, samples
    )
    rows = tuple(prompt for _, prompt in proposed[:most]) or (ProposedPrompt(grid.job.generate.prompt, "prompt"),)
    return Comparison(grid, rows[: grid.rows], max(len(proposed), 1), strengths)


def has_strengths(job: TrainJob) -> bool:
    """Whether checkpoints of the job's method are applied with a strength, as LoRAs and ControlNets are."""
    return not (job.method.traits.new_words or job.method.traits.base_trains)


def _prompts(job: TrainJob, run: RunFolder, workspace: Workspace) -> list[tuple[SamplePrompt, ProposedPrompt]]:
    """Return (prompt with its sampling settings, text and kind) of each prompt: the run's sample prompts, and proposed ones with the
    settings of the first."""
    base = find_file(job.model.base_model, workspace)
    samples = {each.prompt: each for each in prompts_of(job, base) if each.prompt}
    if job.method.traits.control_images:  # others have no control image
        return [(each, ProposedPrompt(each.prompt, "sample prompt")) for each in samples.values()]
    captions, held_out = captions_of(run)
    first = next(iter(samples.values()), None) or sample_of(job, base, "x")
    trigger = as_prompt(job, trigger_word(job, captions))
    proposed = proposed_prompts(list(samples), [as_prompt(job, each) for each in held_out], captions, trigger)
    return [(samples.get(each.text) or replace(first, prompt=each.text), each) for each in proposed]


def trigger_word(job: TrainJob, captions: Sequence[str]) -> str:
    """Return the trigger word of a run: from its settings, else the tag that most captions share; "" without one."""
    folders = [folder for folder in concepts_of(job) if folder.role == "train"]
    tokens = job.embedding.words[:1] if job.method.traits.new_words else []
    of_folders = [
        *(word for each in folders for word in each.triggers),
        *(each.source.class_tokens for each in folders),
    ]
    return trigger_of([job.captions.trigger_word, *tokens, *of_folders], captions)


def captions_of(run: RunFolder) -> tuple[list[str], list[str]]:
    """Return (captions of the training images, captions of the held-out images) from the run's dataset.json; empty lists if it is missing
    or damaged."""
    return _read_captions(run.dataset_file)


@cached_until_changed(4, missing=([], []))  # Monitor needs them with each new image of the comparison
def _read_captions(path: Path) -> tuple[list[str], list[str]]:
    """Return the captions of training and of held-out images in a dataset.json; empty lists if it is damaged."""
    try:
        content = read_json_object(path, max_bytes=MOST_BYTES, max_values=1_000_000)
        trained, validation = content["images"], content.get("validation", {}).get("images", [])
        trained_paths = {(row["source"], row["path"]) for row in trained}
        held_out = [row for row in validation if (row["source"], row["path"]) not in trained_paths]
        return [str(row["caption"]) for row in trained], [str(row["caption"]) for row in held_out]
    except (ProblemsError, KeyError, TypeError, AttributeError):
        return [], []


# -- with the run


@dataclass(frozen=True)
class Verdict:
    """The content of verdict.json. grid: name of the grid's folder; the others as in `Comparison`."""

    grid: str
    files: tuple[str, ...]
    prompts: tuple[ProposedPrompt, ...]
    strengths: tuple[float, ...] = USUAL_STRENGTHS

    @property
    def content(self) -> tuple[Any, ...]:
        """(files, prompts, strengths) of the images, to compare with `Comparison.content`."""
        return self.files, self.prompts, self.strengths


@cached_until_changed(2000, missing=None, name=FILE)  # lists of runs need it for each run without samples
def read_verdict(run: Path) -> Verdict | None:
    """Return the last comparison of the run in folder `run`; None if there is none or verdict.json is damaged."""
    try:
        raw = read_json_object(run / FILE)
        prompts = tuple(ProposedPrompt(str(each["text"]), str(each["shows"])) for each in raw["prompts"])
        strengths = tuple(float(each) for each in raw.get("strengths", ())) or USUAL_STRENGTHS
        if not {*USUAL_STRENGTHS} <= {*strengths} <= {*STRENGTHS}:
            return None
        return Verdict(str(raw["grid"]), tuple(map(str, raw["files"])), prompts, strengths)
    except (ProblemsError, KeyError, TypeError, ValueError):
        return None


Cell = tuple[str, str, float]  # checkpoint, prompt and strength of an image


def cell_of(file: str, prompt: ProposedPrompt, strength: float = 1.0) -> Cell:
    """Return the key of an image: (checkpoint, prompt, strength). The base model's strength is always 1."""
    return file, prompt.text, strength if file else 1.0


def cells_of(comparison: Comparison | Verdict) -> dict[Cell, Index]:
    """Return {image: its position (x, y, z) in the grid}. With several strengths they are the Y axis and the prompts the Z axis."""
    return {
        cell_of(file, prompt, strength): (x, row, 0) if len(comparison.strengths) == 1 else (x, y, row)
        for y, strength in enumerate(comparison.strengths)
        for row, prompt in enumerate(comparison.prompts)
        for x, file in enumerate(comparison.files)
        if file or strength == 1.0  # the base model has no strength
    }


def cells_with_samples(comparison: Comparison) -> set[Cell]:
    """Return the images of a comparison that the run has generated as samples."""
    return {cell for cell, position in cells_of(comparison).items() if position in comparison.grid.samples}


def images_in(run: Path, file: str, workspace: Workspace) -> Iterator[tuple[Path, str]]:
    """Yield (image, prompt) for the images of checkpoint `file` in the last comparison of its run, at strength 1."""
    verdict = read_verdict(run)
    if verdict is None or file not in verdict.files:
        return
    positions = cells_of(verdict)
    with suppress(ProblemsError):  # the grid was deleted
        folder = GridFolder.named(verdict.grid, workspace)
        for prompt in verdict.prompts:
            if (image := folder.cell(positions[cell_of(file, prompt)])).is_file():
                yield image, prompt.text


def write_verdict(run: Path, grid: str, comparison: Comparison) -> None:
    """Write a comparison, generated into the grid folder named `grid`, to verdict.json. Raises OSError."""
    prompts = [vars(prompt) for prompt in comparison.prompts]
    content = {"files": list(comparison.files), "prompts": prompts, "strengths": list(comparison.strengths)}
    atomic.write_json(run / FILE, {"grid": grid} | content)


# -- as text


def measured_sentence(
    best: Mapping[str, Any] | None,
    advice: bool = True,
    too_short: bool = False,
    measured: Sequence[Mapping[str, Any]] = (),
) -> str:
    """Return a sentence on which checkpoint has the lowest loss, and how certain that is; one more if the training diverged.

    best        `Best.to_dict`; None if no loss was measured
    advice      whether to add the advice BY_EYE
    too_short   whether the training was too short to measure a loss
    measured    of `RunView.snapshot`
    """
    if diverged := [f"{point['step']:,}" for point in measured if not math.isfinite(point["loss"])]:
        text = f"The loss at step {first_of(diverged, MOST_NAMED)} is NaN or infinite: the training diverged."
        return text if best is None else f"{measured_sentence(best, advice)} {text}"
    by_eye = f": {BY_EYE}" if advice else ""
    if best is None:
        why = ", as the training was too short for it" if too_short else ""
        return f"No loss was measured at these checkpoints{why}{by_eye}."
    if not best["others"]:
        return f"Of the existing checkpoints only step {best['step']:,} has a measured {best['what']}."
    if not best["as_good"]:
        return f"Step {best['step']:,} has the lowest {best['what']}: {best['sure']}."
    steps = [f"{step:,}" for step in sorted([best["step"], *best["as_good"]])]
    if len(best["as_good"]) == best["others"]:
        return f"Step {best['step']:,} has the lowest {best['what']}, but with so few images the others may be as good{by_eye}."
    named = listed(steps) if len(steps) <= MOST_NAMED else first_of(steps, MOST_NAMED)
    worse = best["others"] - len(best["as_good"]) - len(best["unknown"])
    better = f"; the other {'one is' if worse == 1 else f'{worse} are'} worse" if worse else ""
    return f"Steps {named} cannot be told apart by {best['what']}{by_eye}{better}."


def no_gain_text(facts: Mapping[str, Any], at_base: bool) -> str:
    """Return a sentence that the checkpoints are no better by loss than the model before the training, if that is so; else "".

    facts     `RunView.snapshot` of the run
    at_base   whether the training started at the base model, for the wording
    """
    best, first = facts.get("best"), next(iter(facts.get("measured", ())), None)
    if not best or not first or first["step"] >= min((file["step"] for file in facts["files"]), default=0):
        return ""
    same = all(first[name] == best[name] for name in ("images", "measured_on"))
    of = "the base model" if at_base else "what the training started from"
    return f" By loss it is no better than {of}." if same and first["loss"] <= best["loss"] else ""


def compared_files(run: Path, choices: Sequence[Choice]) -> list[str]:
    """Return the file names of the checkpoints that blind choices rank: those of the run's last comparison, else (samples were
    compared, no grid) those of the choices."""
    verdict = read_verdict(run)
    if verdict is not None:
        return [file for file in verdict.files if file]
    return sorted({name for each in choices for name in (each.left, each.right) if name})


def choice_reason(facts: Mapping[str, Any], names: Sequence[str], choices: Sequence[Choice], file: str) -> str:
    """Return text on why checkpoint `file` may have been chosen: how its loss compares, and its result in blind choices.
    facts: `RunView.snapshot` of the run; names: `compared_files` of the run"""
    sentence = _chosen_by_loss(facts, file)
    if file not in names or (fit := preference(names, choices)).choices < LEAST_CHOICES:
        return sentence
    return f"{sentence} First with {fit.first[names.index(file)]:.0%} probability after {fit.choices} blind choices."


def _chosen_by_loss(facts: Mapping[str, Any], file: str) -> str:
    """Return a sentence on how the loss of checkpoint `file` compares with the lowest one."""
    best = facts.get("best")
    if best is None:
        return "By eye: no loss was measured."
    if is_average(file):
        return f"By eye: the loss of an average is not measured. Step {best['step']:,} has the lowest {best['what']}."
    step = next((each["step"] for each in facts["files"] if each["name"] == file), None)
    if step == best["step"]:
        equal = len(best["as_good"])
        sure = f"{count(equal, 'other one')} cannot be told apart from it" if equal else best["sure"]
        return f"It has the lowest {best['what']}: {sure}."
    if step in best["as_good"]:
        return f"By eye: its {best['what']} cannot be told apart from the lowest one, of step {best['step']:,}."
    return f"By eye: step {best['step']:,} has the lowest {best['what']}."


def candidates(files: Sequence[str], facts: Mapping[str, Any], at_base: bool = True) -> list[dict[str, Any]]:
    """Return {"file", "step", "label", "loss", "average"} for each checkpoint.

    files     names of checkpoints; "" for the base model
    facts     `RunView.snapshot` of the run
    at_base   whether the run's step 0 is the base model
    returns   step: 0 for the base model, None for a deleted file; loss: None if not measured; average: whether it is an average
    """
    steps = {file["name"]: file["step"] for file in facts["files"]}
    losses = {point["step"]: point["loss"] for point in facts.get("measured", [])}
    rows = []
    for file in files:
        step = 0 if not file else steps.get(file)
        average = is_average(file)
        loss = None if average or step is None or not (file or at_base) else losses.get(step)
        rows.append({"file": file, "step": step, "label": label_of(file, step), "loss": loss, "average": average})
    return rows
