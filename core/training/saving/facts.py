"""The facts of a run that go into its files' metadata."""

from __future__ import annotations

import base64
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from core.families.components import Components
from core.formats.hashes import HashMemo, model_hashes
from core.formats.lora.metadata import RunFacts, lora_metadata
from core.formats.model_spec import model_spec
from core.networks.kinds import kind_named
from core.record.draws import address
from core.record.journal import read_lines
from core.record.problems import ProblemsError
from core.record.regular import read_regular
from core.record.workspace import resolve_path
from core.settings.dataset.concepts import Concept, own_settings, training_resolution
from core.settings.methods import spec_of

if TYPE_CHECKING:
    from core.dataset.buckets.batches import Placed
    from core.dataset.buckets.plan import Plan
    from core.methods import Method
    from core.record.run_folder import RunFolder
    from core.settings.job import TrainJob

MINIMUM = {
    "ss_v2",
    "ss_base_model_version",
    "ss_network_module",
    "ss_network_dim",
    "ss_network_alpha",
    "ss_network_args",
}  # sd-scripts' no_metadata
THUMBNAILS = {".png": "png", ".jpg": "jpeg", ".jpeg": "jpeg", ".webp": "webp", ".gif": "gif"}
THUMBNAIL_BYTES = 1 << 20


@dataclass
class FileFacts:
    """What a run writes into its files about itself. vae: one of its own; held_out: validation images."""

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
        """ss_* and modelspec metadata of a file saved after so many steps."""
        job, plan, source, vae = self.job, self.plan, self.components.origin, self.vae
        # Without the token: "stop and save" has set it by now, and a hash that gave up here would lose the save.
        old_hash, sha256 = model_hashes(source, self.memo)
        vae_hash, vae_sha256 = model_hashes(vae, self.memo) if vae else (None, None)
        placed, kind = plan.placed, kind_named(job.network.kind)
        shown = [each for each, _ in plan.epochs.views_of(0)]
        regularization = sum(each.concept.role == "regularization" for each in shown)
        facts = RunFacts(
            session_id=address(0, "session", self.folder.name) % 2**32,
            started_at=_started(self.folder),
            family=self.components.family,
            prediction=self.prediction,
            mixed_precision=self.precision,
            seed=plan.seed,
            num_train_images=len(shown) - regularization,
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
            bucket_info=buckets_of(shown),
            datasets=datasets_of(placed, shown),
            network_module=kind.module_name,
            network_args=kind.network_args(job),
            extra=self.method.metadata() | spoken_metadata(job, placed) | _validation(job, self.held_out),
        )
        saved = spec_of(job).saves
        if saved == "embedding":
            return model_spec(job, facts, saved) | _schedule(job)
        if saved != "lora":  # as sd-scripts: only files of networks say how they were trained
            return model_spec(job, facts, saved if self.method.extension else "folder")
        found = lora_metadata(job, facts)
        return shortened(found) | _schedule(job) if job.saving.no_metadata else found


def _schedule(job: TrainJob) -> dict[str, str]:
    """What decides how to sample with the file: written also to files without other training metadata."""
    return {"ss_zero_terminal_snr": "True"} if job.noise.zero_terminal_snr else {}


def shortened(metadata: Mapping[str, str]) -> dict[str, str]:
    """Without settings and images (no_metadata): only what other programs need to load the file."""
    return {name: text for name, text in metadata.items() if name in MINIMUM or name.startswith("modelspec.")}


def spoken_metadata(job: TrainJob, placed: Sequence[Placed]) -> dict[str, str]:
    """The user's description of the file, under Stability's names; empty fields are left out."""
    own = job.saving
    facts = {
        "title": own.metadata_title,
        "author": own.metadata_author,
        "description": own.metadata_description,
        "license": own.metadata_license,
        "tags": own.metadata_tags,
        "usage_hint": own.metadata_usage_hint,
        "trigger_phrase": own.metadata_trigger_phrase or trigger_words(placed),
        "merged_from": own.metadata_merged_from,
        "preprocessor": own.metadata_preprocessor,
        "is_negative_embedding": "true" if own.metadata_is_negative_embedding else None,
        "thumbnail": thumbnail_url(own.metadata_thumbnail) if own.metadata_thumbnail else None,
    }
    return {f"modelspec.{name}": text for name, text in facts.items() if text}


def trigger_words(placed: Sequence[Placed]) -> str:
    """The trigger phrases of the training: the trigger word, and identifier and class of each folder."""
    words = []
    for concept in {id(each.concept): each.concept for each in placed}.values():
        if concept.role != "train":
            continue
        source = concept.source
        both = " ".join(word for word in (source.identifier, source.class_word if source.identifier else None) if word)
        words += [word.strip() for word in (concept.captions.trigger_word or "", both) if word.strip()]
    return ", ".join(dict.fromkeys(words))


def _validation(job: TrainJob, held_out: int) -> dict[str, str]:
    """As sd-scripts 0.10 writes it."""
    own = job.validation
    return {
        "ss_num_validation_images": str(held_out),
        "ss_validation_seed": str(own.validation_seed),
        "ss_validation_split": str(own.validation_split),
        "ss_max_validation_steps": str(own.max_validation_steps),
        "ss_validate_every_n_epochs": str(own.validate_every_n_epochs),
        "ss_validate_every_n_steps": str(own.validate_every_n_steps),
    }


def thumbnail_url(path: str) -> str:
    """An image as a data URL. Raises ProblemsError with what is wrong with it."""
    place, fix = resolve_path(path), "choose a .png, .jpg or .webp of at most 1 MB"
    kind = THUMBNAILS.get(place.suffix.lower())
    if kind is None:
        raise ProblemsError.one("The thumbnail is not a supported image", path, fix, code="metadata.bad-thumbnail")
    data = read_regular(place, THUMBNAIL_BYTES)
    return f"data:image/{kind};base64,{base64.b64encode(data).decode('ascii')}"


def _started(folder: RunFolder) -> float:
    """When the run first started, also after it was resumed."""
    first = next(read_lines(folder.journal_file), None)
    return float(first["time"]) if first else 0.0


def folders_of(placed: Iterable[Placed], *, regularization: bool | None = None) -> dict[str, Any]:
    """{folder: {"n_repeats", "img_count"}} of regularization folders, of the others, or (None) of all."""
    found: dict[str, Any] = {}
    for each in _first_sizes(placed):
        if regularization is not None and (each.concept.role == "regularization") is not regularization:
            continue
        entry = found.setdefault(each.image.source, {"n_repeats": each.repeats, "img_count": 0})
        entry["img_count"] += 1
    return found


def tags_of(placed: Iterable[Placed]) -> dict[str, dict[str, int]]:
    """{folder: {tag: images}}: captions cut at commas, in lower case, each tag once an image."""
    found: defaultdict[str, Counter[str]] = defaultdict(Counter)
    for each in _first_sizes(placed):
        tags = {tag.strip().lower() for tag in each.caption.text.split(",")}
        found[each.image.source].update(tags - {""})
    return {folder: dict(counts) for folder, counts in found.items()}


def buckets_of(shown: Sequence[Placed]) -> dict[str, Any]:
    """Buckets with their views in an epoch, and the mean difference of aspect ratios over the images."""
    counts = Counter(each.placement.bucket for each in shown)
    once = {each.key: each for each in shown}.values()
    errors = [
        abs(each.placement.bucket[0] / each.placement.bucket[1] - each.image.width / each.image.height) for each in once
    ]
    buckets = {
        str(number): {"resolution": list(size), "count": counts[size]} for number, size in enumerate(sorted(counts))
    }
    return {"buckets": buckets, "mean_img_ar_error": sum(errors) / max(len(errors), 1)}


def datasets_of(placed: Sequence[Placed], shown: Sequence[Placed]) -> list[dict[str, Any]]:
    """One entry for each set of folders that share batches and sizes; none where no folder has settings of its own."""
    concepts = {each.concept.number: each.concept for each in placed}
    if not any(own_settings(concept.source) for concept in concepts.values()):
        return []
    groups: defaultdict[tuple, list[Concept]] = defaultdict(list)
    for concept in concepts.values():
        groups[concept.batch_group, concept.images.resolution].append(concept)
    return [_dataset(group, placed, shown) for group in groups.values()]


def _dataset(group: Sequence[Concept], placed: Sequence[Placed], shown: Sequence[Placed]) -> dict[str, Any]:
    numbers = {concept.number for concept in group}
    own = [each for each in placed if each.concept.number in numbers]
    views = [each for each in shown if each.concept.number in numbers]
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
        "tag_frequency": tags_of(own),
        "bucket_info": buckets_of(views),
        "subsets": [_subset(concept, own) for concept in group],
    }


def _subset(concept: Concept, placed: Sequence[Placed]) -> dict[str, Any]:
    own = [each for each in _first_sizes(placed) if each.concept.number == concept.number]
    captions, images = concept.captions, concept.images
    return {
        "img_count": len(own),
        "num_repeats": own[0].repeats if own else 1,
        "color_aug": images.color_aug,
        "flip_aug": images.flip_aug,
        "random_crop": images.random_crop,
        "shuffle_caption": captions.shuffle_caption,
        "keep_tokens": captions.keep_tokens,
        "keep_tokens_separator": captions.keep_tokens_separator,
        "secondary_separator": captions.secondary_separator,
        "enable_wildcard": captions.enable_wildcard,
        "caption_prefix": captions.caption_prefix,
        "caption_suffix": captions.caption_suffix,
        "caption_dropout_rate": captions.caption_dropout_rate,
        "caption_dropout_every_n_epochs": captions.caption_dropout_every_n_epochs,
        "caption_tag_dropout_rate": captions.caption_tag_dropout_rate,
        "token_warmup_min": captions.token_warmup_min,
        "token_warmup_step": captions.token_warmup_step,
        "image_dir": own[0].image.source if own else "",
        "class_tokens": own[0].image.words if own else None,
        "is_reg": concept.role == "regularization",
    }


def _first_sizes(placed: Iterable[Placed]) -> list[Placed]:
    """Each image once, however many resolutions it trains at."""
    return [each for each in placed if not each.variant]
