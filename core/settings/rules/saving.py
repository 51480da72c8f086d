"""Saves, back-ups and samples."""

from __future__ import annotations

import re
from collections.abc import Iterator

from core.record.problems import Problem
from core.settings.base import declared, every, value_of
from core.settings.job import TrainJob
from core.settings.names import bad_name

PERIODS = (
    "saving.save_every_n_epochs",
    "saving.save_every_n_steps",
    "saving.save_every_minutes",
    "saving.save_n_evenly",
    "saving.save_n_epoch_ratio",
    "saving.save_last_n",
    "saving.save_last_n_epochs",
    "saving.save_last_n_steps",
    "saving.save_last_n_epochs_state",
    "saving.save_last_n_steps_state",
    "samples.sample_every_n_steps",
    "samples.sample_every_n_epochs",
    "validation.validate_every_n_steps",
    "validation.validate_every_n_epochs",
    "validation.max_validation_steps",
)
OF_WHOLE_MODELS = {
    "diffusers": "A diffusers folder",
    "diffusers_safetensors": "A diffusers folder",
    "source": "The base model's form",
}
REPOSITORY = re.compile(r"[\w.-]+/[\w.-]+")
METADATA = "metadata_"


def problems(job: TrainJob) -> Iterator[Problem]:
    titles = {entry.path: entry.title for entry in declared(TrainJob)}
    for path in PERIODS:
        value = value_of(job, path)
        if value is not None and value < 0:
            what = f"{titles[path]} is {value}, which is treated as off"
            yield Problem(what, path, "leave it empty or write 0", "advice")
    yield from _states(job)
    name = job.saving.output_name
    reason = bad_name(name)
    if reason is not None:
        what = f"'{name}' cannot be a file name: {reason}"
        yield Problem(what, "saving.output_name", "use letters, digits, - and _")
    form = job.saving.save_model_as
    if form in OF_WHOLE_MODELS and not job.method.whole_model:
        what = f"{OF_WHOLE_MODELS[form]} holds a whole model, and this training makes a small file"
        yield Problem(what, "saving.save_model_as", "use safetensors")
    if job.resume.resume_from_huggingface and not job.resume.resume:
        what = "A state on the hub is asked for, and its address is missing"
        yield Problem(what, "resume.resume", "write owner/name/folder, or switch it off")
    repository = job.hub.huggingface_repo_id
    if repository and not REPOSITORY.fullmatch(repository):
        what = f"'{repository}' is no repository of the hub"
        yield Problem(what, "hub.huggingface_repo_id", "write owner/name")


def _states(job: TrainJob) -> Iterator[Problem]:
    own = job.saving
    with_files = own.save_state and (every(own.save_every_n_steps) or every(own.save_every_n_epochs))
    if not every(own.save_every_minutes) and not (own.save_state and every(own.save_every_n_steps)):
        what = (
            "A crash would lose everything since the last epoch save" if with_files else "A crash would lose everything"
        )
        yield Problem(what, "saving.save_every_minutes", "back up every 10 minutes", "advice")
    if own.save_last_n_states == 1 and not _by_distance(job):
        what = "Only one state is kept: if it is damaged, there is none to continue from"
        yield Problem(what, "saving.save_last_n_states", "keep 2", "advice")


def _by_distance(job: TrainJob) -> bool:
    return bool(every(job.saving.save_last_n_epochs_state) or every(job.saving.save_last_n_steps_state))


def without_effect(job: TrainJob) -> Iterator[tuple[str, str]]:
    own = job.saving
    if not every(own.save_every_n_epochs) and not every(own.save_n_epoch_ratio):
        yield "saving.save_last_n_epochs", "ignored: nothing is saved at epoch ends"
    if every(own.save_every_n_epochs) and every(own.save_n_epoch_ratio):
        yield "saving.save_every_n_epochs", "ignored: the number of files decides"
    if not every(own.save_every_n_steps) and not every(own.save_n_evenly):
        yield "saving.save_last_n_steps", "ignored: nothing is saved at steps"
    if own.save_state:
        yield "saving.save_state_on_train_end", "ignored: a state is saved with every file, the last too"
    if _by_distance(job):
        yield "saving.save_last_n_states", "ignored: epochs or steps of states are set"
    if own.save_model_as in ("ckpt", "pt"):
        for name in type(own).model_fields:
            if name.startswith(METADATA) or name in ("training_comment", "no_metadata"):
                yield f"saving.{name}", f"ignored: .{own.save_model_as} files have no metadata"
    elif own.no_metadata:
        yield "saving.training_comment", "ignored: metadata is left out"
    if job.method.kind != "lora" or job.model.family not in ("auto", "sd2"):
        yield "saving.sd2_projections", "ignored: this training makes no LoRA for SD 2.x"
    yield from _resume(job)
    if not job.hub.huggingface_repo_id:
        for name in type(job.hub).model_fields:
            if name != "huggingface_repo_id":
                yield f"hub.{name}", "ignored: nothing is uploaded"
    yield from _samples(job)
    yield from _logging(job)


def _logging(job: TrainJob) -> Iterator[tuple[str, str]]:
    own = job.logging
    if own.log_with == "none":
        for name in ("logging_dir", "log_prefix", "log_tracker_name", "log_tracker_config", "log_config"):
            yield f"logging.{name}", "ignored: nothing is written but the journal"
    elif not own.logging_dir:
        yield "logging.log_prefix", "ignored: logs lie in the run's own folder"
    if own.log_with not in ("wandb", "all"):
        yield "logging.wandb_run_name", "ignored: nothing is sent to wandb"


def _resume(job: TrainJob) -> Iterator[tuple[str, str]]:
    own = job.resume
    if own.initial_step is not None:
        yield "resume.initial_epoch", "ignored: the step is set"
    if own.initial_step is None and own.initial_epoch is None:
        yield "resume.skip_until_initial_step", "ignored: the training begins at the beginning, or at a state"
    if not own.resume:
        yield "resume.resume_from_huggingface", "ignored: no state is given"


def _samples(job: TrainJob) -> Iterator[tuple[str, str]]:
    if not (job.samples.sample_prompts or job.samples.sample_prompts_file):
        for entry in declared(TrainJob):
            if entry.group == "samples" and entry.name not in ("sample_prompts", "sample_prompts_file"):
                yield entry.path, "ignored: there are no sample prompts"
    elif every(job.samples.sample_every_n_epochs):
        yield "samples.sample_every_n_steps", "ignored: samples come at epoch ends"
