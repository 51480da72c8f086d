"""What is wrong with the settings of images, before files are looked for."""

from __future__ import annotations

from collections.abc import Iterator

from core.generation.hooks import hook_problems
from core.generation.loop import run_steps
from core.generation.prompt.runs import parts_of
from core.record.problems import Problem
from core.settings.generation.high_resolution import GROWING, unsharp_of
from core.settings.job import GenerateJob
from core.settings.samples import SAMPLER_LABELS

STRENGTH = "image_to_image.strength"


def problems_of(job: GenerateJob, input_blocks: int | None = None) -> Iterator[Problem]:
    """Errors and advice about one image. input_blocks: how many the family has for Deep Shrink; None: not known yet"""
    yield from _of_steps(job)
    yield from _of_large_images(job, input_blocks)
    yield from _of_masks(job)
    yield from _of_guidance(job)
    yield from hook_problems(job)


def _of_steps(job: GenerateJob) -> Iterator[Problem]:
    given, steps = job.image_to_image, job.generate.steps
    if (given.image_path or job.hires.highres_fix_scale is not None) and not run_steps(steps, given.strength):
        what = f"With {steps} steps, a denoising strength of {given.strength:g} runs no step at all"
        yield Problem(what, STRENGTH, f"use at least {1 / steps:.3g}, or more steps", code="generate.no-steps")


def _of_large_images(job: GenerateJob, input_blocks: int | None) -> Iterator[Problem]:
    grows = job.gradual_latent.gradual_latent_timesteps is not None
    if grows and job.generate.sampler not in GROWING:
        what = f"Gradual Latent is ignored: it is for {SAMPLER_LABELS['euler_a']}"
        yield Problem(what, "generate.sampler", "choose that sampler", "advice", code="generate.no-gradual-latent")
    try:
        unsharp_of(job.gradual_latent.gradual_latent_unsharp_params)
    except ValueError:
        what = f"'{job.gradual_latent.gradual_latent_unsharp_params}' is no unsharp mask"
        where, fix = (
            "gradual_latent.gradual_latent_unsharp_params",
            "write an odd size, sigma and strength: 3,0.5,0.5,1",
        )
        yield Problem(what, where, fix, code="generate.bad-unsharp")
    for name in ("ds_depth_1", "ds_depth_2"):
        depth = getattr(job.deep_shrink, name)
        if depth is not None and input_blocks is not None and depth >= input_blocks:
            what = f"Models of this family have the input blocks 0 to {input_blocks - 1} for Deep Shrink"
            yield Problem(what, f"deep_shrink.{name}", f"use at most {input_blocks - 1}", code="generate.ds-depth")
    scale = job.hires.highres_fix_scale
    if scale is not None and scale == 1:
        what, fix = "A hires scale of 1 makes two images of one size", "use 0.5 or 2, or empty the field"
        yield Problem(what, "hires.highres_fix_scale", fix, code="generate.hires-scale")


def _of_masks(job: GenerateJob) -> Iterator[Problem]:
    if job.image_to_image.mask_path and not job.image_to_image.image_path:
        what, fix = "There is a mask, but no initial image", "choose the image that is repainted"
        yield Problem(what, "image_to_image.image_path", fix, code="generate.mask-alone")
    if job.image_to_image.mask_path and job.gradual_latent.gradual_latent_timesteps is not None:
        what, fix = "Gradual Latent cannot be used with a mask", "turn one of them off"
        yield Problem(what, "gradual_latent.gradual_latent_timesteps", fix, code="generate.growing-mask")
    if job.regions.region_map and len(parts_of(job.generate.prompt)) == 1:
        what, fix = "The region map has no effect: the prompt has no AND", "write 'a fox AND a dog'"
        yield Problem(what, "regions.region_map", fix, "advice", code="generate.no-regions")


def _of_guidance(job: GenerateJob) -> Iterator[Problem]:
    scale = job.generate.guidance_scale
    if job.generate.negative_scale is not None and scale is not None and scale <= 1:
        what = "The negative scale has no effect: there is no guidance up to a scale of 1"
        yield Problem(
            what, "generate.negative_scale", "raise the guidance scale", "advice", code="generate.no-guidance"
        )
