"""The image of diffusers' own pipeline for the settings of a job: its schedulers, its reading of LoRAs, its encoding of images."""

from __future__ import annotations

import sys
from types import SimpleNamespace

import diffusers
import mpmath
import numpy as np
import pytest
import torch
from diffusers.schedulers.scheduling_lms_discrete import LMSDiscreteScheduler

SCHEDULE = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
PIPELINES = {
    ("sd1", "text"): diffusers.StableDiffusionPipeline,
    ("sd1", "image"): diffusers.StableDiffusionImg2ImgPipeline,
    ("sd1", "inpaint"): diffusers.StableDiffusionInpaintPipeline,
    ("sdxl", "text"): diffusers.StableDiffusionXLPipeline,
    ("sdxl", "image"): diffusers.StableDiffusionXLImg2ImgPipeline,
    ("sdxl", "inpaint"): diffusers.StableDiffusionXLInpaintPipeline,
}


class Lms(LMSDiscreteScheduler):
    """diffusers' integrates by scipy, which is not installed: here the polynomials are integrated as such.

    Where it begins in the middle of a schedule, with an image, diffusers counts on derivatives that it does not have yet:
    of 20 steps, the first ones are 1.85 and 0.49 times as long as they should be. Here, as in ours, they are right.
    """

    def get_lms_coefficient(self, order, t, current_order):
        order = min(order, len(self.derivatives))
        if current_order >= order:
            return 0.0
        at = [float(self.sigmas[t - k]) for k in range(order)]
        others = [sigma for k, sigma in enumerate(at) if k != current_order]
        whole = np.polynomial.Polynomial.fromroots(others).integ() if others else np.polynomial.Polynomial([0, 1])
        own = np.prod([at[current_order] - other for other in others])
        return (whole(float(self.sigmas[t + 1])) - whole(at[0])) / own


# sampler: (scheduler, what its title and the models' configs say of it)
SCHEDULERS = {
    "ddim": (diffusers.DDIMScheduler, {"clip_sample": False, "steps_offset": 1}),
    "ddim_first_alpha": (
        diffusers.DDIMScheduler,
        {"clip_sample": False, "steps_offset": 1, "set_alpha_to_one": False},
    ),
    "pndm": (diffusers.PNDMScheduler, {"skip_prk_steps": True, "steps_offset": 1}),
    "ddpm": (diffusers.DDPMScheduler, {"clip_sample": False, "steps_offset": 1, "timestep_spacing": "leading"}),
    "euler": (diffusers.EulerDiscreteScheduler, {}),
    "euler_a": (diffusers.EulerAncestralDiscreteScheduler, {}),
    "lms": (Lms, {}),
    "heun": (diffusers.HeunDiscreteScheduler, {}),
    "dpmsolver": (
        diffusers.DPMSolverMultistepScheduler,
        {"algorithm_type": "dpmsolver", "final_sigmas_type": "sigma_min"},
    ),
    "dpmsolver++_3m": (diffusers.DPMSolverMultistepScheduler, {"solver_order": 3}),
    "dpmsingle": (diffusers.DPMSolverSinglestepScheduler, {"lower_order_final": True}),
    "unipc": (diffusers.UniPCMultistepScheduler, {}),
    "deis": (diffusers.DEISMultistepScheduler, {}),
    "lcm": (diffusers.LCMScheduler, {}),
    "tcd": (diffusers.TCDScheduler, {}),
}
SPACINGS = {
    "karras": {"use_karras_sigmas": True},
    "exponential": {"use_exponential_sigmas": True},
    "beta": {"use_beta_sigmas": True},
}
SPACED = ("euler", "lms", "heun")  # whose timesteps diffusers does not round


def scheduler_of(sampler, **more):
    kind, own = SCHEDULERS[sampler]
    return kind(**SCHEDULE | own | more)


def pipeline_of(family, folder, lora=None, way="text"):
    """diffusers' pipeline of a model's folder. lora: a file, which peft attaches"""
    plain = {} if family == "sdxl" else {"safety_checker": None, "requires_safety_checker": False}
    kind = PIPELINES["sdxl" if family == "sdxl" else "sd1", way]
    pipeline = kind.from_pretrained(folder, dtype=torch.float32, local_files_only=True, **plain)
    if lora is not None:
        pipeline.load_lora_weights(lora.parent, weight_name=lora.name, local_files_only=True)
    return pipeline


def for_way(pipeline, family, way):
    """The pipeline with the same model for "text", "image" or "inpaint"."""
    plain = {} if family == "sdxl" else {"requires_safety_checker": False}
    made = PIPELINES["sdxl" if family == "sdxl" else "sd1", way](**pipeline.components, **plain)
    made.set_progress_bar_config(disable=True)
    return made


def image_of(pipeline, size, seed, steps, draws=0, patch=None, **asked):
    """float32 [H, W, 3] in 0..1, whose noise is that of an image of ours with this seed.

    patch   for pipelines that begin with an image: theirs draw its noise at another place of their generator's numbers
    draws   of the sampler, before that noise
    """
    generator, (width, height) = torch.Generator().manual_seed(seed), size
    if patch is not None:
        shape = (1, 4, height // 8, width // 8)
        torch.randn(shape, generator=generator)  # of an image without a beginning
        later = generator.clone_state()
        for _ in range(draws):
            torch.randn(shape, generator=later)
        noise, of_vae = (torch.randn(shape, generator=later) for _ in range(2))
        patch.setattr(sys.modules[type(pipeline).__module__], "randn_tensor", lambda *_, **__: noise)
        patch.setattr("diffusers.models.autoencoders.vae.randn_tensor", lambda *_, **__: of_vae)
    if "Img2Img" not in type(pipeline).__name__:
        asked |= {"width": width, "height": height}
    return pipeline(num_inference_steps=steps, generator=generator, output_type="np", **asked).images[0]


def with_quantiles(patch: pytest.MonkeyPatch, sampler: str) -> None:
    """Let a scheduler of diffusers find the quantiles of the beta distribution, which it asks scipy for."""
    kinds = SCHEDULERS[sampler][0].__mro__
    module = next(kind.__module__ for kind in kinds if kind.__module__.startswith("diffusers."))

    def ppf(share, alpha, beta):
        def above(x):
            return mpmath.betainc(alpha, beta, 0, x, regularized=True) - float(share)

        share = float(share)
        return share if share in (0, 1) else float(mpmath.findroot(above, (0, 1), solver="anderson", verify=False))

    found = SimpleNamespace(stats=SimpleNamespace(beta=SimpleNamespace(ppf=ppf)))
    patch.setattr(f"{module}.scipy", found, raising=False)
    patch.setattr(f"{module}.is_scipy_available", lambda: True)
