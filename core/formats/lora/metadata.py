"""The metadata of a LoRA file: sd-scripts' keys (`ss_*`) and Stability's model spec (`modelspec.*`).

A1111, Forge, ComfyUI managers and kohya tools read these; every value is a string.
"""

import json
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from core.formats.model_spec import SaveFacts, model_spec
from core.record.bounded_json import json_or_none, read_json_object
from core.record.problems import ProblemsError
from core.settings.base import declared, value_of
from core.settings.job import TrainJob
from core.settings.model import traits_of
from core.settings.optimization.optimizer import optimizer_sentence, relative_steps

MOST_WORDS, MOST_TAGS, LONGEST = 12, 8, 80  # trigger words, frequent tags among them, characters of one
IMAGES_PER_TAG, MOST_TAG_WORDS = 4, 4  # a frequent tag is on one of so many images of its folder, and has few words


def version_metadata(family: str | None, prediction: str | None = None) -> dict[str, str]:
    """Return `ss_v2` and, for a known family, `ss_base_model_version` as sd-scripts writes them.

    The version of a v-prediction model ends in "_v", except for SDXL.
    """
    version = traits_of(family).kohya_version or family or ""
    mark = "_v" if prediction == "v" and not version.startswith("sdxl") else ""
    v2 = {"ss_v2": str(version.startswith("sd_v2"))}
    return v2 | ({"ss_base_model_version": version + mark} if version else {})


def lora_metadata(job: TrainJob, facts: SaveFacts) -> dict[str, str]:
    """Return all metadata of a job's LoRA file (`ss_*` and `modelspec.*`), without the hashes of its weights."""
    saved_at = time.time() if facts.saved_at is None else facts.saved_at
    values: dict[str, Any] = _run_values(job, facts, saved_at) | _setting_values(job, facts) | _model_values(job, facts)
    values |= _dataset_values(job, facts)
    values |= {entry.recorded: value_of(job, entry.path) for entry in declared(TrainJob) if entry.recorded}
    return _strings(values) | model_spec(job, facts, "lora", saved_at) | dict(facts.extra)


def _run_values(job: TrainJob, facts: SaveFacts, saved_at: float) -> dict[str, Any]:
    """Return the `ss_*` values about the run: session id, start and end time, counts of images, batches, epochs and steps, seed.
    saved_at: Unix seconds"""
    return {
        "ss_session_id": facts.session_id,
        "ss_training_started_at": float(facts.started_at),
        "ss_training_finished_at": float(saved_at),
        "ss_num_train_images": facts.num_train_images,
        "ss_num_reg_images": facts.num_reg_images,
        "ss_num_batches_per_epoch": facts.num_batches_per_epoch,
        "ss_num_epochs": facts.num_epochs,
        "ss_epoch": facts.epoch,
        "ss_steps": facts.step,
        "ss_max_train_steps": facts.max_train_steps,
        "ss_seed": job.schedule.seed if facts.seed is None else facts.seed,
        "ss_sd_scripts_commit_hash": "(unknown)",  # its placeholder
    }


def _setting_values(job: TrainJob, facts: SaveFacts) -> dict[str, Any]:
    """Return the `ss_*` values of optimizer, precision and network settings."""
    network = job.network
    values = _rates(job) | {
        "ss_optimizer": optimizer_sentence(job.optimizer),
        "ss_mixed_precision": facts.mixed_precision,
        "ss_full_fp16": job.memory.full_precision == "fp16",
        "ss_cache_latents": job.memory.cache_latents != "off",
        "ss_network_module": facts.network_module,
        "ss_network_dim": network.rank,
        "ss_network_alpha": float(network.alpha or network.rank),
        "ss_network_dropout": network.network_dropout or None,
    }
    return values | ({"ss_network_args": json.dumps(facts.network_args)} if facts.network_args else {})


def _rates(job: TrainJob) -> dict[str, Any]:
    """Return ss_learning_rate, ss_unet_lr, ss_text_encoder_lr and ss_lr_scheduler. AdaFactor's relative steps leave the rates None, as in
    sd-scripts."""
    optimizer, schedule = job.optimizer, job.schedule
    if relative_steps(optimizer):
        none = dict.fromkeys(("ss_learning_rate", "ss_unet_lr", "ss_text_encoder_lr"))
        return none | {"ss_lr_scheduler": f"adafactor:{optimizer.learning_rate}"}
    return {
        "ss_learning_rate": optimizer.learning_rate,
        "ss_unet_lr": optimizer.unet_lr,
        "ss_text_encoder_lr": optimizer.text_encoder_lr,
        "ss_lr_scheduler": schedule.lr_scheduler_type or schedule.lr_scheduler,
    }


def _model_values(job: TrainJob, facts: SaveFacts) -> dict[str, Any]:
    """Return the `ss_*` values about the base model and VAE."""
    values: dict[str, Any] = {
        **version_metadata(facts.family, facts.prediction),
        "ss_max_token_length": None if job.captions.max_token_length == 75 else job.captions.max_token_length,
        "ss_sd_model_name": facts.base_model_name,
    }
    hashes = {
        "ss_sd_model_hash": facts.base_model_hash,
        "ss_new_sd_model_hash": facts.base_model_sha256,
        "ss_vae_name": facts.vae_name,
        "ss_vae_hash": facts.vae_hash,
        "ss_new_vae_hash": facts.vae_sha256,
    }
    return values | {key: value for key, value in hashes.items() if value is not None}


def _dataset_values(job: TrainJob, facts: SaveFacts) -> dict[str, Any]:
    """Return the `ss_*` values about the dataset, tables as JSON text."""
    dataset = job.dataset
    batch = dataset.train_batch_size
    total = (
        batch * job.schedule.gradient_accumulation_steps if facts.total_batch_size is None else facts.total_batch_size
    )
    datasets = {"ss_datasets": json.dumps(facts.datasets, ensure_ascii=False)} if facts.datasets else {}
    return datasets | {
        "ss_batch_size_per_device": batch,
        "ss_total_batch_size": total,
        "ss_resolution": tuple(facts.resolution),
        "ss_resize_interpolation": None if dataset.resize_interpolation == "auto" else dataset.resize_interpolation,
        "ss_dataset_dirs": _json(facts.dataset_dirs),
        "ss_reg_dataset_dirs": _json(facts.reg_dataset_dirs),
        "ss_tag_frequency": _json(facts.tag_frequency),
        "ss_bucket_info": _json(facts.bucket_info),
    }


def _json(value: Mapping[str, Any]) -> str:
    """Return `value` as JSON text with non-ASCII characters unescaped."""
    return json.dumps(value, ensure_ascii=False)


def _strings(values: Mapping[str, Any]) -> dict[str, str]:
    """Convert each value with `str`, as sd-scripts does: "True", "None", "0.0001"."""
    return {key: str(value) for key, value in values.items()}


# -- trigger words


def trigger_words(path: Path, metadata: Mapping[str, str]) -> tuple[str, ...]:
    """Return the trigger words of a LoRA file, then its most frequent tags: at most MOST_WORDS of up to LONGEST characters."""
    triggers = dict.fromkeys([*stated_triggers(path, metadata), *frequent_tags(metadata)])
    return tuple(trigger for trigger in triggers if 0 < len(trigger) <= LONGEST)[:MOST_WORDS]


def stated_triggers(path: Path, metadata: Mapping[str, str]) -> Iterator[str]:
    """Yield the trigger phrases and usage hints in the modelspec metadata, then the trigger word of the run that saved the file.

    An item may be empty.
    """
    for name in ("modelspec.trigger_phrase", "modelspec.usage_hint"):
        yield from (trigger.strip() for trigger in metadata.get(name, "")[:2000].split(","))
    yield from _run_trigger(path)


def _run_trigger(path: Path) -> Iterator[str]:
    """Yield the trigger word in the run's job.json, if the file is still in the run's checkpoints folder."""
    if path.parent.name == "checkpoints":
        with suppress(ProblemsError, OSError):
            captions = read_json_object(path.parent.parent / "job.json").get("captions")
            if isinstance(captions, dict) and isinstance(captions.get("trigger_word"), str):
                yield captions["trigger_word"].strip()


def frequent_tags(metadata: Mapping[str, str]) -> list[str]:
    """Return up to MOST_TAGS tags of `ss_tag_frequency`, most frequent first, counted over all folders.

    Skips tags that fewer than one in IMAGES_PER_TAG images of their folder have, and tags of more than MOST_TAG_WORDS words, since
    sd-scripts counts a sentence without commas as one tag.
    """
    counts: Counter[str] = Counter()
    folders, sizes = _objects_by_folder(metadata, "ss_tag_frequency"), _objects_by_folder(metadata, "ss_dataset_dirs")
    for name, tags in folders.items():
        times = {tag: number for tag, number in tags.items() if isinstance(number, int)}
        images = sizes.get(name, {}).get("img_count")
        images = images if isinstance(images, int) else max(times.values(), default=0)
        for tag, number in times.items():
            if number > 1 and number * IMAGES_PER_TAG >= images and len(tag.split()) <= MOST_TAG_WORDS:
                counts[tag.strip()] += number
    return [tag for tag, _ in counts.most_common(MOST_TAGS)]


def _objects_by_folder(metadata: Mapping[str, str], key: str) -> dict[str, dict[str, Any]]:
    """Return the objects in the JSON value of `key`, {folder name: object}; {} if it is missing or damaged."""
    return {name: each for name, each in object_of(metadata, key).items() if isinstance(each, dict)}


def object_of(metadata: Mapping[str, str], key: str) -> dict[str, Any]:
    """Return the JSON object in the metadata key `key`; {} if it is missing or damaged."""
    value = json_or_none(metadata.get(key) or "{}")
    return value if isinstance(value, dict) else {}
