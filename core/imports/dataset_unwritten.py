"""Advice for settings of a job that a dataset config of sd-scripts cannot contain."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from core.imports.dataset_options import declaration
from core.record.problems import Problem
from core.settings.dataset.concepts import Concept
from core.settings.dataset.images import ImageSettings
from core.settings.job import TrainJob

# Settings that are lost if they differ from their default: for the whole job ...
OF_THE_JOB: tuple[tuple[str, str, str], ...] = (
    ("dataset", "dataset_class", "pass --dataset_class to sd-scripts"),
    ("captions", "max_token_length", "pass --max_token_length (up to 225) to sd-scripts"),
)
WITH_REGULARIZATION: tuple[tuple[str, str, str], ...] = (
    ("dataset", "prior_loss_weight", "pass --prior_loss_weight to sd-scripts"),
)
ONLY_HERE: tuple[tuple[str, str, str], ...] = (
    ("dataset", "short_batches", "expect incomplete batches: sd-scripts always keeps them"),
    ("dataset", "skip_broken", "remove broken images: sd-scripts stops at the first one"),
)
# ... and for one folder: (setting, default, when it matters, what to do).
Rule = tuple[str, Any, Callable[[Concept], bool], str]
OF_A_FOLDER: tuple[Rule, ...] = (
    ("sidecars", "one", lambda concept: True, "join them into one caption file: sd-scripts reads only one"),
    ("caption_lines", "first", lambda concept: not concept.captions.enable_wildcard, "turn on wildcards to pick a random line"),
    ("trigger_word", None, lambda concept: True, "write it into the captions, or use a caption prefix"),
    ("caption_template", "none", lambda concept: True, "pass --use_object_template or --use_style_template to sd-scripts"),
    ("conditioning_suffix", None, lambda concept: True, "move the masks or control images to another folder, named as their images"),
    ("control_interpolation", None, lambda concept: concept.control, "resize the control images yourself"),
    ("alpha_color", "#ffffff", lambda concept: True, "fill the transparency of the images first: sd-scripts drops it"),
)  # fmt: skip


def not_representable(job: TrainJob, concepts: Sequence[Concept]) -> list[Problem]:
    """Advice for every setting of the job that the file cannot contain."""
    found: list[Problem] = []
    with_regularization = any(concept.role == "regularization" for concept in concepts)
    for group, name, fix in OF_THE_JOB + ONLY_HERE + (WITH_REGULARIZATION if with_regularization else ()):
        model = getattr(job, group)
        info = type(model).model_fields[name]
        if getattr(model, name) != info.default:
            found.append(_lost(name, f"{group}.{name}", fix, info.title))
    if with_regularization and job.dataset.reg_balance != "kohya":
        what = "sd-scripts uses only the first regularization images"
        fix = "set model.compatibility to compare with it"
        found.append(Problem(what, "model.compatibility", fix, "advice", code="dataset-config.regularization-balance"))
    for concept in concepts:
        found += _of_a_folder(concept)
    return list(dict.fromkeys(found))


def _lost(name: str, where: str, fix: str, title: str | None = None) -> Problem:
    """Advice that a setting is lost; its code is dataset-config.lost.<name>."""
    what = f"'{title or declaration(name).title}' cannot be written to a dataset config of sd-scripts"
    return Problem(what, where, fix, "advice", code=f"dataset-config.lost.{name}")


def _of_a_folder(concept: Concept) -> Iterator[Problem]:
    folder, source, images = concept.source.folder, concept.source, concept.images
    for name, plain, matters, fix in OF_A_FOLDER:
        group: Any = images if name in ImageSettings.model_fields else concept.captions
        if getattr(group, name) != plain and matters(concept):
            yield _lost(name, folder, fix)
    if source.samples_per_epoch is not None:
        yield _lost("samples_per_epoch", folder, "set repeats instead")
    if source.loss_weight != 1:
        yield _lost("loss_weight", folder, "set repeats instead")
    if source.validation_images:
        yield _lost("validation_images", folder, "put them into a separate folder with the validation role")
    if not source.enabled:
        what = "The folder is disabled and written with num_repeats = 0, which excludes it"
        fix = "remove it from the file, or set its repeats"
        yield Problem(what, folder, fix, "advice", code="dataset-config.disabled-folder")
    if images.more_resolutions:
        what = "Additional resolutions are written as additional datasets over the same folder"
        yield Problem(what, folder, "no action needed", "advice", code="dataset-config.more-resolutions")
    if images.bucket_reso_steps % 64 and images.enable_bucket:
        what = f"sd-scripts refuses a bucket step of {images.bucket_reso_steps}"
        yield Problem(what, folder, "use a multiple of 64 (SDXL: 32)", "advice", code="dataset-config.bucket-step")
    yield from _of_masks_and_metadata(concept)


def _of_masks_and_metadata(concept: Concept) -> Iterator[Problem]:
    """Settings that this kind of dataset does not support."""
    folder, source, images = concept.source.folder, concept.source, concept.images
    masks, metadata = images.conditioning_data_dir, source.metadata_file
    if masks and images.masked_loss:
        what = "sd-scripts uses masks only with a command line option"
        yield Problem(
            what, folder, "pass --masked_loss to sd-scripts", "advice", code="dataset-config.masks-need-option"
        )
    elif masks:
        fix = "remove the mask folder: sd-scripts would use it for ControlNet, or with --masked_loss as masks"
        yield _lost("masked_loss", folder, fix)
    elif images.masked_loss and not images.alpha_mask:
        yield _lost("masked_loss", folder, "choose a mask folder")
    if masks and metadata:
        yield _lost("metadata_file", folder, "write caption files: with a mask folder sd-scripts reads only those")
    if masks and images.alpha_mask:
        yield _lost("alpha_mask", folder, "turn one of them off: sd-scripts uses the mask folder only")
    if masks and images.random_crop:
        what = "sd-scripts refuses random crop with a mask folder"
        yield Problem(what, folder, "turn it off", "advice", code="dataset-config.random-crop-with-masks")
    if (masks or metadata) and concept.role == "regularization":
        fix = "use regularization folders without masks and metadata: sd-scripts supports no others"
        yield _lost("role", folder, fix)
    if masks and (source.class_tokens or source.identifier or source.class_word):
        yield _lost("class_tokens", folder, "write caption files")
    if metadata and source.cache_info:
        yield _lost("cache_info", folder, "turn it off: sd-scripts reads the metadata file")
