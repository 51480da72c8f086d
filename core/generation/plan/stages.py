"""What a generation will do: its stages, and how they are sampled, from its settings alone."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from random import Random

from core.diffusion.schedule import TIMESTEPS
from core.generation.plan.upscalers import through_latents
from core.generation.prompt.editing import Pass
from core.generation.prompt.runs import parts_of
from core.generation.prompt.states import Reading
from core.generation.sample.guidance import EMPTY, NEGATIVE, POSITIVE
from core.generation.sample.loop import Begins, Sampling, Sizes, Stage, own_steps, steps_of, whole_steps
from core.generation.sample.noise import StartNoise
from core.settings.base import Settings
from core.settings.generation.conditioning import SizeSettings
from core.settings.job import GenerateJob
from core.settings.model import traits_of

FIRST_STEP = 32  # pixels: sides of the first stage of hires fix, and of initial images in sd-scripts
HIRES_STEPS = 28  # of the first stage, sd-scripts' default
FULL = 0.999  # A1111's highest strength
PENULTIMATE = 2  # layer of SDXL's text encoders, which every program reads that asks for no other
SIDES = (NEGATIVE, POSITIVE, EMPTY)


def as_generator(job: GenerateJob) -> bool:
    """Whether images are made as sd-scripts' generator does."""
    return job.generate.compatibility == "kohya"


def own_settings(job: GenerateJob) -> Settings | None:
    """The settings of the job's kind of guidance; None if it has none."""
    found: Settings | None = getattr(job, job.generate.guidance, None)
    return found


def has_regions(job: GenerateJob) -> bool:
    """Whether its sub-prompts have places of their own."""
    return bool(job.regions.region_map) and len(parts_of(job.generate.prompt)) > 1


def stages_of(job: GenerateJob) -> list[Stage]:
    """The stages of one image, whose size is decided. A refiner finishes the last one."""
    *before, last = _base_stages(job)
    own = job.refiner
    if not own.refiner_checkpoint:
        return [*before, last]
    scores = own.aesthetic_score, own.negative_aesthetic_score
    last = replace(last, switch_at=own.refiner_switch_at)
    return [*before, last, replace(last, begins="unfinished latents", scores=scores)]


def sampling_steps(job: GenerateJob) -> int:
    """Sampling steps of one image, of all its stages."""
    return sum(steps_of(stage) for stage in stages_of(job))


def _base_stages(job: GenerateJob) -> list[Stage]:
    """Those of the base model."""
    settings, hires, given = job.generate, job.hires, job.image_to_image
    size = settings.width or 0, settings.height or 0
    begins: Begins = "image" if given.image_path else "noise"
    strength = given.strength if given.image_path else None
    scale = hires.highres_fix_scale
    if scale is None:
        run = _run_of(job, settings.steps, strength)
        return [Stage(size, settings.steps, run, begins, sizes=_sizes(job.sizes, 1.0), anew=_anew(job, strength))]
    small, large = hires_sizes(size, scale)
    if strength is not None and hires.highres_fix_strength is not None:
        strength = hires.highres_fix_strength
    again: Begins = "made latents" if through_latents(job) else "made image"
    low, high = (scale, 1.0) if scale < 1 else (1.0, scale)
    steps = hires.highres_fix_steps or (HIRES_STEPS if as_generator(job) else settings.steps)
    return [
        Stage(
            small,
            steps,
            _run_of(job, steps, strength),
            begins,
            sizes=_sizes(job.sizes, low),
            anew=_anew(job, strength),
        ),
        Stage(large, *_second_steps(job), again, another=1, sizes=_sizes(job.sizes, high)),
    ]


def _run_of(job: GenerateJob, steps: int, strength: float | None) -> int | None:
    """How many of the steps are run with a strength: its share in sd-scripts; in A1111 one more, from the noise level on that
    the share ends at."""
    if not strength:
        return None if strength is None else 0
    return int(steps * strength) if as_generator(job) else int(steps * min(strength, FULL)) + 1


def _second_steps(job: GenerateJob) -> tuple[int, int | None]:
    """(steps of the schedule of the second stage of hires fix, how many of them are run): A1111 runs all that are asked for, of
    a schedule that is longer by the strength."""
    steps, strength = job.generate.steps, job.image_to_image.strength
    whole = int(min(steps / min(strength, FULL), 2 * TIMESTEPS)) if strength and not as_generator(job) else steps
    longer = steps < whole <= TIMESTEPS
    return (whole, steps) if longer else (min(whole, TIMESTEPS), _run_of(job, min(whole, TIMESTEPS), strength))


def passes_of(job: GenerateJob) -> list[Pass | None]:
    """The steps of each stage that prompts with edits are read for, those of a refiner with the base model's; None: edits are
    not read."""
    stages = stages_of(job)
    if as_generator(job) or not job.generate.prompt_weights:
        return [None] * len(stages)
    found: list[Pass | None] = []
    for stage in stages:
        before = found[-1] if found else None
        found.append(before if stage.refines else Pass(whole_steps(stage), before.steps if before else None))
    return found


def only_enlarges(job: GenerateJob) -> bool:
    """Whether an initial image is upscaled and nothing of it is generated again, which takes no model."""
    hires, given = job.hires, job.image_to_image
    first = given.strength if hires.highres_fix_strength is None else hires.highres_fix_strength
    alone = not given.mask_path and not job.refiner.refiner_checkpoint and not through_latents(job)
    return bool(given.image_path and alone and (hires.highres_fix_scale or 0) > 1 and first == given.strength == 0)


def _anew(job: GenerateJob, strength: float | None) -> bool:
    """Whether nothing of an initial image is left where it is repainted. The other contents of a mask are there to be seen."""
    given = job.image_to_image
    repaints = bool(given.mask_path) and given.masked_content == "original"
    return strength == 1 and repaints and not as_generator(job)


def hires_sizes(size: tuple[int, int], scale: float) -> tuple[tuple[int, int], tuple[int, int]]:
    """((width, height) of the first stage, of the second). scale: below 1 the first stage is a share of the size (sd-scripts),
    above it the second is larger (A1111)."""
    width, height = size
    if scale < 1:
        return (_scaled(width, scale, FIRST_STEP), _scaled(height, scale, FIRST_STEP)), size
    return size, (_scaled(width, scale, 8), _scaled(height, scale, 8))


def _scaled(side: int, scale: float, step: int) -> int:
    return max(int(side * scale + 0.5) // step, 1) * step


def _sizes(settings: SizeSettings, scale: float) -> Mapping[str, Sizes]:
    """SDXL's sizes where one is set: those that are not are the image's own (0 here, see `Stage.sizes_of`)."""
    if settings == SizeSettings():
        return {}

    def at(number: int | None) -> int:
        return int((number or 0) * scale + 0.5)

    height, width = at(settings.original_height), at(settings.original_width)
    away = at(settings.original_height_negative) or height, at(settings.original_width_negative) or width
    crop = at(settings.crop_top), at(settings.crop_left)
    return {side: (*((height, width) if side == POSITIVE else away), *crop, 0, 0) for side in SIDES}


def sampling_of(job: GenerateJob, prediction: str) -> Sampling:
    """How a job's images are sampled. prediction: of the model, where the settings leave it open"""
    settings = job.generate
    kohya = as_generator(job)
    return Sampling(
        sampler=settings.sampler,
        guidance_scale=settings.guidance_scale or 0.0,
        negative_scale=settings.negative_scale,
        guidance_rescale=settings.guidance_rescale,
        guidance_kind=settings.guidance,
        guidance_settings=own_settings(job),
        guidance_range=(settings.guidance_start, settings.guidance_end),
        prediction=prediction if job.model.prediction == "auto" else job.model.prediction,
        zero_terminal_snr=settings.zero_terminal_snr == "on",
        schedule=settings.schedule_type,
        program="generator" if kohya else "",
        one_level_up=kohya and not settings.force_scheduler_zero_steps_offset,
        start_noise=start_noise_of(job),
        device_noise=job.start_noise.noise_source == "device",
    )


def start_noise_of(job: GenerateJob) -> StartNoise:
    settings = job.start_noise
    return StartNoise(
        pyramid_prob=settings.pyramid_noise_prob or 0.0,
        pyramid_discount=settings.pyramid_noise_discount_range,
        offset_prob=settings.noise_offset_prob or 0.0,
        offset=settings.noise_offset_range,
        chance=Random,
    )


def reading_of(job: GenerateJob, family_name: str) -> Reading:
    """How the job's prompts are read."""
    settings, kohya, skip = job.generate, as_generator(job), job.model.clip_skip
    # Programs of the page have 1 as the usual value, for SDXL too; sd-scripts' generator takes it at its word.
    layer = skip if kohya or skip is None else max(skip, PENULTIMATE)
    return Reading(
        clip_skip=skip,
        weighted=settings.prompt_weights,
        normalize=settings.emb_normalize_mode,
        multiples=settings.max_embeddings_multiples or (1 if kohya else None),
        as_trained=settings.long_prompts == "trained",
        layer=layer if traits_of(family_name).penultimate else None,
    )


def described(job: GenerateJob) -> Iterator[str]:
    """What will be done for one image, a line for each stage."""
    begin = {
        "noise": "from noise",
        "image": "from the initial image",
        "made image": "from the image before, enlarged",
        "made latents": "from the latents before, enlarged",
        "unfinished latents": f"finished by {Path(job.refiner.refiner_checkpoint or '').name}",
    }
    for stage in stages_of(job):
        width, height = stage.size
        yield f"{width} x {height} {begin[stage.begins]}: {_own_share(job, stage)}{stage.steps} steps"


def _own_share(job: GenerateJob, stage: Stage) -> str:
    """ "16 of " where it does not run all steps."""
    if stage.switch_at is None:
        return "" if stage.run in (None, stage.steps) else f"{stage.run} of "
    sampling = sampling_of(job, "epsilon")
    before = replace(stage, begins="noise")
    run = whole_steps(stage)
    base = round(run * own_steps(sampling, before) / own_steps(sampling, replace(before, switch_at=None)))
    return f"{run - base if stage.refines else base} of "
