"""The facts of a run that go into its files' metadata."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from core.formats.hashes import model_hashes
from core.formats.lora_metadata import RunFacts, lora_metadata
from core.formats.model_spec import model_spec
from core.networks.kinds import kind_named
from core.record.draws import address
from core.record.journal import read_lines
from core.record.problems import ProblemsError
from core.record.regular import read_regular
from core.record.workspace import resolve_path
from core.settings.concepts import training_resolution
from core.settings.methods import spec_of
from core.training.saving.dataset_facts import buckets_of, datasets_of, folders_of, tags_of

if TYPE_CHECKING:
    from pathlib import Path

    from core.dataset.buckets.batches import Placed
    from core.dataset.buckets.plan import Plan
    from core.families.components import Components
    from core.formats.hashes import HashMemo
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
        if saved == "model":  # as sd-scripts: only files of networks say how they were trained
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
