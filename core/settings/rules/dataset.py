"""Rules on images: resolution, augmentation, masks, regularization, caches. A setting has an effect if any dataset folder uses it."""

from collections.abc import Iterator

from core.record.problems import Problem
from core.settings.dataset.concepts import Concept, any_folder, concepts_of
from core.settings.dataset.images import ImageSettings
from core.settings.job import TrainJob
from core.settings.methods import spec_of
from core.settings.needs import ignored


def problems(job: TrainJob) -> Iterator[Problem]:
    """Yield errors and advice on resolutions, buckets, caches, control images, network multipliers and face crops."""
    yield from cache_problems(job)
    yield from _size_problems(job)
    yield from _coarse_buckets(job)
    for concept in concepts_of(job):
        if concept.control and not has_partners(concept) and not concept.source.metadata_file:
            what = f"Every image needs a control image, but {concept.source.folder} has no folder of them"
            fix = "choose a folder with a control image of the same name for each image, or enter a suffix; Tools makes them of images"
            yield Problem(what, "dataset.conditioning_data_dir", fix, code="control.no-folder")
        fix = "use 1, or disable the folder"
        if concept.images.network_multiplier == 0 and job.method.traits.uses_network:
            what = f"The network multiplier of {concept.source.folder} is 0, so its images have no effect"
            yield Problem(what, "dataset.network_multiplier", fix, code="dataset.network-multiplier-zero")
        if concept.source.loss_weight == 0:
            what = f"The loss weight of {concept.source.folder} is 0, so its images have no effect"
            yield Problem(what, "dataset.sources", fix, code="dataset.loss-weight-zero")
        if concept.role == "regularization" and job.dataset.prior_loss_weight == 0:
            what = f"The prior loss weight is 0, so the images of {concept.source.folder} have no effect"
            yield Problem(what, "dataset.prior_loss_weight", fix, "warning", code="dataset.prior-weight-zero")
        faces = concept.images.face_crop_aug_range
        if faces is not None and faces[0] > faces[1]:
            what = f"The smallest face crop ({faces[0]:g}) is above the largest ({faces[1]:g}): {concept.source.folder}"
            fix = "write the smaller number first, such as 2, 4"
            yield Problem(what, "dataset.face_crop_aug_range", fix, code="dataset.face-crop-range")


def has_partners(concept: Concept) -> bool:
    """Return whether a folder or suffix of masks or control images is set for this dataset folder."""
    return bool(concept.images.conditioning_data_dir or concept.images.conditioning_suffix)


def _coarse_buckets(job: TrainJob) -> Iterator[Problem]:
    """Yield advice on the first image settings whose bucket steps are above a quarter of the shorter side of their resolution."""
    step = _size_step(job)
    for images, sides in _sizes(job):
        if images.enable_bucket and images.bucket_reso_steps * 4 > min(sides) and images.bucket_reso_steps > step:
            what = f"Bucket resolution steps of {images.bucket_reso_steps} are coarse at {min(sides)} px: images are cut or shrunk"
            fix = f"use {max(1, min(sides) // 8 // step) * step}"
            yield Problem(what, "dataset.bucket_reso_steps", fix, "advice", code="dataset.coarse-buckets")
            return


def _size_step(job: TrainJob) -> int:
    """Return the number of pixels of which image sides must be multiples for the model's family."""
    return job.model.traits.size_step if job.model.traits else 8


def _sizes(job: TrainJob) -> Iterator[tuple[ImageSettings, tuple[int, ...]]]:
    """Yield (image settings, sides of their resolution in pixels) of the dataset and then of each folder; one side if square."""
    for images in [job.dataset, *(concept.images for concept in concepts_of(job))]:
        yield images, images.resolution if isinstance(images.resolution, tuple) else (images.resolution,)


def _size_problems(job: TrainJob) -> Iterator[Problem]:
    """Yield an error for the first image sides that are not multiples of what the model's family needs."""
    step = _size_step(job)
    for images, sides in _sizes(job):
        if images.enable_bucket and images.bucket_reso_steps % step:
            what = f"Models of this family need image sides that are multiples of {step}"
            where, fix = "dataset.bucket_reso_steps", f"use {-(-images.bucket_reso_steps // step) * step}"
            yield Problem(what, where, fix, code="dataset.size-step")
            return
        if not images.enable_bucket and step != 8 and any(side % step for side in sides):
            what = f"Models of this family need image sides that are multiples of {step}"
            fix = f"use {' x '.join(str(-(-side // step) * step) for side in sides)}, or turn bucketing on"
            yield Problem(what, "dataset.resolution", fix, code="dataset.size-step")
            return


def random_augmentations(images: ImageSettings) -> list[str]:
    """Return the enabled augmentations whose result differs at each step, so that latents cannot be cached. Flips are not among them:
    both sides are cached.
    """
    random = [name for name in ("color_aug", "random_crop") if getattr(images, name)]
    if images.face_crop_aug_range is not None and not images.enable_bucket:
        random.append("face_crop_aug_range")
    return random


def cache_problems(job: TrainJob) -> list[Problem]:
    """Return an error for each random augmentation of a folder if latents are to be cached."""
    if job.memory.cache_latents in ("auto", "off"):
        return []
    return [
        Problem(
            f"'{ImageSettings.title_of(name)}' cannot be used with a latent cache ({concept.source.folder})",
            "memory.cache_latents",
            "set it to auto: images of this folder are then encoded at each step, all others once",
            code="dataset.augmentation-with-latent-cache",
        )
        for concept in concepts_of(job)
        for name in random_augmentations(concept.images)
    ]


def without_effect(job: TrainJob) -> Iterator[tuple[str, str]]:
    """Yield (dotted path, reason) for image settings that no dataset folder uses."""
    bucketed = any_folder(job, lambda each: each.images.enable_bucket)
    upscaled = any_folder(job, lambda each: each.images.enable_bucket and not each.images.bucket_no_upscale)
    control = job.method.traits.control_images
    by_model = job.method.prior == "model" and not spec_of(job).preserves_class
    regularized = by_model or any_folder(job, lambda each: each.role == "regularization")
    unmasked = any_folder(job, has_partners) and not any_folder(job, lambda each: each.images.masked_loss)
    measured = job.validation.best_checkpoint != "off" or any_folder(job, lambda each: each.holds_out)
    yield from ignored(
        (not bucketed, "dataset.min_bucket_reso max_bucket_reso bucket_reso_steps bucket_no_upscale", "aspect ratio bucketing is off"),
        (bucketed and not upscaled, "dataset.min_bucket_reso max_bucket_reso", "images are not upscaled"),
        (not any_folder(job, lambda each: each.images.more_resolutions), "dataset.resolution_choice", "there are no additional resolutions"),
        (not any_folder(job, lambda each: not each.images.enable_bucket), "dataset.face_crop_aug_range", "aspect ratio bucketing is on"),
        (not any_folder(job, lambda each: each.images.train_batch_size > 1), "dataset.short_batches", "the batch size is 1"),
        (job.dataset.dataset_class, "dataset.folder sources reg_data_dir", "a dataset class lists the images"),
        (not regularized, "dataset.prior_loss_weight", "there are no regularization images"),
        (control, "dataset.masked_loss", "the mask folder holds control images"),
        (not control and unmasked, "dataset.conditioning_data_dir conditioning_suffix", "masked loss is off"),
        (not control, "dataset.control_interpolation", "the method uses no control images"),
        (not measured, "validation.validation_seed", "there are no validation images"),
        (job.memory.cache_latents == "off", "memory.npz_caches", "latents are not cached"),
    )  # fmt: skip
