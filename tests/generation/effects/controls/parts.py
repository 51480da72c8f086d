"""Jobs with ControlNets, and what they make."""

from __future__ import annotations

import pytest
import torch

from core.generation.plan.plan import plan_of
from core.generation.run import loaded_maker
from core.generation.sample.canvas import decode_pixels
from core.record.context import NO_REPORTS
from core.record.problems import ProblemsError
from core.settings.check import build
from core.settings.job import GenerateJob

SIZE, SEED, STEPS, GUIDANCE = (96, 64), 7, 6, 4.0
PROMPT, NEGATIVE = "a fox, flat icon", "red"
LIMIT = 1e-3  # mean absolute, of images in 0..1


def job_of(folder, nets=(), controls=None, **groups):
    generate = {"prompt": PROMPT, "negative_prompt": NEGATIVE, "seed": SEED, "steps": STEPS}
    generate |= {"guidance_scale": GUIDANCE, "width": SIZE[0], "height": SIZE[1]}
    whole = {"model": {"base_model": str(folder)}, "generate": generate, "memory": {"mixed_precision": "no"}}
    whole |= {"controls": {"nets": list(nets)} | (controls or {})}
    return build(GenerateJob, {key: whole.get(key, {}) | groups.get(key, {}) for key in {*whole, *groups}})


def made_by(job, space, store):
    """float32 [H, W, 3] in 0..1."""
    plan = plan_of(job, space)
    with loaded_maker(plan, space, store=store, device="cpu", reports=NO_REPORTS) as (maker, _):
        latents = maker.make(plan.requests, decoded=False).latents[-1]
        with torch.no_grad():
            pixels = decode_pixels(maker.components.vae, latents, maker.kind.decode_latents)
    return pixels[0].permute(1, 2, 0).numpy()


def codes(job, space):
    with pytest.raises(ProblemsError) as refused:
        plan_of(job, space)
    return {problem.code for problem in refused.value.problems}
