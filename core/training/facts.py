"""The facts of a run that go into its files' metadata."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from typing import TYPE_CHECKING

from core.formats.hashes import model_hashes
from core.formats.lora_metadata import lora_metadata
from core.formats.model_spec import RunFacts, model_spec
from core.networks.kinds import kind_named
from core.record.draws import address
from core.record.journal import read_lines
from core.record.problems import ProblemsError
from core.record.regular import read_regular
from core.record.workspace import resolve_path
from core.settings.concepts import training_resolution
from core.settings.methods import spec_of
from core.training.dataset_facts import buckets_of, datasets_of, folders_of, tags_of

if TYPE_CHECKING:
    from core.training.run import Run

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


def file_metadata(run: Run) -> dict[str, str]:
    """ss_* and modelspec metadata of a file saved now."""
    source, vae = run.components.origin, run.facts["vae_path"]
    # Without the token: "stop and save" has set it by now, and a hash that gave up here would lose the save.
    old_hash, sha256 = model_hashes(source, run.facts["memo"])
    vae_hash, vae_sha256 = model_hashes(vae, run.facts["memo"]) if vae else (None, None)
    placed, kind = run.plan.placed, kind_named(run.job.network.kind)
    shown = [each for each, _ in run.plan.epochs.views_of(0)]
    regularization = sum(each.concept.role == "regularization" for each in shown)
    facts = RunFacts(
        session_id=address(0, "session", run.context.folder.name) % 2**32,
        started_at=_started(run),
        family=run.components.family,
        prediction=run.objective.prediction,
        mixed_precision=run.precision.name,
        seed=run.seed,
        num_train_images=len(shown) - regularization,
        num_reg_images=regularization,
        num_batches_per_epoch=run.plan.epochs.batches_in(0),
        num_epochs=run.plan.epoch_of(run.total - 1) + 1,
        epoch=run.plan.epoch_of(max(run.state.step - 1, 0)) + 1,
        step=run.state.step,
        max_train_steps=run.total,
        resolution=training_resolution(run.job),
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
        network_args=kind.network_args(run.job),
        extra=run.method.metadata() | spoken_metadata(run) | _validation(run),
    )
    saved = spec_of(run.job).saves
    if saved == "embedding":
        return model_spec(run.job, facts, saved) | _schedule(run)
    if saved == "model":  # as sd-scripts: only files of networks say how they were trained
        return model_spec(run.job, facts, saved if run.method.extension else "folder")
    found = lora_metadata(run.job, facts)
    return shortened(found) | _schedule(run) if run.job.saving.no_metadata else found


def _schedule(run: Run) -> dict[str, str]:
    """What decides how to sample with the file: written also to files without other training metadata."""
    return {"ss_zero_terminal_snr": "True"} if run.job.noise.zero_terminal_snr else {}


def shortened(metadata: Mapping[str, str]) -> dict[str, str]:
    """Without settings and images (no_metadata): only what other programs need to load the file."""
    return {name: text for name, text in metadata.items() if name in MINIMUM or name.startswith("modelspec.")}


def spoken_metadata(run: Run) -> dict[str, str]:
    """The user's description of the file, under Stability's names; empty fields are left out."""
    own = run.job.saving
    facts = {
        "title": own.metadata_title,
        "author": own.metadata_author,
        "description": own.metadata_description,
        "license": own.metadata_license,
        "tags": own.metadata_tags,
        "usage_hint": own.metadata_usage_hint,
        "trigger_phrase": own.metadata_trigger_phrase or trigger_words(run),
        "merged_from": own.metadata_merged_from,
        "preprocessor": own.metadata_preprocessor,
        "is_negative_embedding": "true" if own.metadata_is_negative_embedding else None,
        "thumbnail": thumbnail_url(own.metadata_thumbnail) if own.metadata_thumbnail else None,
    }
    return {f"modelspec.{name}": text for name, text in facts.items() if text}


def trigger_words(run: Run) -> str:
    """The trigger phrases of the training: the trigger word, and identifier and class of each folder."""
    words = []
    for concept in {id(placed.concept): placed.concept for placed in run.plan.placed}.values():
        if concept.role != "train":
            continue
        source = concept.source
        both = " ".join(word for word in (source.identifier, source.class_word if source.identifier else None) if word)
        words += [word.strip() for word in (concept.captions.trigger_word or "", both) if word.strip()]
    return ", ".join(dict.fromkeys(words))


def _validation(run: Run) -> dict[str, str]:
    """As sd-scripts 0.10 writes it."""
    own = run.job.validation
    return {
        "ss_num_validation_images": str(len(run.facts["report"].validation)),
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


def _started(run: Run) -> float:
    """When the run first started, also after it was resumed."""
    first = next(read_lines(run.context.folder.journal_file), None)
    return float(first["time"]) if first else 0.0
