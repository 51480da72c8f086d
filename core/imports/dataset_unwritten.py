"""Settings of a job that a dataset config of sd-scripts has no option for, by name."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from core.imports.dataset_options import declaration
from core.record.problems import Problem
from core.settings.concepts import Concept
from core.settings.images import ImageSettings
from core.settings.job import TrainJob

# Settings that differ from this value are lost: for the whole job ...
OF_THE_JOB: tuple[tuple[str, str, str], ...] = (
    ("dataset", "dataset_class", "Give sd-scripts --dataset_class."),
    ("captions", "max_token_length", "Give sd-scripts --max_token_length; it reads up to 225."),
)
WITH_REGULARIZATION: tuple[tuple[str, str, str], ...] = (
    ("dataset", "prior_loss_weight", "Give sd-scripts --prior_loss_weight."),
)
ONLY_HERE: tuple[tuple[str, str, str], ...] = (
    ("dataset", "short_batches", "sd-scripts keeps short batches."),
    ("dataset", "skip_broken", "sd-scripts ends at the first broken image: remove them before."),
)
# ... and for one folder, with when it matters and what to do.
Rule = tuple[str, Any, Callable[[Concept], bool], str]
OF_A_FOLDER: tuple[Rule, ...] = (
    ("sidecars", "one", lambda concept: True, "sd-scripts reads one caption file; join them into one before."),
    ("caption_lines", "first", lambda concept: not concept.captions.enable_wildcard, "Switch on Choices in captions to draw a line."),
    ("trigger_word", None, lambda concept: True, "Write it into the captions, or use Put before each caption."),
    ("caption_template", "none", lambda concept: True, "Give sd-scripts --use_object_template or --use_style_template."),
    ("alpha_color", "#ffffff", lambda concept: True, "sd-scripts drops transparency; put the images on the color before."),
)  # fmt: skip


def unwritten(job: TrainJob, concepts: Sequence[Concept]) -> list[Problem]:
    """Advice for everything of the job that the file cannot hold."""
    found: list[Problem] = []
    with_regularization = any(concept.role == "regularization" for concept in concepts)
    for group, name, fix in OF_THE_JOB + ONLY_HERE + (WITH_REGULARIZATION if with_regularization else ()):
        model = getattr(job, group)
        info = type(model).model_fields[name]
        if getattr(model, name) != info.default:
            found.append(_lost(info.title or name, f"{group}.{name}", fix))
    if with_regularization and job.dataset.reg_balance != "kohya":
        what = "sd-scripts shows the first regularization images only"
        fix = "set model.compatibility to compare with it"
        found.append(Problem(what, "model.compatibility", fix, "advice", code="export.regularization-balance"))
    for concept in concepts:
        found += _of_a_folder(concept)
    return list(dict.fromkeys(found))


def _lost(title: str, where: str, fix: str) -> Problem:
    return Problem(f"'{title}' cannot be written to a dataset file of sd-scripts", where, fix, "advice")


def _of_a_folder(concept: Concept) -> Iterator[Problem]:
    folder, source, images = concept.source.folder, concept.source, concept.images
    for name, plain, matters, fix in OF_A_FOLDER:
        group: Any = images if name in ImageSettings.model_fields else concept.captions
        if getattr(group, name) != plain and matters(concept):
            yield _lost(declaration(name).title, folder, fix)
    if source.samples_per_epoch is not None:
        yield _lost("Views per epoch", folder, "Set repeats instead.")
    if source.loss_weight != 1:
        yield _lost("Loss weight", folder, "Set repeats instead; there is no weight for a folder.")
    if source.validation_images:
        yield _lost("Images for validation", folder, "Put them into a folder of their own with the validation role.")
    if not source.enabled:
        what = "The folder is switched off; it is written with num_repeats = 0, which leaves it out"
        yield Problem(what, folder, "remove it from the file, or give it repeats", "advice")
    if images.more_resolutions:
        what = "Further resolutions are written as further datasets over the same folder"
        yield Problem(what, folder, "nothing is to be done", "advice")
    if images.bucket_reso_steps % 64 and images.enable_bucket:
        what = f"sd-scripts refuses a bucket step of {images.bucket_reso_steps}"
        yield Problem(what, folder, "use a multiple of 64 (SDXL: 32)", "advice")
    yield from _of_masks_and_metadata(concept)


def _of_masks_and_metadata(concept: Concept) -> Iterator[Problem]:
    """What each kind of dataset leaves no place for."""
    folder, source, images = concept.source.folder, concept.source, concept.images
    masks, metadata = images.conditioning_data_dir, source.metadata_file
    if masks and images.masked_loss:
        yield Problem(
            "Masks are used only with an option on the command line",
            folder,
            "give sd-scripts --masked_loss",
            "advice",
        )
    elif masks:
        yield _lost(
            "Use the masks: off", folder, "sd-scripts trains such folders as ControlNet, or with --masked_loss."
        )
    elif images.masked_loss and not images.alpha_mask:
        yield _lost("Use the masks", folder, "There is no mask folder.")
    if masks and metadata:
        yield _lost("Metadata file", folder, "Beside a mask folder sd-scripts reads caption files only.")
    if masks and images.alpha_mask:
        yield _lost("Transparency is a mask", folder, "The mask folder is used alone.")
    if masks and images.random_crop:
        yield Problem("sd-scripts refuses Crop by chance beside a mask folder", folder, "switch it off", "advice")
    if (masks or metadata) and concept.role == "regularization":
        yield _lost("Role: regularization", folder, "sd-scripts knows it for folders without masks and metadata.")
    if masks and (source.class_tokens or source.identifier or source.class_word):
        yield _lost("Words for images without a caption", folder, "Write caption files.")
    if metadata and source.cache_info:
        yield _lost("Read metadata_cache.json", folder, "The metadata file is read instead.")
