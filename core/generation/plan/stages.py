"""The stages of a generation (first pass, hires fix, refiner), and how they are sampled, from the settings alone."""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from math import ceil
from pathlib import Path
from random import Random

from core.diffusion.noise_levels import OF_FAMILIES
from core.diffusion.schedule import TIMESTEPS
from core.generation.plan.upscalers import upscales_latents
from core.generation.prompt.editing import Pass
from core.generation.prompt.runs import parts_of
from core.generation.prompt.states import Reading
from core.generation.sample.guidance import EMPTY, NEGATIVE, POSITIVE
from core.generation.sample.loop import Begins, Sampling, Sizes, Stage, evaluation_count, steps_of, total_steps
from core.generation.sample.noise import StartNoise
from core.settings.base import Settings
from core.settings.generation.conditioning import SizeSettings
from core.settings.job import GenerateJob
from core.settings.model import traits_of

KOHYA_SIZE_STEP = 32  # pixels; sd-scripts rounds the first stage of hires fix and initial images to multiples of it
HIRES_STEPS = 28  # of the first stage, sd-scripts' default
MAX_STRENGTH = 0.999  # A1111's highest strength
PENULTIMATE = 2  # layer of SDXL's text encoders that programs read by default
SIDES = (NEGATIVE, POSITIVE, EMPTY)


def as_sd_scripts(job: GenerateJob) -> bool:
    """Return whether the job reproduces images of sd-scripts' generator (compatibility "kohya")."""
    return job.generate.compatibility == "kohya"


def guidance_group(job: GenerateJob) -> Settings | None:
    """Return the settings group of the job's guidance kind; None for kinds without settings."""
    group: Settings | None = getattr(job, job.generate.guidance, None)
    return group


def has_regions(job: GenerateJob) -> bool:
    """Return whether the job assigns the prompts joined by AND to regions of the image."""
    return bool(job.regions.region_map) and len(parts_of(job.generate.prompt)) > 1


def stages_of(job: GenerateJob) -> list[Stage]:
    """Return the stages of one image. With a refiner, a further stage finishes the last one. job: with width and height set"""
    *before, last = _base_stages(job)
    refiner = job.refiner
    if not refiner.refiner_checkpoint:
        return [*before, last]
    scores = refiner.aesthetic_score, refiner.negative_aesthetic_score
    last = replace(last, switch_at=refiner.refiner_switch_at)
    return [*before, last, replace(last, begins="unfinished latents", scores=scores)]


def sampling_steps(job: GenerateJob) -> int:
    """Return the number of sampling steps of one image, over all stages."""
    return sum(steps_of(stage) for stage in stages_of(job))


def _base_stages(job: GenerateJob) -> list[Stage]:
    """Return the base model's stages: one, or two with hires fix."""
    settings, hires, image_settings = job.generate, job.hires, job.image_to_image
    size = settings.width or 0, settings.height or 0
    begins: Begins = "image" if image_settings.image_path else "noise"
    strength = image_settings.strength if image_settings.image_path else None
    scale = hires.highres_fix_scale
    if scale is None:
        return [_first_stage(job, size, settings.steps, begins, strength, 1.0)]
    small, large = hires_sizes(size, scale)
    if strength is not None and hires.highres_fix_strength is not None:
        strength = hires.highres_fix_strength
    second_begins: Begins = "previous latents" if upscales_latents(job) else "previous image"
    first_scale, second_scale = (scale, 1.0) if scale < 1 else (1.0, scale)
    steps = hires.highres_fix_steps or (HIRES_STEPS if as_sd_scripts(job) else settings.steps)
    first = _first_stage(job, small, steps, begins, strength, first_scale)
    return [
        first,
        Stage(
            large, *_second_steps(job), second_begins, seed_offset=1, sizes=_size_conditioning(job.sizes, second_scale)
        ),
    ]


def _first_stage(
    job: GenerateJob, size: tuple[int, int], steps: int, begins: Begins, strength: float | None, scale: float
) -> Stage:
    """Return the first stage.

    strength   denoising strength 0..1; None: it starts from noise
    scale      factor for the SDXL size conditioning
    """
    image_settings, run = job.image_to_image, _steps_run(job, steps, strength)
    repaints = bool(image_settings.mask_path) and image_settings.masked_content == "original"
    pure_noise = strength == 1 and repaints and not as_sd_scripts(job)
    return Stage(size, steps, run, begins, sizes=_size_conditioning(job.sizes, scale), from_pure_noise=pure_noise)


def _steps_run(job: GenerateJob, steps: int, strength: float | None) -> int | None:
    """Return the number of steps that run from an initial image: steps * strength in sd-scripts, one more in A1111.
    strength: 0 to 1; None: no initial image, and the result is None"""
    if not strength:
        return None if strength is None else 0
    return int(steps * strength) if as_sd_scripts(job) else int(steps * min(strength, MAX_STRENGTH)) + 1


def detail_size(job: GenerateJob) -> tuple[int, int]:
    """Return (width, height) in pixels at which the detailer generates a detection. job: with width and height set"""
    return (
        job.detailer.ad_inpaint_width or job.generate.width or 0,
        job.detailer.ad_inpaint_height or job.generate.height or 0,
    )


def least_strength(steps: int) -> float:
    """Return the lowest denoising strength, in thousandths, with which at least one of `steps` steps (at most 1000) runs."""
    return ceil(1000 / steps) / 1000


def _second_steps(job: GenerateJob) -> tuple[int, int | None]:
    """Return (steps of the second stage's schedule, number of them that run; None: all).

    As in A1111, all steps in the settings run: the schedule has steps / strength, of which the strength skips the first.
    """
    steps, strength = job.hires.hires_steps or job.generate.steps, job.image_to_image.strength
    lengthens = strength and not as_sd_scripts(job)
    total = int(min(steps / min(strength, MAX_STRENGTH), 2 * TIMESTEPS)) if strength and lengthens else steps
    fits = steps < total <= TIMESTEPS
    return (total, steps) if fits else (min(total, TIMESTEPS), _steps_run(job, min(total, TIMESTEPS), strength))


def passes_of(job: GenerateJob) -> list[Pass | None]:
    """Return the `Pass` of each stage for prompt editing; None where edits are plain text. A refiner shares the base model's pass."""
    stages = stages_of(job)
    if as_sd_scripts(job) or not job.generate.prompt_weights:
        return [None] * len(stages)
    passes: list[Pass | None] = []
    for stage in stages:
        before = passes[-1] if passes else None
        passes.append(before if stage.refines else Pass(total_steps(stage), before.steps if before else None))
    return passes


def only_upscales(job: GenerateJob) -> bool:
    """Return whether the job only upscales an initial image (all strengths 0), which needs no model."""
    hires, image = job.hires, job.image_to_image
    first = image.strength if hires.highres_fix_strength is None else hires.highres_fix_strength
    alone = not (image.mask_path or job.refiner.refiner_checkpoint or upscales_latents(job) or job.detailer.used)
    return bool(image.image_path and alone and (hires.highres_fix_scale or 0) > 1 and first == image.strength == 0)


def hires_sizes(size: tuple[int, int], scale: float) -> tuple[tuple[int, int], tuple[int, int]]:
    """Return ((width, height) of the first stage, (width, height) of the second) for hires fix.
    scale: below 1 the first stage is smaller than `size` (sd-scripts), above 1 the second is larger (A1111)"""
    width, height = size
    if scale < 1:
        return (_scaled(width, scale, KOHYA_SIZE_STEP), _scaled(height, scale, KOHYA_SIZE_STEP)), size
    return size, (_scaled(width, scale, 8), _scaled(height, scale, 8))


def _scaled(side: int, scale: float, step: int) -> int:
    """Return a side in pixels times `scale`, rounded, then rounded down to a multiple of `step`."""
    return max(int(side * scale + 0.5) // step, 1) * step


def _size_conditioning(settings: SizeSettings, scale: float) -> Mapping[str, Sizes]:
    """Return {guidance side: SDXL size conditioning} if any value is set, else {}. 0 stands for the image's value (`Stage.sizes_of`).
    scale: factor for sizes and crop"""
    if settings == SizeSettings():
        return {}

    def scaled(number: int | None) -> int:
        return int((number or 0) * scale + 0.5)

    height, width = scaled(settings.original_height), scaled(settings.original_width)
    negative = scaled(settings.original_height_negative) or height, scaled(settings.original_width_negative) or width
    crop = scaled(settings.crop_top), scaled(settings.crop_left)
    return {side: (*((height, width) if side == POSITIVE else negative), *crop, 0, 0) for side in SIDES}


def sampling_of(job: GenerateJob, prediction: str, family_name: str = "") -> Sampling:
    """Return how a job's images are sampled.

    prediction    the model's ("epsilon", "v"), used if the setting is "auto"
    family_name   the model's family, for schedules that differ between families
    """
    settings, noise, kohya = job.generate, job.start_noise, as_sd_scripts(job)
    return Sampling(
        sampler=settings.sampler,
        guidance_scale=settings.guidance_scale or 0.0,
        negative_scale=settings.negative_scale,
        guidance_rescale=settings.guidance_rescale,
        guidance_kind=settings.guidance,
        guidance_settings=guidance_group(job),
        guidance_range=(settings.guidance_start, settings.guidance_end),
        prediction=prediction if job.model.prediction == "auto" else job.model.prediction,
        zero_terminal_snr=settings.zero_terminal_snr == "on",
        schedule=OF_FAMILIES.get((settings.schedule_type, family_name), settings.schedule_type),
        program="generator" if kohya else "",
        one_level_up=kohya and not settings.force_scheduler_zero_steps_offset,
        start_noise=StartNoise(
            pyramid_prob=noise.pyramid_noise_prob or 0.0,
            pyramid_discount=noise.pyramid_noise_discount_range,
            offset_prob=noise.noise_offset_prob or 0.0,
            offset=noise.noise_offset_range,
            chance=Random,
        ),
        device_noise=noise.noise_source == "device",
    )


def reading_of(job: GenerateJob, family_name: str) -> Reading:
    """Return how the job's prompts are encoded for models of a family."""
    settings, kohya, skip = job.generate, as_sd_scripts(job), job.model.clip_skip
    # Other programs use 1 as the default, for SDXL too; sd-scripts' generator takes it literally.
    layer = skip if kohya or skip is None else max(skip, PENULTIMATE)
    return Reading(
        clip_skip=skip,
        weighted=settings.prompt_weights,
        break_anywhere=kohya,
        normalize=settings.emb_normalize_mode,
        multiples=settings.max_embeddings_multiples or (1 if kohya else None),
        as_trained=settings.long_prompts == "trained",
        layer=layer if traits_of(family_name).penultimate else None,
    )


def described(job: GenerateJob) -> Iterator[str]:
    """Yield a line for each stage of an image: size, starting point and steps."""
    begin = {
        "noise": "from noise",
        "image": "from the initial image",
        "previous image": "from the image before, enlarged",
        "previous latents": "from the latents before, enlarged",
        "unfinished latents": f"finished by {Path(job.refiner.refiner_checkpoint or '').name}",
    }
    for stage in stages_of(job):
        width, height = stage.size
        yield f"{width} x {height} {begin[stage.begins]}: {_steps_prefix(job, stage)}{stage.steps} steps"


def _steps_prefix(job: GenerateJob, stage: Stage) -> str:
    """Return text such as "16 of " if the stage does not run all steps of its schedule, else ""."""
    if stage.switch_at is None:
        return "" if stage.run in (None, stage.steps) else f"{stage.run} of "
    sampling = sampling_of(job, "epsilon")
    before = replace(stage, begins="noise")
    run = total_steps(stage)
    whole = evaluation_count(sampling, replace(before, switch_at=None))
    base = round(run * evaluation_count(sampling, before) / whole) if whole else 0
    return f"{run - base if stage.refines else base} of "
