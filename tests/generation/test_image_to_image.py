"""Image to image, inpainting and hires fix: the numbers of diffusers' own pipelines, and what no other has."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    HeunDiscreteScheduler,
    StableDiffusionImg2ImgPipeline,
    StableDiffusionInpaintPipeline,
    StableDiffusionXLImg2ImgPipeline,
)
from PIL import Image

from core.families import family
from core.generation.image_metadata import read_image_metadata
from core.generation.initial import pixels_of
from core.generation.plan import plan_of
from core.generation.run import run_generate
from core.generation.sources import make_store
from core.record.workspace import PROJECT, Workspace
from core.settings.check import build
from core.settings.job import GenerateJob
from tests.models import tiny_folder

STARTER = PROJECT / "models" / "starter"
SCHEDULE = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "steps_offset": 1}
SCHEDULERS = {
    "ddim": lambda: DDIMScheduler(**SCHEDULE, clip_sample=False),
    "euler": lambda: EulerDiscreteScheduler(**SCHEDULE),
    "euler_a": lambda: EulerAncestralDiscreteScheduler(**SCHEDULE),
    "dpmsolver++": lambda: DPMSolverMultistepScheduler(**SCHEDULE),
    "heun": lambda: HeunDiscreteScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear"),
}
SEED, STEPS, STRENGTH, GUIDANCE = 7, 8, 0.6, 4.0


@pytest.fixture(scope="module")
def picture(tmp_path_factory):
    """A file of soft colors."""
    y, x = np.mgrid[0:128, 0:128] / 127
    values = np.stack([x, y, 0.5 + 0.4 * np.sin(9 * x)], axis=-1)
    path = tmp_path_factory.mktemp("pictures") / "picture.png"
    Image.fromarray((values * 255).astype(np.uint8)).save(path)
    return path


@pytest.fixture(scope="module")
def workspace(tmp_path_factory):
    space = Workspace(tmp_path_factory.mktemp("out"), PROJECT / "models")
    space.runs.mkdir(parents=True)
    return space


@pytest.fixture(scope="module")
def store():
    return make_store()


def job_of(model, picture, *, sampler="ddim", mask=None, **groups):
    generate = {"prompt": "a fox, flat icon", "negative_prompt": "red", "seed": SEED, "steps": STEPS}
    generate |= {"sampler": sampler, "guidance_scale": GUIDANCE} | groups.pop("generate", {})
    given = {"image_path": picture and str(picture), "mask_path": mask and str(mask), "strength": STRENGTH}
    given |= groups.pop("image_to_image", {})
    memory = {"mixed_precision": "no"}
    groups = {
        "model": {"base_model": str(model)},
        "generate": generate,
        "image_to_image": given,
        "memory": memory,
    } | groups
    return build(GenerateJob, groups)


def shown(path):
    return np.asarray(Image.open(path).convert("RGB"), dtype=np.float32) / 255


def draws():
    """A generator where our own noise of an image to image is drawn next, behind the start noise and the sampler's."""
    generator = torch.Generator().manual_seed(SEED)
    for _ in range(1 + STEPS):
        torch.randn(4, 16, 16, generator=generator)
    return generator


def their_pipeline(kind, model, sampler):
    plain = {} if "XL" in kind.__name__ else {"safety_checker": None}
    pipeline = kind.from_pretrained(model, dtype=torch.float32, local_files_only=True, **plain)
    pipeline.set_progress_bar_config(disable=True)
    pipeline.scheduler = SCHEDULERS[sampler]()
    return pipeline


def same_start(pipeline, components, picture, monkeypatch):
    """Let a pipeline of diffusers use our noise of the image and of its encoding."""
    noise, of_vae = (torch.randn(4, 16, 16, generator=generator)[None] for generator in [draws()] * 2)
    kind = family(components.family)
    mean, logvar = kind.encode_image_latents(components.vae, pixels_of(Image.open(picture).convert("RGB")))
    latents = kind.model_latents(components.vae.config, mean + (logvar / 2).exp() * of_vae)
    return latents, noise


@pytest.mark.parametrize("sampler", sorted(SCHEDULERS))
def test_an_image_from_an_image_is_that_of_diffusers(sampler, picture, workspace, store, monkeypatch):
    (file,) = run_generate(job_of(STARTER, picture, sampler=sampler), workspace, store=store)
    components = family("sd1").load(STARTER)
    pipeline = their_pipeline(StableDiffusionImg2ImgPipeline, STARTER, sampler)
    latents, noise = same_start(pipeline, components, picture, monkeypatch)
    module = "diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion_img2img"
    monkeypatch.setattr(f"{module}.randn_tensor", lambda *shape, **how: noise)
    theirs = pipeline(
        "a fox, flat icon",
        image=latents,
        negative_prompt="red",
        strength=STRENGTH,
        num_inference_steps=STEPS,
        guidance_scale=GUIDANCE,
        generator=_after_start(),
        output_type="np",
    ).images[0]
    assert np.abs(shown(file) - theirs).mean() < 2e-3, "PNG rounds to 1/255"


def _after_start():
    generator = torch.Generator().manual_seed(SEED)
    torch.randn(4, 16, 16, generator=generator)
    return generator


def test_sdxl_too(picture, workspace, store, monkeypatch, tmp_path):
    folder = tiny_folder("sdxl", tmp_path / "tiny")
    (file,) = run_generate(job_of(folder, picture, sampler="euler"), workspace, store=store)
    components = family("sdxl").load(folder)
    pipeline = their_pipeline(StableDiffusionXLImg2ImgPipeline, folder, "euler")
    latents, noise = same_start(pipeline, components, picture, monkeypatch)
    module = "diffusers.pipelines.stable_diffusion_xl.pipeline_stable_diffusion_xl_img2img"
    monkeypatch.setattr(f"{module}.randn_tensor", lambda *shape, **how: noise)
    pad = components.tokenizers[1].pad_token_id
    pipeline.tokenizer_2.pad_token = pipeline.tokenizer_2.convert_ids_to_tokens(pad)
    theirs = pipeline(
        "a fox, flat icon",
        image=latents,
        negative_prompt="red",
        strength=STRENGTH,
        num_inference_steps=STEPS,
        guidance_scale=GUIDANCE,
        generator=_after_start(),
        original_size=(128, 128),
        target_size=(128, 128),
        output_type="np",
    ).images[0]
    assert np.abs(shown(file) - theirs).mean() < 2e-3


@pytest.mark.parametrize("sampler", ["ddim", "euler", "dpmsolver++"])
def test_inpainting_is_that_of_diffusers(sampler, picture, workspace, store, monkeypatch, tmp_path):
    mask = tmp_path / "mask.png"
    area = np.zeros((128, 128), np.uint8)
    area[32:96, 48:128] = 255
    Image.fromarray(area).save(mask)
    sharp = {"mask_blur": 0}
    (file,) = run_generate(
        job_of(STARTER, picture, sampler=sampler, mask=mask, image_to_image=sharp), workspace, store=store
    )
    components = family("sd1").load(STARTER)
    pipeline = their_pipeline(StableDiffusionInpaintPipeline, STARTER, sampler)
    latents, noise = same_start(pipeline, components, picture, monkeypatch)
    module = "diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion_inpaint"
    monkeypatch.setattr(f"{module}.randn_tensor", lambda *shape, **how: noise)
    monkeypatch.setattr(StableDiffusionInpaintPipeline, "_encode_vae_image", lambda self, image, generator: latents)
    theirs = pipeline(
        "a fox, flat icon",
        image=Image.open(picture),
        mask_image=Image.open(mask),
        negative_prompt="red",
        height=128,
        width=128,
        strength=STRENGTH,
        num_inference_steps=STEPS,
        guidance_scale=GUIDANCE,
        generator=_after_start(),
        output_type="np",
    ).images[0]
    kept = area == 0
    assert np.abs(shown(file) - theirs)[~kept].mean() < 2e-3
    np.testing.assert_array_equal(shown(file)[kept], shown(picture)[kept])


def test_hires_fix_makes_the_size_that_is_asked_for_and_its_file_makes_it_again(workspace, store):
    job = job_of(
        STARTER,
        None,
        generate={"width": 192, "height": 192},
        hires={"highres_fix_scale": 0.5, "highres_fix_steps": 4, "highres_fix_save_1st": True},
    )
    before = set(workspace.images.rglob("*.png"))
    (file,) = run_generate(job, workspace, store=store)
    new = set(workspace.images.rglob("*.png")) - before
    assert sorted(shown(path).shape for path in new) == [(96, 96, 3), (192, 192, 3)]
    record = read_image_metadata(file)
    (again,) = run_generate(record.job, workspace, store=store)
    np.testing.assert_array_equal(shown(again), shown(file))
    larger = job_of(STARTER, None, generate={"width": 96, "height": 96}, hires={"highres_fix_scale": 2})
    assert shown(run_generate(larger, workspace, store=store)[0]).shape == (192, 192, 3)


def test_several_initial_images_are_used_in_turn_and_each_seed_is_its_own(picture, workspace, store, tmp_path):
    folder = tmp_path / "many"
    folder.mkdir()
    for number, color in enumerate(["red", "green", "blue"]):
        Image.new("RGB", (70, 96), color).save(folder / f"{number}.png")
    job = job_of(STARTER, folder, generate={"count": 4, "steps": 4}, image_to_image={"strength": 0.25})
    plan = plan_of(job, workspace)
    assert [each.job.image_to_image.image_path[-5:] for each in plan.requests] == ["0.png", "1.png", "2.png", "0.png"]
    assert {(each.job.generate.width, each.job.generate.height) for each in plan.requests} == {(64, 96)}
    files = run_generate(job, workspace, store=store)
    assert [int(shown(file).mean(axis=(0, 1)).argmax()) for file in files] == [0, 1, 2, 0]
