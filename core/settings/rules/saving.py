"""Checkpoints, training states, uploads, samples and logging."""

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
    "saving.checkpoint_every_minutes",
    "saving.save_n_evenly",
    "saving.save_n_epoch_ratio",
    "saving.save_last_n",
    "saving.save_last_n_epochs",
    "saving.save_last_n_steps",
    "saving.save_last_n_epochs_state",
    "saving.save_last_n_steps_state",
    "samples.sample_every_n_steps",
    "samples.sample_every_n_epochs",
    "samples.sample_every_minutes",
    "validation.validate_every_n_steps",
    "validation.validate_every_n_epochs",
    "validation.max_validation_steps",
)
FOLDERS = ("diffusers", "diffusers_safetensors")
REPOSITORY = re.compile(r"[\w.-]+/[\w.-]+")
METADATA = "metadata_"


def problems(job: TrainJob) -> Iterator[Problem]:
    titles = {entry.path: entry.title for entry in declared(TrainJob)}
    for path in PERIODS:
        value = value_of(job, path)
        if value is not None and value < 0:
            what = f"{titles[path]} is {value}, which is treated as off"
            yield Problem(what, path, "leave it empty or write 0", "advice", code="saving.negative-interval")
    yield from _states(job)
    name = job.saving.output_name
    reason = bad_name(name)
    if reason is not None:
        what = f"'{name}' cannot be used as a file name: {reason}"
        yield Problem(what, "saving.output_name", "use letters, digits, - and _", code="settings.bad-name")
    form, traits = job.saving.save_model_as, job.method.traits
    if (form == "source" and not traits.base_trains) or (form in FOLDERS and not traits.as_folder):
        what = "This format is for larger models, and this method saves a small file"
        yield Problem(what, "saving.save_model_as", "use safetensors", code="saving.full-model-format")
    if job.resume.resume_from_huggingface and not job.resume.resume:
        what = "Resume from Hugging Face is on, but no address is set"
        fix = "write owner/name/folder, or turn it off"
        yield Problem(what, "resume.resume", fix, code="resume.no-address")
    repository = job.hub.huggingface_repo_id
    if repository and not REPOSITORY.fullmatch(repository):
        what = f"'{repository}' is not a Hugging Face repository id"
        yield Problem(what, "hub.huggingface_repo_id", "write owner/name", code="hub.bad-repository")


def _states(job: TrainJob) -> Iterator[Problem]:
    own = job.saving
    with_files = own.save_state and (every(own.save_every_n_steps) or every(own.save_every_n_epochs))
    often = every(own.save_every_n_steps) or every(own.checkpoint_every_minutes)
    if not every(own.save_every_minutes) and not (own.save_state and often):
        what = (
            "A crash would lose everything since the last epoch checkpoint"
            if with_files
            else "A crash would lose everything"
        )
        fix = "back up every 10 minutes"
        yield Problem(what, "saving.save_every_minutes", fix, "advice", code="saving.no-backups")
    if own.save_last_n_states == 1 and not _by_distance(job):
        what = "Only one training state is kept: if it is damaged, the run cannot be resumed"
        yield Problem(what, "saving.save_last_n_states", "keep 2", "advice", code="saving.one-state")


def _by_distance(job: TrainJob) -> bool:
    return bool(every(job.saving.save_last_n_epochs_state) or every(job.saving.save_last_n_steps_state))


def without_effect(job: TrainJob) -> Iterator[tuple[str, str]]:
    own = job.saving
    if not every(own.save_every_n_epochs) and not every(own.save_n_epoch_ratio):
        yield "saving.save_last_n_epochs", "ignored: nothing is saved at epoch ends"
    if every(own.save_every_n_epochs) and every(own.save_n_epoch_ratio):
        yield "saving.save_every_n_epochs", "ignored: the min number of epoch checkpoints is set"
    if not (every(own.save_every_n_steps) or every(own.save_n_evenly) or every(own.checkpoint_every_minutes)):
        yield "saving.save_last_n_steps", "ignored: nothing is saved at steps"
    if own.save_state:
        yield "saving.save_state_on_train_end", "ignored: a state is saved with every checkpoint, including the last"
    if _by_distance(job):
        yield "saving.save_last_n_states", "ignored: states are kept by epochs or steps"
    if own.save_model_as in ("ckpt", "pt"):
        for name in type(own).model_fields:
            if name.startswith(METADATA) or name in ("training_comment", "no_metadata"):
                yield f"saving.{name}", f"ignored: .{own.save_model_as} files have no metadata"
    elif own.no_metadata:
        yield "saving.training_comment", "ignored: metadata is minimal"
    if not job.method.traits.uses_network or (job.model.traits and not job.model.traits.convolutions_in_loras):
        yield "saving.sd2_projections", "ignored: it applies to LoRAs for SD 2.x only"
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
            yield f"logging.{name}", "ignored: there are no trackers"


def _resume(job: TrainJob) -> Iterator[tuple[str, str]]:
    own = job.resume
    if own.initial_step is not None:
        yield "resume.initial_epoch", "ignored: the initial step is set"
    if own.initial_step is None and own.initial_epoch is None:
        yield "resume.skip_until_initial_step", "ignored: no initial step or epoch is set"


def _samples(job: TrainJob) -> Iterator[tuple[str, str]]:
    if not (job.samples.sample_prompts or job.samples.sample_prompts_file):
        for entry in declared(TrainJob):
            if entry.group == "samples" and entry.name not in ("sample_prompts", "sample_prompts_file"):
                yield entry.path, "ignored: there are no sample prompts"
    elif every(job.samples.sample_every_n_epochs):
        yield "samples.sample_every_n_steps", "ignored: samples are generated at epoch ends"
