"""Rules on checkpoints, training states, uploads, samples and logging."""

import re
from collections.abc import Iterator

from core.record.problems import Problem
from core.record.units import count
from core.settings.base import declared, every, value_of
from core.settings.job import TrainJob
from core.settings.names import bad_name
from core.settings.needs import all_but, ignored
from core.settings.rules import validation

INTERVALS = ("saving", "samples", "validation")  # groups whose numbers without bounds are intervals, off below 0
FOLDERS = ("diffusers", "diffusers_safetensors")
REPOSITORY = re.compile(r"[\w.-]+/[\w.-]+")
METADATA = "metadata_"
IN_STEPS = ("save_every_n_steps", "save_n_evenly", "sample_every_n_steps", "validate_every_n_steps")
IN_EPOCHS = (
    "save_every_n_epochs",
    "save_n_epoch_ratio",
    "sample_every_n_epochs",
    "validate_every_n_epochs",
    "caption_dropout_every_n_epochs",
)


def problems(job: TrainJob) -> Iterator[Problem]:
    """Yield errors and advice on intervals, file names and formats, training states, uploads and samples."""
    for entry in declared(TrainJob):
        if entry.group in INTERVALS and not entry.info.metadata:
            value = value_of(job, entry.path)
            if isinstance(value, (int, float)) and value < 0:
                what = f"{entry.title} is {value}, which is treated as off"
                yield Problem(what, entry.path, "leave it empty or write 0", "advice", code="saving.negative-interval")
    yield from _state_problems(job)
    name = job.saving.output_name
    reason = bad_name(name)
    if reason is not None:
        what = f"'{name}' cannot be used as a file name: {reason}"
        yield Problem(what, "saving.output_name", "use letters, digits, - and _", code="settings.bad-name")
    if name.lower().endswith((".safetensors", ".ckpt", ".pt")):
        what = f"The output name '{name}' has an ending; checkpoints get one of their own after it"
        yield Problem(what, "saving.output_name", "leave the ending out", "advice", code="saving.name-with-ending")
    copies = job.saving.copy_to or ""
    if copies.lower().endswith((".safetensors", ".ckpt", ".pt")):
        what = f"'{copies}' is named like a file, but becomes a folder that the finished files are copied to"
        yield Problem(what, "saving.copy_to", "leave the file name out", "advice", code="saving.name-with-ending")
    for path in ("logging.log_tracker_name", "logging.log_prefix"):
        text = value_of(job, path) or ""
        if re.match(r"[/\\]|.:", text) or ".." in re.split(r"[/\\]", text):
            what, fix = (
                f"'{text}' leads out of the log folder",
                "use a name; the folder of the logs is logging.logging_dir",
            )
            yield Problem(what, path, fix, code="settings.bad-name")
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
    samples = job.samples
    intervals = (samples.sample_every_n_epochs, samples.sample_every_n_steps, samples.sample_every_minutes)
    prompts = samples.sample_prompts or samples.sample_prompts_file
    if prompts and not samples.sample_at_first and not any(map(every, intervals)):
        what = "There are sample prompts, but no samples are generated during the training"
        fix = (
            "set after how many steps or epochs they are, or leave it: Compare checkpoints uses the prompts afterwards"
        )
        yield Problem(what, "samples.sample_every_n_steps", fix, "advice", code="samples.no-interval")


def length_problems(job: TrainJob, total: int, epochs: int | None) -> Iterator[Problem]:
    """Yield advice on intervals and numbers of checkpoints that are above the steps (`total`) or epochs of a run."""
    unused = {path for path, _ in (*without_effect(job), *validation.without_effect(job))}
    for entry in declared(TrainJob):
        for names, unit, length in ((IN_STEPS, "step", total), (IN_EPOCHS, "epoch", epochs)):
            number = every(value_of(job, entry.path)) if entry.name in names and entry.path not in unused else None
            if number and length and number > length:
                what = f"'{entry.title}' is {int(number)}, and the training has {count(length, unit)}"
                yield Problem(what, entry.path, f"use at most {length}", "advice", code="saving.long-interval")


def _state_problems(job: TrainJob) -> Iterator[Problem]:
    """Yield advice if a crash would lose much, or if a single training state is kept."""
    saving = job.saving
    with_files = saving.save_state and (every(saving.save_every_n_steps) or every(saving.save_every_n_epochs))
    often = every(saving.save_every_n_steps) or every(saving.checkpoint_every_minutes)
    if not every(saving.save_every_minutes) and not (saving.save_state and often):
        kept_until = " since the last epoch checkpoint" if with_files else ""
        what = f"A crash would lose everything{kept_until}"
        fix = "back up every 10 minutes"
        yield Problem(what, "saving.save_every_minutes", fix, "advice", code="saving.no-backups")
    if saving.save_last_n_states == 1 and not _by_distance(job):
        what = "Only one training state is kept: if it is damaged, the run cannot be resumed"
        yield Problem(what, "saving.save_last_n_states", "keep 2", "advice", code="saving.one-state")


def _by_distance(job: TrainJob) -> bool:
    """Return whether old training states are deleted by steps or epochs, instead of by their number."""
    return bool(every(job.saving.save_last_n_epochs_state) or every(job.saving.save_last_n_steps_state))


def without_effect(job: TrainJob) -> Iterator[tuple[str, str]]:
    """Yield (dotted path, reason) for saving, resume, upload, sample and tracker settings without effect."""
    saving, hub, samples, resume = job.saving, job.hub, job.samples, job.resume
    at_epochs, at_least = every(saving.save_every_n_epochs), every(saving.save_n_epoch_ratio)
    at_steps = every(saving.save_every_n_steps) or every(saving.save_n_evenly) or every(saving.checkpoint_every_minutes)
    pickled = saving.save_model_as in ("ckpt", "pt")
    metadata = [name for name in type(saving).model_fields if name.startswith(METADATA)]
    no_sd2_lora = not job.method.traits.uses_network or (
        job.model.traits and not job.model.traits.convolutions_in_loras
    )
    prompts = samples.sample_prompts or samples.sample_prompts_file
    scaled = samples.sample_prompts_file or any(" --l " in each for each in samples.sample_prompts)
    unguided = samples.guidance_scale is not None and samples.guidance_scale <= 1 and not scaled
    started = resume.initial_step is not None or resume.initial_epoch is not None
    yield from ignored(
        (not at_epochs and not at_least, "saving.save_last_n_epochs", "nothing is saved at epoch ends"),
        (at_epochs and at_least, "saving.save_every_n_epochs", "the min number of epoch checkpoints is set"),
        (not at_steps, "saving.save_last_n_steps", "nothing is saved at steps"),
        (saving.save_state, "saving.save_state_on_train_end", "a state is saved with every checkpoint, including the last"),
        (_by_distance(job), "saving.save_last_n_states", "states are kept by epochs or steps"),
        (pickled, f"saving.training_comment no_metadata {' '.join(metadata)}", f".{saving.save_model_as} files have no metadata"),
        (not pickled and saving.no_metadata, "saving.training_comment", "metadata is minimal"),
        (no_sd2_lora, "saving.sd2_projections", "it applies to LoRAs for SD 2.x only"),
        (resume.initial_step is not None, "resume.initial_epoch", "the initial step is set"),
        (not started, "resume.skip_until_initial_step", "no initial step or epoch is set"),
        (not hub.huggingface_repo_id, all_but(hub, "hub", "huggingface_repo_id"), "nothing is uploaded"),
        (not prompts, all_but(samples, "samples", "sample_prompts", "sample_prompts_file"), "there are no sample prompts"),
        (prompts and every(samples.sample_every_n_epochs), "samples.sample_every_n_steps", "samples are generated at epoch ends"),
        (unguided, "samples.negative_prompt", "guidance is off at a scale of 1 and below"),
        (job.logging.log_with == "none",
         "logging.logging_dir log_prefix log_tracker_name log_tracker_config log_config", "there are no trackers"),
    )  # fmt: skip
