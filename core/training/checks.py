"""Everything that speaks against a training before it begins: one list for the command line, the page and the run itself."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from core.families import family_of
from core.families.attention import memory_problems
from core.families.locate import model_path
from core.families.trained_size import trained_size
from core.record.problems import Problem, ProblemsError, errors
from core.record.workspace import Workspace
from core.settings.concepts import training_resolution
from core.settings.job import TrainJob
from core.settings.rules import set_without_effect, training_problems
from core.training.caption_weights import weight_problems
from core.training.fast_disk import room_problems
from core.training.named_files import named_file_problems
from core.training.network_files import network_problems
from core.training.objective import objective_problems
from core.training.prior import prior_problems
from core.training.resume import beginning_problems

if TYPE_CHECKING:
    from core.dataset.report import Report

EMBEDDING = "embedding.embedding_weights"
Allow = Callable[[Path, str], object]


def problems_without_model(
    job: TrainJob,
    workspace: Workspace,
    report: Report,
    device: str | None = None,
    allow: Allow | None = None,
    *,
    begins: bool = True,
) -> list[Problem]:
    """What settings, pictures, files and device tell while the base model may still have to be fetched.

    device  None where it is not known yet: what it cannot do is then heard later
    allow   called with each file that settings name before it is read; may raise ProblemsError (a shared page)
    begins  the run has no state of its own yet
    """
    found = [*training_problems(job), *report.problems, *prior_problems(job, report.placed)]
    found += weight_problems(job, [*report.placed, *report.validation])
    if job.method.kind == "embedding":
        from core.training.new_words import new_word_problems  # loads torch, for which the page does not wait

        found += new_word_problems(job, report.placed)
    found += named_file_problems(job, workspace, allow, begins=begins)
    if begins and not errors(found):
        found += beginning_problems(job, workspace, report)
    return found if device is None else found + _of_the_device(job, device)


def _of_the_device(job: TrainJob, device: str) -> list[Problem]:
    from core.optimization.optimizers import device_problems

    return [*device_problems(job.optimizer, device), *memory_problems(job.memory, device)]


def problems_with_model(job: TrainJob, workspace: Workspace, allow: Allow | None = None) -> list[Problem]:
    """What the header of the base model tells about the loss, the family, the size of pictures, the networks and the room on
    a fast disk; nothing where there is no model."""
    found = [*objective_problems(job, workspace), *_of_the_family(job, workspace), *_of_the_word(job, workspace, allow)]
    found += [*_of_the_size(job, workspace), *network_problems(job, workspace, allow)]
    return [*found, *room_problems(job, workspace)]


def _of_the_word(job: TrainJob, workspace: Workspace, allow: Allow | None) -> list[Problem]:
    """Whether the embedding that a new word begins from is there."""
    start = job.embedding.embedding_weights
    if job.method.kind != "embedding" or not start:
        return []
    try:
        path = model_path(start, workspace, EMBEDDING)
        if allow is not None:
            allow(path, EMBEDDING)
    except ProblemsError as error:
        return error.problems
    return []


def _of_the_family(job: TrainJob, workspace: Workspace) -> list[Problem]:
    """What the rules say once the family is known, where the settings leave it to the model to tell. Of a setting that
    they spoke of before they say no more."""
    if job.model.family != "auto":
        return []
    try:
        family = family_of(model_path(job.model.base_model, workspace))
    except (ProblemsError, OSError):
        return []
    told = job.model_copy(update={"model": job.model.model_copy(update={"family": family})})
    said = {problem.where for problem in [*training_problems(job), *set_without_effect(job)]}
    return [each for each in [*training_problems(told), *set_without_effect(told)] if each.where not in said]


def _of_the_size(job: TrainJob, workspace: Workspace) -> list[Problem]:
    """Advice where no picture trains at more than half the side that the model was made for: a resolution that was left
    behind, such as the starter's 128 with SDXL."""
    try:
        made = trained_size(model_path(job.model.base_model, workspace), job.model.family)
    except (ProblemsError, OSError):
        return []
    size = training_resolution(job)
    if job.dataset.more_resolutions or 4 * size[0] * size[1] > made[0] * made[1]:
        return []
    what = f"Pictures train at {size[0]} x {size[1]} pixels, but the base model was made for {made[0]} x {made[1]}"
    fix = f"Use {max(made)}, or somewhat less to save memory: a model that learns small pictures draws coarse ones."
    return [Problem(what, "dataset.resolution", fix, level="advice")]
