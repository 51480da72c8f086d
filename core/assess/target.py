"""What is assessed: a run, its checkpoints, its images and the prompts, found and checked before anything is loaded."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from hashlib import sha256
from pathlib import Path
from typing import Any

from core.assess.measures import MEASURES, STRENGTHS, Measure
from core.dataset.buckets.batches import Placed
from core.dataset.preflight import preflight
from core.engine.proposed_prompts import SCENES, unknown
from core.engine.run_grid import is_average, spread_steps, words_of
from core.engine.verdict import label_of, trigger_word
from core.engine.view import RunView
from core.families.locate import model_path
from core.generation.model.store import fingerprint
from core.record.problems import Problem, ProblemsError, collected, errors, raise_if_errors
from core.record.run_folder import RunFolder
from core.record.units import count
from core.record.workspace import Workspace
from core.settings.check import build
from core.settings.dataset.concepts import training_resolution
from core.settings.job import TrainJob
from core.settings.tools.assess import AssessSettings
from core.training.loop.validation import pick_evenly, unaugmented_caption

TIMESTEPS = (125, 375, 625, 875)  # the middle of each band
BAND = 250
VERSION = 1  # of the measures: raised when one gives other values


@dataclass(frozen=True)
class Checkpoint:
    """A saved checkpoint. file: its name; embeddings: of its step, as the settings of a generation name them"""

    file: str
    step: int
    path: Path
    embeddings: tuple[str, ...] = ()

    @property
    def label(self) -> str:
        return label_of(self.file, self.step)


@dataclass(frozen=True)
class Images:
    """A run's dataset as it is now. why: why it cannot be read, then it is empty"""

    training: tuple[Placed, ...] = ()
    held_out: tuple[Placed, ...] = ()
    why: str = ""


@dataclass(frozen=True)
class Target:
    """What is assessed of a run. base: path of its base model"""

    run: RunFolder
    job: TrainJob
    settings: AssessSettings
    workspace: Workspace
    base: Path
    checkpoints: tuple[Checkpoint, ...]
    measures: tuple[Measure, ...]
    images: Images = field(default_factory=Images)

    def __str__(self) -> str:
        names = ", ".join(measure.title.lower() for measure in self.measures)
        whole = f"assess {count(len(self.checkpoints), 'checkpoint')} of {self.run.name}: {names}"
        return f"{whole}; {self.predictions(self.checkpoints):,} predictions of the model"

    @cached_property
    def captions(self) -> list[str]:
        """The captions of the training images."""
        return [unaugmented_caption(placed) for placed in self.images.training]

    @cached_property
    def trigger(self) -> str:
        return trigger_word(self.job, self.captions)

    @property
    def method(self) -> str:
        traits = self.job.method.traits
        if traits.control_images:
            return "control"
        return "embedding" if traits.new_words else "model" if traits.base_trains else "network"

    @cached_property
    def size(self) -> tuple[int, int]:
        """(width, height) at which everything is compared: the most frequent bucket."""
        sizes = Counter(placed.placement.bucket for placed in self.images.training)
        return sizes.most_common(1)[0][0] if sizes else training_resolution(self.job)

    @cached_property
    def outside(self) -> list[str]:
        """Prompts for other things than the dataset's."""
        scenes = list(unknown(SCENES, self.captions)) or list(SCENES)
        return scenes[: self.settings.prompts]

    def chosen(self, images: Sequence[Placed]) -> list[Placed]:
        """Some of the images, evenly spaced."""
        return pick_evenly(images, self.settings.prompts)

    def set_named(self, name: str) -> str:
        """The set of predictions that a measure reads; "fit" are held-out images, else training images."""
        return name if name != "fit" else "held_out" if self.images.held_out else "inside"

    def reason(self, measure: Measure) -> str:
        """Why a measure does not apply; "" if it does."""
        if self.method not in measure.methods and measure.name != "loss":
            return f"not applicable to {self.job.method.kind}"
        if measure.of_dataset and self.images.why:
            return self.images.why
        if measure.name == "trigger" and not self.trigger:
            return "the run has no trigger word"
        return ""

    def predictions(self, checkpoints: Sequence[Checkpoint], measures: Sequence[Measure] | None = None) -> int:
        """How many predictions of the model the measures of these checkpoints take, with those of the base model."""
        todo = [measure for measure in measures or self.measures if not self.reason(measure)]
        if not checkpoints or not todo:
            return 0
        images, steps = self.settings.prompts, self.settings.sampling_steps
        generated = images * self.settings.seeds * steps * 2 * any(measure.images for measure in todo)
        reads = {(self.set_named(name), strength) for measure in todo for name, strength in measure.reads}
        sets = {name for name, _ in reads}
        base = images * len(TIMESTEPS) * len(sets) + images * steps * 2 * ("outside" in sets) + generated
        return base + len(checkpoints) * (generated + images * len(TIMESTEPS) * len(reads))

    def key(self, measure: Measure, checkpoint: Checkpoint) -> str:
        """Changes with whatever a measured value depends on."""
        return sha256(
            json.dumps([VERSION, measure.name, self._state, fingerprint(checkpoint.path)]).encode()
        ).hexdigest()[:16]

    @cached_property
    def _state(self) -> list[Any]:
        settings = [self.settings.prompts, self.settings.seeds, self.settings.sampling_steps, STRENGTHS]
        groups = [[*placed.key, placed.image.bytes, placed.image.mtime_ns] for placed in self.images.training]
        held_out = [[*placed.key, placed.image.bytes, placed.image.mtime_ns] for placed in self.images.held_out]
        return [settings, fingerprint(self.base), groups, held_out, self.captions, self.trigger]


def find_target(settings: AssessSettings, workspace: Workspace, *, reads: bool = True) -> Target:
    """The target of the settings. Raises ProblemsError with everything that prevents an assessment. reads: whether to read the
    dataset"""
    problems: list[Problem] = []
    run = RunFolder(workspace.runs / Path(settings.run or "").name)
    if not settings.run or not run.job_file.is_file():
        what = f"There is no run '{settings.run}'" if settings.run else "No run is given"
        fix = "use the name of a folder in it"
        raise ProblemsError.one(what, str(workspace.runs), fix, "runs.no-such-run")
    job = build(TrainJob, run.job())
    base = collected(problems, model_path, job.model.base_model, workspace, "model.base_model")
    if run.held:
        problems.append(
            Problem("The run is still training", run.name, "wait until it has ended", code="assess.training")
        )
    measures = _measures(settings, problems)
    facts = RunView.read(run).snapshot(False)
    checkpoints = collected(problems, checkpoints_of, facts, job, workspace, settings.steps) or ()
    raise_if_errors(problems)
    assert base is not None
    images = _images(job, workspace) if reads else Images()
    return Target(run, job, settings, workspace, base, tuple(checkpoints), measures, images)


def _measures(settings: AssessSettings, problems: list[Problem]) -> tuple[Measure, ...]:
    unknown_names = [name for name in settings.measures if name not in MEASURES]
    if unknown_names:
        what = f"There is no measure '{unknown_names[0]}'"
        problems.append(Problem(what, "assess.measures", f"use {', '.join(MEASURES)}", code="assess.unknown-measure"))
    return tuple(measure for name, measure in MEASURES.items() if not settings.measures or name in settings.measures)


def checkpoints_of(
    facts: Mapping[str, Any], job: TrainJob, workspace: Workspace, steps: Sequence[int] = ()
) -> list[Checkpoint]:
    """The checkpoints of these steps that exist; with no steps all, of many evenly spaced ones, and averages. facts: the run's
    snapshot"""
    saved: dict[int, list[Path]] = {}
    for file in facts["files"]:
        if not is_average(file["name"]):
            saved.setdefault(file["step"], []).append(Path(file["path"]))
    missing = [step for step in steps if step not in saved]
    if missing or not saved:
        what = f"Step {missing[0]:,} has no checkpoint" if missing else "This run has no saved file"
        there = ", ".join(map(str, sorted(saved)))
        raise ProblemsError.one(
            what, str(facts["run"]), f"use {there}" if saved else "wait until it has saved one", "run.no-file"
        )
    wanted = sorted(steps) or spread_steps(sorted(saved), facts.get("best"))
    words = job.method.traits.new_words
    found = [
        Checkpoint(paths[0].name, step, paths[0], tuple(words_of(job, paths, workspace)) if words else ())
        for step, paths in ((step, saved[step]) for step in wanted)
    ]
    averages = [file for file in facts["files"] if is_average(file["name"]) and not steps]
    return found + [Checkpoint(file["name"], file["step"], Path(file["path"])) for file in averages]


def _images(job: TrainJob, workspace: Workspace) -> Images:
    report = preflight(job, workspace)
    training = [placed for placed in report.placed if placed.concept.role == "train" and not placed.variant]
    if not training:
        wrong = errors(report.problems)
        return Images(why=wrong[0].what if wrong else "the dataset has no training image")
    return Images(tuple(training), tuple(report.validation))
