"""Everything that speaks against a training before it begins: one list for the command line, the page and the run itself."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from core.families.attention import memory_problems
from core.record.problems import Problem, errors
from core.record.workspace import Workspace
from core.settings.job import TrainJob
from core.settings.rules import training_problems
from core.training.fast_disk import room_problems
from core.training.named_files import named_file_problems
from core.training.network_files import network_problems
from core.training.objective import objective_problems
from core.training.prior import prior_problems
from core.training.resume import beginning_problems

if TYPE_CHECKING:
    from core.dataset.report import Report

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
    """What the header of the base model tells about the loss, the networks and the room on a fast disk; nothing where there
    is no model."""
    found = [*objective_problems(job, workspace), *network_problems(job, workspace, allow)]
    return [*found, *room_problems(job, workspace)]
