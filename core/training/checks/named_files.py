"""Files, folders and packages that settings name, looked at before anything is loaded."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from core.formats.hub.upload import missing_key
from core.generation.prompt.sample_prompts import control_image, read_prompts
from core.record.problems import Problem, ProblemsError
from core.record.secrets import secret
from core.record.workspace import Workspace, resolve_path
from core.settings.job import TrainJob
from core.settings.resume import ResumeSettings
from core.training.loop.samples import prompts_of
from core.training.loop.trackers import tracker_config, wandb_problem
from core.training.saving.facts import thumbnail_url
from core.training.saving.resume import find_state, parse_address
from core.training.sharding.fast_disk import disk_folders, folder_there


def named_file_problems(job: TrainJob, workspace: Workspace, *, begins: bool = True) -> list[Problem]:
    """All problems of them, and advice about prompts.

    begins  the run has no training state yet: the one that it starts from must exist
    """
    if not begins:
        job = job.model_copy(update={"resume": ResumeSettings()})
    found: list[Problem] = []
    for look in _looks(job, workspace):
        found += _problems_of(look)
    problems = [wandb_problem(job), missing_key(job.hub, secret("huggingface_token"))]
    return [*found, *(problem for problem in problems if problem)]


def _looks(job: TrainJob, workspace: Workspace) -> Iterator[Callable[[], object]]:
    controlled = job.method.traits.control_images
    yield lambda: _advice(read_prompts(job.samples, controlled)[1])
    if controlled:
        yield lambda: [control_image(prompt) for prompt in prompts_of(job)]
    thumbnail, config = job.saving.metadata_thumbnail, job.logging.log_tracker_config
    if thumbnail:
        yield lambda: thumbnail_url(thumbnail)
    if config:
        yield lambda: tracker_config(config)
    for setting, folder in written_folders(job).items():
        yield partial(_at, _writable, folder, setting)
    for setting, folder in disk_folders(job).items():
        yield partial(_at, _usable, folder, setting)
    state = job.resume.resume
    if state:
        yield (
            lambda: (
                parse_address(state) if job.resume.resume_from_huggingface else find_state(state, workspace, quick=True)
            )
        )


def _at(look: Callable[[Path, str], object], folder: str, setting: str) -> object:
    return look(resolve_path(folder), setting)


def written_folders(job: TrainJob) -> dict[str, str]:
    """Setting -> folder outside the run that the training will write into."""
    own, named = job.logging, {"saving.copy_to": job.saving.copy_to}
    if own.log_with != "none":
        named["logging.logging_dir"] = own.logging_dir
    if own.console_log_file:
        named["logging.console_log_file"] = str(resolve_path(own.console_log_file).parent)
    return {setting: folder for setting, folder in named.items() if folder}


def _usable(folder: Path, setting: str) -> None:
    folder_there(folder, setting)
    _writable(folder, setting)


def _writable(folder: Path, setting: str) -> None:
    """Raise ProblemsError unless the folder, or its nearest existing parent, is writable. It is created when needed."""
    there = next((place for place in (folder, *folder.parents) if os.path.exists(place)), folder)
    try:
        with tempfile.TemporaryFile(dir=there):
            return
    except OSError as error:
        what = f"{folder} is not writable: {error.strerror or error}"
        fix = "choose another folder, or fix its permissions"
        raise ProblemsError.one(what, setting, fix, code="folder.not-writable") from None


def _advice(found: list[Problem]) -> None:
    if found:
        raise ProblemsError(found)


def _problems_of(look: Callable[[], object]) -> list[Problem]:
    try:
        look()
    except ProblemsError as error:
        return error.problems
    return []
