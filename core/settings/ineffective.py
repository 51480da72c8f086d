"""Settings that change nothing as the others stand, each with the reason: the page greys them, the command line says so."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from core.record.problems import Problem
from core.settings.base import declared
from core.settings.concepts import PLAIN, Concept, concepts_of
from core.settings.job import TrainJob

Reasons = Iterator[tuple[str, str]]


def ineffective(job: TrainJob) -> dict[str, str]:
    """{dotted path: reason}."""
    folders = concepts_of(job) or [PLAIN]
    reasons: dict[str, str] = {}
    for part in (_schedule_and_network, _samples):
        reasons |= dict(part(job))
    for part_of_folders in (_sizes, _pictures, _captions):
        reasons |= dict(part_of_folders(job, folders))
    return reasons


def value_of(job, path: str):
    """The value at a dotted path."""
    group, name = path.split(".", 1)
    return getattr(getattr(job, group), name)


def set_without_effect(job: TrainJob) -> list[Problem]:
    """Advice for those of them that were set to something: the command line has no fields to grey."""
    defaults = {entry.path: entry.default for entry in declared(TrainJob)}
    return [
        Problem(f"{path} has no effect", path, reason, "advice")
        for path, reason in ineffective(job).items()
        if value_of(job, path) != defaults[path]
    ]


def _schedule_and_network(job: TrainJob) -> Reasons:
    network, rates = job.network, job.optimizer
    if job.schedule.max_train_steps is not None:
        yield "schedule.max_train_epochs", "ignored: steps are set"
    if network.conv_rank is None:
        yield "network.conv_alpha", "ignored: 3x3 convolutions are not trained"
    if not network.train_text_encoder:
        yield "optimizer.text_encoder_lr", "ignored: the text encoder is not trained"
    if not network.train_unet:
        yield "optimizer.unet_lr", "ignored: the U-Net is not trained"
        yield "network.conv_rank", "ignored: the U-Net is not trained"
    own = [(network.train_unet, rates.unet_lr), (network.train_text_encoder, rates.text_encoder_lr)]
    if any(trained for trained, _ in own) and all(rate is not None for trained, rate in own if trained):
        yield "optimizer.learning_rate", "ignored: every part has a rate of its own"
    if network.train_text_encoder and rates.text_encoder_lr != 0:
        yield "memory.text_cache_bytes", "ignored: the text encoder is trained, so no text is kept"


def _samples(job: TrainJob) -> Reasons:
    if not job.samples.sample_prompts:
        for entry in declared(TrainJob):
            if entry.group == "samples" and entry.name != "sample_prompts":
                yield entry.path, "ignored: there are no sample prompts"


# ---- the dataset: what holds for one folder may not for another, so a setting has an effect where any folder uses it


def _nowhere(folders: list[Concept], uses: Callable[[Concept], object]) -> bool:
    return not any(uses(folder) for folder in folders)


def _sizes(job: TrainJob, folders: list[Concept]) -> Reasons:
    if _nowhere(folders, lambda each: each.pictures.enable_bucket):
        for name in ("min_bucket_reso", "max_bucket_reso", "bucket_reso_steps", "bucket_no_upscale"):
            yield f"dataset.{name}", "ignored: picture shapes are not kept"
    elif _nowhere(folders, lambda each: each.pictures.enable_bucket and not each.pictures.bucket_no_upscale):
        for name in ("min_bucket_reso", "max_bucket_reso"):
            yield f"dataset.{name}", "ignored: pictures are never enlarged"
    if _nowhere(folders, lambda each: not each.pictures.enable_bucket):
        yield "dataset.face_crop_aug_range", "ignored: picture shapes are kept"
    if _nowhere(folders, lambda each: each.pictures.train_batch_size > 1):
        yield "dataset.short_batches", "ignored: a batch is one picture"
    yield "dataset.crop_conditioning", "ignored: only SDXL is told the crop"


def _pictures(job: TrainJob, folders: list[Concept]) -> Reasons:
    if job.dataset.dataset_class:
        for name in ("folder", "sources", "reg_data_dir"):
            yield f"dataset.{name}", "ignored: a dataset class lists the pictures"
    if _nowhere(folders, lambda each: each.role == "regularisation"):
        for name in ("prior_loss_weight", "reg_balance"):
            yield f"dataset.{name}", "ignored: there are no regularisation pictures"
    if _nowhere(folders, lambda each: each.pictures.conditioning_data_dir):
        yield "dataset.masked_loss", "ignored: no mask folder is set"
    elif _nowhere(folders, lambda each: each.pictures.masked_loss):
        yield "dataset.conditioning_data_dir", "ignored: masks are not used"
    if _nowhere(folders, lambda each: each.pictures.masked_loss or each.pictures.alpha_mask):
        yield "noise.mask_mean", "ignored: there are no masks"
    if _nowhere(folders, lambda each: each.validation.validation_split > 0):
        yield "validation.validation_seed", "ignored: no share is held out"
    if job.memory.cache_latents == "off":
        yield "memory.npz_caches", "ignored: latents are not cached"


def _captions(job: TrainJob, folders: list[Concept]) -> Reasons:
    def changes_tags(each: Concept) -> bool:
        own = each.captions
        return own.shuffle_caption or own.caption_tag_dropout_rate > 0 or own.token_warmup_step > 0

    if _nowhere(folders, changes_tags):
        yield "captions.keep_tokens", "ignored: tags are neither shuffled nor dropped"
        if _nowhere(folders, lambda each: each.captions.sidecars == "joined" or each.captions.secondary_separator):
            yield "captions.caption_separator", "ignored: tags are neither shuffled nor dropped"
    if _nowhere(folders, lambda each: each.captions.token_warmup_step > 0):
        yield "captions.token_warmup_min", "ignored: there is no tag warm-up"
    if _nowhere(folders, lambda each: each.captions.sidecars == "drawn"):
        yield "captions.sentence_share", "ignored: no caption file is drawn"
