"""The target of an assessment: a run, its checkpoints, images and prompts, found and checked before anything is loaded."""

import json
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from hashlib import sha256
from pathlib import Path
from statistics import fmean
from typing import Any, TypeVar

from core.assess.measures import MEASURES, Measure
from core.dataset.buckets.batches import Placed
from core.dataset.preflight import preflight
from core.engine.deleted import no_such_run
from core.engine.moved_model import present_job
from core.engine.proposed_prompts import SCENES, with_new_words
from core.engine.run_grid import embedding_values, spread_steps
from core.engine.verdict import trigger_word
from core.engine.view import RunView
from core.families.locate import model_path
from core.formats.hashes import HashMemo
from core.generation.model.sources import lora_hash
from core.generation.model.store import fingerprint
from core.record.allowed import may_reach
from core.record.file_titles import is_average, label_of
from core.record.problems import Problem, ProblemsError, collected, errors, raise_if_errors
from core.record.run_folder import RunFolder
from core.record.units import count
from core.record.workspace import Workspace, resolve_path
from core.settings.dataset.concepts import training_resolution
from core.settings.job import TrainJob
from core.settings.named import named_in
from core.settings.tools.assess import AssessSettings
from core.training.loop.validation import pick_evenly, unaugmented_caption

TIMESTEPS, BAND = (125, 375, 625, 875), 250  # the middle of each band, and its width
SEEDS = 2  # images of each prompt
T = TypeVar("T")
VERSION = 2  # raised when a measure gives other values


@dataclass(frozen=True)
class Checkpoint:
    """A saved checkpoint. `embeddings`: the embeddings saved at the same step, as names for the settings of a generation."""

    step: int
    path: Path
    embeddings: tuple[str, ...] = ()

    @property
    def label(self) -> str:
        """Title of the checkpoint: its step, or that it is an average."""
        return label_of(self.path.name, self.step)


@dataclass(frozen=True)
class Target:
    """A run and all that its assessment needs.

    base                 path of the base model
    training, held_out   images of the dataset
    no_images_reason     reason why there are no images; empty if there are
    """

    run: RunFolder
    job: TrainJob
    settings: AssessSettings
    workspace: Workspace
    base: Path
    checkpoints: Sequence[Checkpoint]
    measures: Sequence[Measure]
    training: Sequence[Placed] = ()
    held_out: Sequence[Placed] = ()
    no_images_reason: str = ""

    def __str__(self) -> str:
        names = ", ".join(measure.name for measure in self.measures)
        predictions = f"{self.predictions(self.checkpoints, self.measures):,} predictions of the model"
        return f"assess {count(len(self.checkpoints), 'checkpoint')} of {self.run.name} ({names}): {predictions}"

    @property
    def kind(self) -> str:
        """What the method trains: "control", "embedding", "model" or "network"."""
        traits = self.job.method.traits
        kinds = {"control": traits.control_images, "embedding": traits.new_words, "model": traits.base_trains}
        return next((name for name, applies in kinds.items() if applies), "network")

    @cached_property
    def captions(self) -> list[str]:
        """The captions of the training images."""
        return [unaugmented_caption(placed) for placed in self.training]

    @cached_property
    def trigger(self) -> str:
        """The run's trigger word; "" if there is none."""
        return trigger_word(self.job, self.captions)

    @cached_property
    def size(self) -> tuple[int, int]:
        """(width, height) at which images are compared: the most frequent bucket, or the training resolution without training images."""
        sizes = Counter(placed.placement.bucket for placed in self.training)
        return sizes.most_common(1)[0][0] if sizes else training_resolution(self.job)

    @cached_property
    def outside(self) -> list[str]:
        """At most `settings.prompts` prompts for things that no caption mentions."""
        return (list(with_new_words(SCENES, self.captions)) or list(SCENES))[: self.settings.prompts]

    def evenly_spaced(self, images: Sequence[Placed]) -> list[Placed]:
        """Return at most `settings.prompts` of the images, evenly spaced."""
        return pick_evenly(images, self.settings.prompts)

    def set_named(self, name: str) -> str:
        """Return the name of the input set that a measure reads: "fit" is "held_out", or "inside" if no images are held out."""
        return name if name != "fit" else "held_out" if self.held_out else "inside"

    def applies(self, measure: Measure) -> bool:
        """Return whether `measure` applies to what the method trains."""
        return measure.recorded or self.kind in measure.kinds

    def reason(self, measure: Measure) -> str:
        """Return why `measure` cannot be taken; "" if it can."""
        if not self.applies(measure):
            return f"not applicable to the method {self.job.method.kind}"
        if self.no_images_reason and (measure.reads or measure.images):
            return self.no_images_reason
        return "the run has no trigger word" if measure.name == "trigger" and not self.trigger else ""

    def predictions(self, checkpoints: Sequence[Checkpoint], measures: Sequence[Measure]) -> int:
        """Return how many predictions of the model `measures` take for `checkpoints`, including those of the base model."""
        todo = [measure for measure in measures if not self.reason(measure)]
        reads = {(self.set_named(name), strength) for measure in todo for name, strength in measure.reads}
        sets, prompts = {name for name, _ in reads}, self.settings.prompts
        per_image = prompts * self.settings.sampling_steps * 2  # with guidance
        generated, probes = per_image * SEEDS * any(measure.images for measure in todo), prompts * len(TIMESTEPS)
        base = probes * len(sets) + per_image * ("outside" in sets) + generated
        per_checkpoint = generated + probes * len(reads) + prompts * sum(measure.more for measure in todo)
        return (base + len(checkpoints) * per_checkpoint) * bool(checkpoints)

    def key(self, measure: Measure, checkpoint: Checkpoint) -> str:
        """Return a hash of everything that the value of `measure` for `checkpoint` depends on: 16 hexadecimal digits."""
        content = json.dumps([VERSION, measure.name, self._state, self._weights(checkpoint.path)])
        return sha256(content.encode()).hexdigest()[:16]

    def _weights(self, path: Path) -> Any:
        """Return a value that changes with the weights of a file but not with its metadata, which keeping a checkpoint rewrites."""
        if path.is_dir():
            return fingerprint(path)
        return lora_hash(path, HashMemo.of(self.workspace))

    @cached_property
    def _state(self) -> list[Any]:
        """The settings, base model, images and captions that all measures depend on, as JSON values."""
        numbers = self.settings.prompts, self.settings.sampling_steps
        images = [[*each.key, each.image.bytes, each.image.mtime_ns] for each in (*self.training, *self.held_out)]
        return [numbers, fingerprint(self.base), images, len(self.held_out), self.captions, self.no_images_reason]


def by_image(values: Sequence[float]) -> list[float]:
    """Return the mean over timesteps of each image. `values`: each image at each of TIMESTEPS, image by image."""
    return [fmean(values[start : start + len(TIMESTEPS)]) for start in range(0, len(values), len(TIMESTEPS))]


def one_timestep_each(values: Sequence[T]) -> list[T]:
    """Return one value per image, at a timestep that rotates with the image's number: image 0 at TIMESTEPS[0], image 1 at TIMESTEPS[1] ...
    values: as for `by_image`"""
    number = len(TIMESTEPS)
    return [values[start + start // number % number] for start in range(0, len(values), number)]


def find_target(settings: AssessSettings, workspace: Workspace) -> Target:
    """Return the target that the settings name. Raises ProblemsError with everything that prevents an assessment."""
    problems: list[Problem] = []
    run = RunFolder(workspace.runs / Path(settings.run or "").name)
    if not settings.run or not os.path.isfile(run.job_file):  # False for a name that is too long
        raise no_such_run(settings.run or "", workspace)
    job, facts = present_job(run, workspace), RunView.read(run).snapshot(False)
    base = collected(problems, model_path, job.model.base_model, workspace)
    checkpoints = collected(problems, checkpoints_of, facts, job, workspace, settings.steps)
    if run.held:
        problems.append(
            Problem("The run is still training", run.name, "wait until it has ended", code="assess.training")
        )
    if others := [name for name in settings.measures if name not in MEASURES]:
        what, fix = f"There is no measure '{others[0]}'", f"use {', '.join(MEASURES)}"
        problems.append(Problem(what, "assess.measures", fix, code="assess.unknown-measure"))
    raise_if_errors(problems)
    assert base is not None and checkpoints is not None
    measures = [MEASURES[name] for name in settings.measures or MEASURES]
    if not all(may_reach(resolve_path(each.value)) for each in named_in(job) if each.what == "path"):
        no_images_reason = "this page may not read the files of the run's dataset"
        return Target(run, job, settings, workspace, base, checkpoints, measures, no_images_reason=no_images_reason)
    report = preflight(job, workspace)
    images = [placed for placed in report.placed if placed.concept.role == "train" and not placed.variant]
    messages = [problem.what for problem in errors(report.problems)]
    no_images_reason = "" if images else (messages or ["there are no training images"])[0]
    held_out = report.validation if images else ()
    return Target(run, job, settings, workspace, base, checkpoints, measures, images, held_out, no_images_reason)


def checkpoints_of(
    facts: Mapping[str, Any], job: TrainJob, workspace: Workspace, steps: Sequence[str] = ()
) -> list[Checkpoint]:
    """Return the checkpoints of `steps`; without steps, all (evenly spaced ones if there are many) and the averages.
    facts: the run's snapshot. Raises ProblemsError for a step without a checkpoint, and for a run without any"""
    saved: dict[int, list[Path]] = {}
    averages = [Checkpoint(file["step"], Path(file["path"])) for file in facts["files"] if is_average(file["name"])]
    for file in facts["files"]:
        if not is_average(file["name"]):
            saved.setdefault(file["step"], []).append(Path(file["path"]))
    by_name = {str(step): step for step in saved}
    missing = [step for step in steps if step not in by_name]
    if missing or not saved:
        what = f"Step {missing[0]} has no checkpoint" if missing else "This run has no saved file"
        fix = f"use {', '.join(map(str, sorted(saved)))}" if saved else "wait until it has saved one"
        raise ProblemsError.one(what, str(facts["run"]), fix, "run.no-file")
    words = job.method.traits.new_words
    wanted = sorted({by_name[step] for step in steps}) or spread_steps(sorted(saved), facts.get("best"))
    named = {step: tuple(embedding_values(job, saved[step], workspace)) if words else () for step in wanted}
    return [Checkpoint(step, saved[step][0], named[step]) for step in wanted] + ([] if steps else averages)
