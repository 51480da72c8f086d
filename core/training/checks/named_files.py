"""Checks of the files, folders and packages that settings name, before a model is loaded."""

import os
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from core.formats.hub.upload import missing_token_problem
from core.generation.prompt.sample_prompts import control_image, read_prompts
from core.record import machine
from core.record.problems import Problem, ProblemsError, collected, raise_any
from core.record.regular import foreign_problem
from core.record.secrets import secret
from core.record.space import RESERVE
from core.record.units import size_text
from core.record.workspace import Workspace, display_path, is_foreign, resolve_path
from core.settings.job import TrainJob
from core.settings.resume import ResumeSettings
from core.training.loop.samples import prompts_of
from core.training.loop.trackers import tracker_config, wandb_problems
from core.training.saving.facts import thumbnail_url
from core.training.saving.resume import find_state, parse_address
from core.training.sharding.fast_disk import disk_folders, require_folder


def named_file_problems(job: TrainJob, workspace: Workspace, *, new_run: bool = True) -> list[Problem]:
    """Return the problems of files, folders and packages that settings name, and advice about prompts.
    new_run: the run has no training state yet, so that the state it starts from must exist"""
    if not new_run:
        job = job.model_copy(update={"resume": ResumeSettings()})
    problems: list[Problem] = []
    for check in _checks(job, workspace):
        collected(problems, check)
    others = [missing_token_problem(job.hub, secret("huggingface_token")), _full_disk_warning(workspace)]
    return [*problems, *wandb_problems(job), *(problem for problem in others if problem)]


def _full_disk_warning(workspace: Workspace) -> Problem | None:
    """Return a warning if the disk of the outputs has less free space than caching latents leaves free; else None."""
    free = machine.free_disk(workspace.outputs)
    if free >= RESERVE:
        return None
    what = f"Only {size_text(free)} are free on the disk that caches, checkpoints and training states are written to"
    fix = "free some space, or start with --outputs on another disk"
    return Problem(what, display_path(workspace.outputs), fix, "warning", code="disk.space")


def _checks(job: TrainJob, workspace: Workspace) -> Iterator[Callable[[], object]]:
    """Yield each check as a function, which raises ProblemsError."""
    controlled = job.method.traits.control_images
    yield lambda: raise_any(read_prompts(job.samples, controlled)[1])
    if controlled:
        yield lambda: _check_control_images(job)
    thumbnail, config = job.saving.metadata_thumbnail, job.logging.log_tracker_config
    if thumbnail:
        yield lambda: thumbnail_url(thumbnail)
    if config:
        yield lambda: tracker_config(config)
    for setting, folder in written_folders(job).items():
        yield partial(_check_folder, _require_writable, folder, setting)
    for setting, folder in disk_folders(job).items():
        yield partial(_check_folder, _require_usable, folder, setting)
    state = job.resume.resume
    if state:
        yield (
            lambda: (
                parse_address(state) if job.resume.resume_from_huggingface else find_state(state, workspace, quick=True)
            )
        )


def _check_control_images(job: TrainJob) -> None:
    """Raise ProblemsError with the control images of sample prompts that cannot be read."""
    problems: list[Problem] = []
    for prompt in prompts_of(job):
        collected(problems, control_image, prompt)
    raise_any(problems)


def _check_folder(check: Callable[[Path, str], object], folder: str, setting: str) -> object:
    """Return the result of `check` for the folder that a setting names: (path, setting) -> result or ProblemsError. Raises ProblemsError
    also for an address, and for a Windows path on another system."""
    if (problem := foreign_problem(folder, setting)) is not None:
        raise ProblemsError([problem])
    return check(resolve_path(folder), setting)


def written_folders(job: TrainJob) -> dict[str, str]:
    """Return {setting: folder} of the folders outside of the run folder that the training writes to."""
    logging, folders = job.logging, {"saving.copy_to": job.saving.copy_to}
    if logging.log_with != "none":
        folders["logging.logging_dir"] = logging.logging_dir
    if logging.console_log_file:
        file = logging.console_log_file
        folders["logging.console_log_file"] = file if is_foreign(file) else str(resolve_path(file).parent)
    return {setting: folder for setting, folder in folders.items() if folder}


def _require_usable(folder: Path, setting: str) -> None:
    """Raise ProblemsError unless the folder exists and is writable."""
    require_folder(folder, setting)
    _require_writable(folder, setting)


def _require_writable(folder: Path, setting: str) -> None:
    """Raise ProblemsError unless the folder, or its nearest existing parent, is writable. A missing folder is not created."""
    existing = next((path for path in (folder, *folder.parents) if os.path.exists(path)), folder)
    try:
        with tempfile.TemporaryFile(dir=existing):
            return
    except OSError as error:
        what = f"{folder} is not writable: {error.strerror or error}"
        fix = "choose another folder, or fix its permissions"
        raise ProblemsError.one(what, setting, fix, code="folder.not-writable") from None
