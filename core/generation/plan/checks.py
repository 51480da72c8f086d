"""Checks of a generate job: by its settings alone, and with the model. All checks run, so that all problems are reported at once."""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from core.diffusion.samplers import SAMPLERS
from core.families import family
from core.families.locate import REFINER
from core.formats.detect import FAMILY_NAMES
from core.generation.model.sources import Sources
from core.generation.plan.hooks import HOOKS
from core.generation.plan.initial import IMAGE
from core.generation.plan.stages import (
    guidance_group,
    has_regions,
    hires_sizes,
    least_strength,
    only_upscales,
    sampling_of,
    stages_of,
)
from core.generation.plan.upscalers import upscales_latents
from core.generation.prompt.analysis import has_settings
from core.generation.prompt.runs import parts_of, weighted_parts
from core.generation.sample.guidances import GUIDANCES, kind_of
from core.generation.sample.loop import evaluation_count
from core.record.problems import Problem
from core.record.regular import foreign_problem, impossible_path
from core.record.workspace import Workspace, resolve_path
from core.settings.generation.high_resolution import GROWING, unsharp_of
from core.settings.job import GenerateJob
from core.settings.model import FAMILIES
from core.settings.samples import SAMPLER_LABELS

if TYPE_CHECKING:
    from core.families.base import Family

Jobs = Sequence[GenerateJob]
MOST_PROMPT_BYTES = 55_000  # that leave space for the other settings in EXIF
LEAST, MOST = 64, 16_384  # pixels of a side that follows from an initial image
STRENGTH = "image_to_image.strength"
SWITCH = "refiner.refiner_switch_at"
FIELD = re.compile(r"\[([^\[\]]*)\]")
FIELDS = ("date", "time", "seed", "prompt", "model", "sampler", "steps", "cfg", "width", "height", "number")


def _prompt_problems(job: GenerateJob) -> Iterator[Problem]:
    """Yield an error if the prompt contains the settings line of an A1111 image."""
    if has_settings(job.generate.prompt):
        what = "The prompt contains the settings of an image"
        fix = "press Use the settings in this text below it, or remove these lines"
        yield Problem(what, "generate.prompt", fix, code="prompt.settings")


def _metadata_problems(job: GenerateJob) -> Iterator[Problem]:
    """Yield advice if a long prompt leaves no space for the settings in a JPEG or WebP file, which holds it as UTF-16 and as JSON."""
    text = job.generate.prompt + job.generate.negative_prompt
    if job.output.image_format != "png" and 2 * len(text) + len(json.dumps(text)) > MOST_PROMPT_BYTES:
        what = f"A prompt of {len(text):,} characters leaves no space for all settings in the image: EXIF holds 64 KB"
        yield Problem(what, "output.image_format", "choose PNG", "advice", code="output.exif-limit")


def _step_problems(job: GenerateJob) -> Iterator[Problem]:
    """Yield an error if the denoising strength is so low that no step runs."""
    settings, steps = job.image_to_image, stages_of(job)[-1].steps
    if stages_of(job)[-1].run == 0 and not only_upscales(job):
        what = f"With {steps} steps, a denoising strength of {settings.strength:g} runs no steps"
        yield Problem(
            what, STRENGTH, f"use at least {least_strength(steps):g}, or more steps", code="generate.no-steps"
        )


def _large_image_problems(job: GenerateJob) -> Iterator[Problem]:
    """Yield problems of Gradual Latent and hires fix."""
    gradual = job.gradual_latent.gradual_latent_timesteps is not None
    if gradual and job.generate.sampler not in GROWING:
        what = f"Gradual Latent is ignored: it is for {SAMPLER_LABELS['euler_a']}"
        yield Problem(what, "generate.sampler", "choose that sampler", "advice", code="generate.no-gradual-latent")
    try:
        unsharp_of(job.gradual_latent.gradual_latent_unsharp_params)
    except ValueError:
        what = f"'{job.gradual_latent.gradual_latent_unsharp_params}' is not a valid unsharp mask"
        where = "gradual_latent.gradual_latent_unsharp_params"
        fix = "write an odd size, sigma and strength: 3,0.5,0.5,1"
        yield Problem(what, where, fix, code="generate.bad-unsharp")
    scale = job.hires.highres_fix_scale
    size = job.generate.width or 0, job.generate.height or 0
    if scale is not None and (scale == 1 or len(set(hires_sizes(size, scale))) == 1):
        what, fix = f"A hires scale of {scale:g} does not change the size", "use 0.5 or 2, or empty the field"
        yield Problem(what, "hires.highres_fix_scale", fix, code="generate.hires-scale")
    hires = job.hires
    if hires.hires_steps and hires.highres_fix_steps:
        what, fix = "Hires steps and the steps of the first stage are both set", "empty one of them"
        yield Problem(what, "hires.hires_steps", fix, code="generate.hires-steps")
    if scale is not None and hires.highres_fix_strength is not None and not job.image_to_image.image_path:
        what, fix = "The first denoising strength has no effect: there is no initial image", "empty the field"
        yield Problem(what, "hires.highres_fix_strength", fix, "advice", code="generate.first-strength")
    if hires.highres_fix_latents_upscaling and (
        hires.highres_fix_upscaler_file or hires.highres_fix_upscaler != "lanczos"
    ):
        what, where = "Upscale latents is ignored: an upscaler is chosen", "hires.highres_fix_latents_upscaling"
        yield Problem(what, where, "turn it off, or choose Lanczos", "advice", code="generate.two-upscalers")
    strength = job.image_to_image.strength
    if scale is not None and upscales_latents(job) and strength < 0.5:
        what = f"A denoising strength of {strength:g} leaves the blur of upscaled latents"
        fix = "use 0.5 or more, or an upscaler of images"
        yield Problem(what, "image_to_image.strength", fix, "advice", code="generate.latent-strength")


def _mask_problems(job: GenerateJob) -> Iterator[Problem]:
    """Yield problems of the mask and the region map."""
    if job.image_to_image.mask_path and not job.image_to_image.image_path:
        what, fix = "There is a mask, but no initial image", "choose the image that is repainted"
        yield Problem(what, "image_to_image.image_path", fix, code="generate.mask-alone")
    if job.image_to_image.mask_path and job.gradual_latent.gradual_latent_timesteps is not None:
        what, fix = "Gradual Latent cannot be used with a mask", "turn one of them off"
        yield Problem(what, "gradual_latent.gradual_latent_timesteps", fix, code="generate.growing-mask")
    if job.regions.region_map and len(parts_of(job.generate.prompt)) == 1:
        what, fix = "The region map has no effect: the prompt has no AND", "write 'a fox AND a dog'"
        yield Problem(what, "regions.region_map", fix, "advice", code="generate.no-regions")
    if has_regions(job) and any(weight != 1 for _, weight in weighted_parts(job.generate.prompt)):
        what, fix = "Weights of prompts joined by AND have no effect in regions", "weigh words instead: (word:1.2)"
        yield Problem(what, "regions.region_map", fix, "advice", code="generate.region-weights")


def _noise_problems(job: GenerateJob) -> Iterator[Problem]:
    """Yield advice about noise offset and pyramid noise: an initial image gets neither, only other random numbers."""
    for name in ("noise_offset_prob", "pyramid_noise_prob"):
        if job.image_to_image.image_path and getattr(job.start_noise, name):
            what = f"{job.start_noise.title_of(name)} only changes the seed's noise: there is an initial image"
            fix = "remove the initial image, or empty the field"
            yield Problem(what, f"start_noise.{name}", fix, "advice", code="generate.seed-noise")


def _guidance_problems(job: GenerateJob) -> Iterator[Problem]:
    """Yield problems of guidance scale, guidance kind, negative prompt and scale, and guidance range."""
    settings, kind = job.generate, kind_of(job.generate.guidance)
    off = settings.guidance_scale is not None and settings.guidance_scale <= 1
    unused = {
        "negative_prompt": bool(settings.negative_prompt) and not kind.alone,
        "negative_scale": settings.negative_scale is not None,
        "guidance": kind.name != "classic" and not kind.alone,
    }
    for name in [name for name, used in unused.items() if off and used]:
        what = f"{settings.title_of(name)} has no effect: guidance is off at a scale of 1 and below"
        yield Problem(what, f"generate.{name}", "raise the guidance scale", "advice", code="generate.no-guidance")
    if settings.negative_scale is not None and not kind.negative_scale:
        what, fix = f"{kind.title} has no negative scale", "empty the field, or choose another guidance"
        yield Problem(what, "generate.negative_scale", fix, code="guidance.negative-scale")
    if settings.guidance_start >= settings.guidance_end:
        what, fix = "Guidance begins after its end", "make the start smaller than the end"
        yield Problem(what, "generate.guidance_start", fix, code="guidance.range")
    limited = settings.guidance_start > 0 or settings.guidance_end < 1
    if has_regions(job) and (kind.layers is not None or limited):
        name = (
            "guidance" if kind.layers is not None else "guidance_start" if settings.guidance_start else "guidance_end"
        )
        what = kind.title if kind.layers is not None else "Guidance in part of the steps"
        what += " cannot be used with regions"
        yield Problem(what, f"generate.{name}", "turn one of them off", code="guidance.regions")
    yield from _unselected_guidance_advice(job)


def _unselected_guidance_advice(job: GenerateJob) -> Iterator[Problem]:
    """Yield advice about changed settings of guidance kinds that are not selected."""
    for name in GUIDANCES:
        group = getattr(job, name, None)
        if group is not None and name != job.generate.guidance and group != type(group)():
            what = f"The settings of '{GUIDANCES[name].title}' have no effect: another guidance is chosen"
            yield Problem(what, "generate.guidance", f"choose {name}", "advice", code="settings.no-effect")


def refiner_problems(job: GenerateJob) -> Iterator[Problem]:
    """Yield problems of settings that conflict with the refiner, by the settings of one image."""
    if not job.refiner.refiner_checkpoint:
        return
    if has_regions(job):
        what = "The refiner cannot be used with regions"
        yield Problem(what, "regions.region_map", "turn one of them off", code="refiner.regions")
    if job.gradual_latent.gradual_latent_timesteps is not None:
        what, where = "The refiner cannot be used with Gradual Latent", "gradual_latent.gradual_latent_timesteps"
        yield Problem(what, where, "turn one of them off", code="refiner.gradual-latent")
    if any(use.used for use in job.generate.loras):
        what, fix = "The refiner has no LoRAs: it may undo some of what they do", "switch later, or turn it off"
        yield Problem(what, SWITCH, fix, "advice", code="refiner.loras")


def problems_of(job: GenerateJob) -> Iterator[Problem]:
    """Yield all errors and advice that follow from the settings of one image alone, including those of hooks."""
    checks = (
        _prompt_problems,
        _metadata_problems,
        _step_problems,
        _large_image_problems,
        _mask_problems,
        _noise_problems,
        _guidance_problems,
        refiner_problems,
    )
    for check in (*checks, *(hook.problems for hook in HOOKS.values())):
        yield from check(job)


def output_problems(job: GenerateJob, workspace: Workspace) -> Iterator[Problem]:
    """Yield problems of the patterns for file and folder names, and of the output folder."""
    settings = job.output
    for setting in ("folder_pattern", "file_pattern"):
        for field in FIELD.findall(getattr(settings, setting)):
            if field not in FIELDS:
                near = difflib.get_close_matches(field.casefold(), FIELDS, 1)
                fix = f"write [{near[0]}]" if near else f"use {', '.join(f'[{name}]' for name in FIELDS)}"
                what = f"There is no field [{field[:40]}] for names"
                yield Problem(what, f"output.{setting}", fix, code="output.unknown-field")
    if settings.use_original_file_name and not job.image_to_image.image_path:
        what, fix = "There is no initial image whose name could be used", "choose one, or turn the setting off"
        yield Problem(what, "output.use_original_file_name", fix, "advice", code="output.no-original")
    folder = root_of(job, workspace)
    foreign = foreign_problem(settings.outdir or "", "output.outdir")
    if (problem := foreign or impossible_path(folder / "image.png", "output.outdir")) is not None:
        yield problem


def root_of(job: GenerateJob, workspace: Workspace) -> Path:
    """Return the output folder of a job, before the folder pattern is applied."""
    return resolve_path(job.output.outdir) if job.output.outdir else workspace.images


# -- with the model


def depth_problems(jobs: Jobs, model_family: Family) -> Iterator[Problem]:
    """Yield an error if a Deep Shrink depth exceeds the last input block of the family's U-Net. model_family: the model's family"""
    shrunk = [job.deep_shrink for job in jobs if job.deep_shrink.ds_depth_1 is not None]
    if not shrunk:
        return
    blocks = (
        0
        if model_family.input_blocks is None
        else len(model_family.input_blocks(model_family.make_empty(model_family.denoiser)))
    )
    for name in ("ds_depth_1", "ds_depth_2"):
        depths = [depth for each in shrunk if (depth := getattr(each, name)) is not None]
        if depths and max(depths) >= blocks:
            what = f"Models of this family have the input blocks 0 to {blocks - 1} for Deep Shrink"
            yield Problem(what, f"deep_shrink.{name}", f"use at most {blocks - 1}", code="generate.ds-depth")


def guidance_problems(job: GenerateJob, model_family: Family) -> Iterator[Problem]:
    """Yield problems of a job's guidance with models of a family. job: with guidance scale set; model_family: the family"""
    settings, guidance = job.generate, kind_of(job.generate.guidance)
    scales = SAMPLERS[settings.sampler].scales
    if scales is not None and (settings.guidance_scale or 0) > scales[1]:
        what = f"{SAMPLER_LABELS[settings.sampler]} oversaturates at a guidance scale of {settings.guidance_scale:g}"
        yield Problem(
            what,
            "generate.guidance_scale",
            f"use {scales[0]:g} to {scales[1]:g}",
            "advice",
            code="generate.sampler-scale",
        )
    if model_family.reads_guidance and guidance.name != "classic":
        what, fix = f"{guidance.title} does not work with guidance-distilled models", "choose classic"
        yield Problem(what, "generate.guidance", fix, code="guidance.family")
    elif guidance.layers is not None:
        from core.generation.sample.guidances.layers import layers_of

        where, text, ending = guidance.layers(guidance_group(job))
        model = model_family.make_empty(model_family.denoiser)
        for part in text.split(","):
            if not layers_of(model, part, ending):
                what = f"{FAMILY_NAMES[model_family.name]} models have no such layers at '{part.strip()}'"
                yield Problem(what, where, "use mid, or blocks with attention: up.1, down.2", code="guidance.layers")


def stage_problems(job: GenerateJob, model_family: Family) -> Iterator[Problem]:
    """Yield problems of regions, of SDXL's sizes, of the initial image's size and of hires fix sizes with models of a family.
    job: with width and height set"""
    if has_regions(job) and model_family.input_blocks is None:
        what, fix = "Regions need a U-Net; models of this family have none", "remove the region map"
        yield Problem(what, "regions.region_map", fix, code="regions.family")
    if job.sizes != type(job.sizes)() and not model_family.reads_sizes:
        what = f"SDXL's sizes and crops have no effect: the model is {FAMILY_NAMES[model_family.name]}"
        yield Problem(what, "sizes.original_width", "leave them empty", "advice", code="generate.sizes-ignored")
    step = FAMILIES[model_family.name].size_step
    sides = job.generate.width or 0, job.generate.height or 0
    if job.image_to_image.image_path and not only_upscales(job) and not LEAST <= min(sides) <= max(sides) <= MOST:
        what = f"The initial image gives a size of {sides[0]} x {sides[1]}; sides are {LEAST} to {MOST} pixels"
        yield Problem(what, IMAGE, "choose another image, or set both width and height", code="generate.image-size")
    for stage in stages_of(job):
        if any(side % step for side in stage.size):
            what = f"Hires fix would make an image of {stage.size[0]} x {stage.size[1]}; sides are multiples of {step}"
            yield Problem(what, "hires.highres_fix_scale", "choose another scale", code="generate.size-step")


def switch_problems(jobs: Sequence[GenerateJob]) -> Iterator[Problem]:
    """Yield problems of refiner switches at which the refiner, or the base model, runs no step.
    jobs: with width, height and zero terminal SNR set"""
    switched = {}
    for job in jobs:
        if job.refiner.refiner_checkpoint:
            sampling, (base, refiner) = sampling_of(job, "epsilon"), stages_of(job)[-2:]
            switched[sampling, base.steps, base.run, base.switch_at] = sampling, base, refiner
    for sampling, base, refiner in switched.values():
        share = f"With {refiner.steps} steps and a switch at {refiner.switch_at:g}"
        if not evaluation_count(sampling, refiner):
            what, fix = f"{share}, the refiner runs no step", "lower the switch, or use more steps"
            yield Problem(what, SWITCH, fix, code="refiner.no-steps")
        elif not evaluation_count(sampling, base):
            what, fix = f"{share}, the base model runs no step of this strength", "raise the switch or the strength"
            yield Problem(what, SWITCH, fix, "advice", code="refiner.alone")


def _model_guidance_problems(jobs: Jobs, sources: Sources) -> Iterator[Problem]:
    """Yield problems of each distinct guidance with the base model, and with the refiner for jobs that use one."""
    refined = [job for job in jobs if job.refiner.refiner_checkpoint]
    for name, jobs_of_family in ((sources.family, jobs), (REFINER, refined)):
        distinct = {
            (job.generate.guidance, job.generate.sampler, job.generate.guidance_scale, guidance_group(job)): job
            for job in jobs_of_family
        }
        for job in distinct.values():
            yield from guidance_problems(job, family(name))


def problems_with_model(jobs: Jobs, sources: Sources, workspace: Workspace) -> list[Problem]:
    """Return all errors and advice that need the model's family or other files, without repetitions.
    jobs: one per image, with width, height and zero terminal SNR set"""
    model_family = family(sources.family)
    problems = [
        *depth_problems(jobs, model_family),
        *_model_guidance_problems(jobs, sources),
        *(each for job in jobs for hook in HOOKS.values() for each in hook.file_problems(job, sources, workspace)),
        *(each for job in jobs for each in stage_problems(job, model_family)),
        *switch_problems(jobs),
    ]
    return list(dict.fromkeys(problems))
