"""Metadata of the files that a run saves: sd-scripts' ss_* entries and modelspec."""

from __future__ import annotations

import base64
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from core.dataset.captions.files import lines_of
from core.families.components import Components
from core.formats.hashes import HashMemo, model_hashes
from core.formats.lora.metadata import SaveFacts, lora_metadata
from core.formats.model_spec import model_spec
from core.networks.kinds import kind_named
from core.record.draws import address
from core.record.journal import read_lines
from core.record.problems import ProblemsError
from core.record.regular import read_regular
from core.record.workspace import resolve_path
from core.settings.dataset.concepts import Concept, overridden_settings, training_resolution
from core.settings.methods import spec_of

if TYPE_CHECKING:
    from core.dataset.buckets.batches import Placed
    from core.dataset.buckets.plan import Plan
    from core.methods import Method
    from core.record.run_folder import RunFolder
    from core.settings.job import TrainJob

# What sd-scripts keeps with no_metadata
MINIMUM = {
    "ss_v2",
    "ss_base_model_version",
    "ss_network_module",
    "ss_network_dim",
    "ss_network_alpha",
    "ss_network_args",
}
# Settings that metadata has under their own names: modelspec's of the user, validation, and images and captions of a folder.
USER_METADATA = (
    *("title", "author", "description", "license", "tags", "usage_hint", "trigger_phrase", "merged_from"),
    *("preprocessor", "is_negative_embedding", "thumbnail"),
)
VALIDATION = (
    *("validation_seed", "validation_split", "max_validation_steps"),
    *("validate_every_n_epochs", "validate_every_n_steps"),
)
AUGMENTATION = ("color_aug", "flip_aug", "random_crop")
CAPTIONS = (
    *("shuffle_caption", "keep_tokens", "keep_tokens_separator", "secondary_separator", "enable_wildcard"),
    *("caption_prefix", "caption_suffix", "caption_dropout_rate", "caption_dropout_every_n_epochs"),
    *("caption_tag_dropout_rate", "token_warmup_min", "token_warmup_step"),
)
THUMBNAILS = {".png": "png", ".jpg": "jpeg", ".jpeg": "jpeg", ".webp": "webp", ".gif": "gif"}
THUMBNAIL_BYTES = 1 << 20


@dataclass
class FileFacts:
    """Facts of a run for the metadata of its files.

    prediction   prediction type, "epsilon" or "v"
    precision    name of the compute dtype
    held_out     number of validation images
    vae          path of a separate VAE; None for the base model's own
    memo         cached file hashes
    """

    job: TrainJob
    folder: RunFolder
    plan: Plan
    components: Components
    method: Method
    prediction: str
    precision: str
    held_out: int
    vae: Path | None
    memo: HashMemo

    def metadata(self, step: int) -> dict[str, str]:
        """Return the ss_* and modelspec metadata of a file that is saved after `step` optimizer steps."""
        job, plan, source, vae = self.job, self.plan, self.components.origin, self.vae
        # Without the cancel token, which "stop and save" has set: a canceled hash would lose the save.
        old_hash, sha256 = model_hashes(source, self.memo)
        vae_hash, vae_sha256 = model_hashes(vae, self.memo) if vae else (None, None)
        never_used, kind = {each.key for each in plan.epochs.never_used()}, kind_named(job.network.kind)
        used = {each.image.key for each in plan.placed if each.key not in never_used}
        placed = [each for each in plan.placed if each.image.key in used]
        views = [each for each, _ in plan.epochs.views_of(0)]
        regularization = sum(each.concept.role == "regularization" for each in views)
        facts = SaveFacts(
            session_id=address(0, "session", self.folder.name) % 2**32,
            started_at=_first_start(self.folder),
            family=self.components.family,
            prediction=self.prediction,
            mixed_precision=self.precision,
            seed=plan.seed,
            num_train_images=len(views) - regularization,
            num_reg_images=regularization,
            num_batches_per_epoch=plan.epochs.batches_in(0),
            num_epochs=plan.epoch_of(plan.total - 1) + 1,
            epoch=plan.epoch_of(max(step - 1, 0)) + 1,
            step=step,
            max_train_steps=plan.total,
            resolution=training_resolution(job),
            base_model_name=source.name,
            base_model_hash=old_hash,
            base_model_sha256=sha256,
            vae_name=vae.name if vae else None,
            vae_hash=vae_hash,
            vae_sha256=vae_sha256,
            dataset_dirs=folders_of(placed, regularization=False),
            reg_dataset_dirs=folders_of(placed, regularization=True),
            tag_frequency=tags_of(placed),
            bucket_info=buckets_of(views),
            datasets=datasets_of(placed, views),
            network_module=kind.module_name,
            network_args=kind.network_args(job),
            extra=self.method.metadata() | user_metadata(job, placed) | _validation_metadata(job, self.held_out),
        )
        file_kind = spec_of(job).saves
        if file_kind == "embedding":
            return model_spec(job, facts, file_kind) | _schedule_metadata(job)
        if file_kind != "lora":  # as in sd-scripts, which writes training metadata to networks only
            return model_spec(job, facts, file_kind if self.method.extension else "folder")
        metadata = lora_metadata(job, facts)
        return minimal_metadata(metadata) | _schedule_metadata(job) if job.saving.no_metadata else metadata


def _schedule_metadata(job: TrainJob) -> dict[str, str]:
    """Return {"ss_zero_terminal_snr": "True"} with zero terminal SNR, else {}. Samplers need it, so all kinds of files have it."""
    return {"ss_zero_terminal_snr": "True"} if job.noise.zero_terminal_snr else {}


def minimal_metadata(metadata: Mapping[str, str]) -> dict[str, str]:
    """Return the entries of `metadata` that other programs need to load the file, without settings and images (`no_metadata`)."""
    return {name: text for name, text in metadata.items() if name in MINIMUM or name.startswith("modelspec.")}


def user_metadata(job: TrainJob, placed: Sequence[Placed]) -> dict[str, str]:
    """Return {modelspec name: text} of the title, author, trigger phrase and so on that the user entered; empty fields are left out. Raises
    ProblemsError for a thumbnail that cannot be used."""
    saving = job.saving
    facts = {name: getattr(saving, f"metadata_{name}") for name in USER_METADATA} | {
        "trigger_phrase": saving.metadata_trigger_phrase or trigger_words(placed),
        "is_negative_embedding": "true" if saving.metadata_is_negative_embedding else None,
        "thumbnail": thumbnail_url(saving.metadata_thumbnail) if saving.metadata_thumbnail else None,
    }
    return {f"modelspec.{name}": text for name, text in facts.items() if text}


def trigger_words(placed: Sequence[Placed]) -> str:
    """Return the trigger phrases of the training folders, comma-separated, each once."""
    folders = {id(each.concept): each.concept for each in placed}.values()
    return ", ".join(dict.fromkeys(trigger for folder in folders for trigger in folder.triggers))


def _validation_metadata(job: TrainJob, held_out: int) -> dict[str, str]:
    """Return "ss_num_validation_images" and the settings in VALIDATION as ss_* metadata, as in sd-scripts 0.10.
    held_out: number of validation images"""
    settings = {f"ss_{name}": str(getattr(job.validation, name)) for name in VALIDATION}
    return {"ss_num_validation_images": str(held_out)} | settings


def thumbnail_url(path: str) -> str:
    """Return an image file as a base64 data URL. Raises ProblemsError for an unsupported extension, a file that cannot be read, or one
    larger than 1 MB."""
    file, fix = resolve_path(path), "choose a .png, .jpg or .webp of at most 1 MB"
    kind = THUMBNAILS.get(file.suffix.lower())
    if kind is None:
        raise ProblemsError.one("The thumbnail is not a supported image", path, fix, code="metadata.bad-thumbnail")
    data = read_regular(file, THUMBNAIL_BYTES)
    return f"data:image/{kind};base64,{base64.b64encode(data).decode('ascii')}"


def _first_start(folder: RunFolder) -> float:
    """Return the time of the run's first start in Unix seconds, also after resuming; 0 for an empty journal."""
    first = next(read_lines(folder.journal_file), None)
    return float(first["time"]) if first else 0.0


def folders_of(placed: Iterable[Placed], *, regularization: bool | None = None) -> dict[str, Any]:
    """Return {folder: {"n_repeats": repeats of each image, "img_count": number of images}}.
    regularization: True: only regularization folders; False: only training folders; None: all"""
    folders: dict[str, Any] = {}
    for each in _one_per_image(placed):
        if regularization is not None and (each.concept.role == "regularization") is not regularization:
            continue
        entry = folders.setdefault(each.image.source, {"n_repeats": each.repeats, "img_count": 0})
        entry["img_count"] += 1
    return folders


def tags_of(placed: Iterable[Placed]) -> dict[str, dict[str, int]]:
    """Return {folder: {tag: number of images}}; tags are the parts, in lower case, of the lines of captions that are trained: between
    the folder's separators, in sd-scripts' way between commas."""
    by_folder: defaultdict[str, Counter[str]] = defaultdict(Counter)
    for each in _one_per_image(placed):
        captions, lines = each.concept.captions, lines_of(each.caption.text)
        trained = lines[:1] if captions.caption_lines == "first" and not captions.enable_wildcard else lines
        as_sd_scripts = captions.compatibility == "kohya"
        between = "," if as_sd_scripts else captions.caption_separator
        for mark in (captions.keep_tokens_separator, captions.secondary_separator):
            if mark and not as_sd_scripts:
                trained = [line.replace(mark, between) for line in trained]
        tags = {tag.strip().lower() for line in trained for tag in line.split(between)}
        by_folder[each.image.source].update(tags - {""})
    return {folder: dict(counts) for folder, counts in by_folder.items()}


def buckets_of(views: Sequence[Placed]) -> dict[str, Any]:
    """Return ss_bucket_info: {"buckets": {number: {"resolution": [width, height], "count": views}}, "mean_img_ar_error": mean difference of
    the aspect ratios of bucket and image}.
    views: images of one epoch, an image once for each repeat"""
    counts = Counter(each.placement.bucket for each in views)
    once = {each.key: each for each in views}.values()
    errors = [
        abs(each.placement.bucket[0] / each.placement.bucket[1] - each.image.width / each.image.height) for each in once
    ]
    buckets = {
        str(number): {"resolution": list(size), "count": counts[size]} for number, size in enumerate(sorted(counts))
    }
    return {"buckets": buckets, "mean_img_ar_error": sum(errors) / max(len(errors), 1)}


def datasets_of(placed: Sequence[Placed], views: Sequence[Placed]) -> list[dict[str, Any]]:
    """Return ss_datasets: an entry for each group of folders that share batches and resolution; [] where no folder overrides settings.
    views: images of one epoch, an image once for each repeat"""
    concepts = {each.concept.number: each.concept for each in placed}
    if not any(overridden_settings(concept.source) for concept in concepts.values()):
        return []
    groups: defaultdict[tuple, list[Concept]] = defaultdict(list)
    for concept in concepts.values():
        groups[concept.batch_group, concept.images.resolution].append(concept)
    return [_dataset_entry(group, placed, views) for group in groups.values()]


def _dataset_entry(group: Sequence[Concept], placed: Sequence[Placed], epoch_views: Sequence[Placed]) -> dict[str, Any]:
    """Return the entry of ss_datasets for a group of folders that share batches and resolution, with sd-scripts' keys.

    group         the folders
    placed        all training images
    epoch_views   images of one epoch, an image once for each repeat
    returns       {"is_dreambooth", "batch_size_per_device", "num_train_images", "num_reg_images", "resolution": [width, height],
                  "enable_bucket", "min_bucket_reso", "max_bucket_reso", "tag_frequency", "bucket_info", "subsets": entries of the folders}
    """
    numbers = {concept.number for concept in group}
    members = [each for each in placed if each.concept.number in numbers]
    views = [each for each in epoch_views if each.concept.number in numbers]
    regularization = sum(each.concept.role == "regularization" for each in views)
    images = group[0].images
    size = images.resolution
    return {
        "is_dreambooth": all(concept.source.metadata_file is None for concept in group),
        "batch_size_per_device": images.train_batch_size,
        "num_train_images": len(views) - regularization,
        "num_reg_images": regularization,
        "resolution": list(size) if isinstance(size, tuple) else [size, size],
        "enable_bucket": images.enable_bucket,
        "min_bucket_reso": images.min_bucket_reso,
        "max_bucket_reso": images.max_bucket_reso,
        "tag_frequency": tags_of(members),
        "bucket_info": buckets_of(views),
        "subsets": [_subset_entry(concept, members) for concept in group],
    }


def _subset_entry(concept: Concept, placed: Sequence[Placed]) -> dict[str, Any]:
    """Return the entry of "subsets" in ss_datasets for one folder, with sd-scripts' keys: "img_count", "num_repeats", "image_dir",
    "class_tokens", "is_reg", and the settings in AUGMENTATION and CAPTIONS.
    placed: images of its group of folders"""
    members = [each for each in _one_per_image(placed) if each.concept.number == concept.number]
    return {
        "img_count": len(members),
        "num_repeats": members[0].repeats if members else 1,
        **{name: getattr(concept.images, name) for name in AUGMENTATION},
        **{name: getattr(concept.captions, name) for name in CAPTIONS},
        "image_dir": members[0].image.source if members else "",
        "class_tokens": members[0].image.class_tokens if members else None,
        "is_reg": concept.role == "regularization",
    }


def _one_per_image(placed: Iterable[Placed]) -> list[Placed]:
    """Return each image once: placed at the first of its resolutions."""
    return [each for each in placed if not each.variant]
