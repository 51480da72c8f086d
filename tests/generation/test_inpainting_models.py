"""Inpainting models, whose U-Net reads the mask and what it keeps: the numbers of diffusers' pipelines."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionInpaintPipeline, StableDiffusionXLInpaintPipeline
from PIL import Image
from safetensors.torch import save_file

from core.bench.random_model import random_state, write_folder
from core.families import family
from core.families.locate import GENERATED, family_of
from core.generation import inpainting
from core.generation.initial import encoded
from core.generation.plan import plan_of
from core.generation.run import run_generate
from core.generation.sources import make_store
from core.record.problems import ProblemsError
from core.record.workspace import PROJECT, Workspace
from tests.generation.test_image_to_image import (
    GUIDANCE,
    STEPS,
    STRENGTH,
    _after_start,
    draws,
    job_of,
    shown,
    their_pipeline,
)
from tests.models import single_file, tiny_configs, tiny_layout

PIPELINES = {"sd1": StableDiffusionInpaintPipeline, "sdxl": StableDiffusionXLInpaintPipeline}
MODULES = {
    "sd1": "diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion_inpaint",
    "sdxl": "diffusers.pipelines.stable_diffusion_xl.pipeline_stable_diffusion_xl_inpaint",
}


def configs_of(name):
    configs = tiny_configs(name)
    return configs | {"unet": {**configs["unet"], "in_channels": 9}}


@pytest.fixture(scope="module", params=["sd1", "sdxl"])
def model(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    write_folder(folder, configs_of(request.param), torch.float32, 0, request.param)
    index = json.loads((folder / "model_index.json").read_text("utf-8"))
    (folder / "model_index.json").write_text(json.dumps(index | {"_diffusers_version": "0.30.0"}), "utf-8")
    return request.param, folder


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pictures")
    y, x = np.mgrid[0:128, 0:128] / 127
    values = np.stack([x, y, 0.5 + 0.4 * np.sin(9 * x)], axis=-1)
    Image.fromarray((values * 255).astype(np.uint8)).save(folder / "picture.png")
    mask = Image.new("L", (128, 128))
    mask.paste(255, (48, 32, 128, 96))
    mask.save(folder / "mask.png")
    return folder / "picture.png", folder / "mask.png"


@pytest.fixture(scope="module")
def workspace(tmp_path_factory):
    space = Workspace(tmp_path_factory.mktemp("out"), PROJECT / "models")
    space.runs.mkdir(parents=True)
    return space


def test_images_are_those_of_diffusers(model, files, workspace, monkeypatch):
    name, folder = model
    job = job_of(folder, files[0], mask=files[1], image_to_image={"mask_blur": 0})
    (file,) = run_generate(job, workspace, store=make_store())
    kind, components = family(name), family(name).load(folder)
    noise, of_vae = (torch.randn(4, 16, 16, generator=generator) for generator in [draws()] * 2)
    pipeline = their_pipeline(PIPELINES[name], folder, "ddim")
    monkeypatch.setattr(f"{MODULES[name]}.randn_tensor", lambda *shape, **how: noise[None])
    monkeypatch.setattr(
        PIPELINES[name],
        "_encode_vae_image",
        lambda self, image, generator: encoded(components.vae, kind, image, of_vae),
    )
    more = {}
    if name == "sdxl":
        pipeline.tokenizer_2.pad_token = pipeline.tokenizer_2.convert_ids_to_tokens(
            components.tokenizers[1].pad_token_id
        )
        more = {"original_size": (128, 128), "target_size": (128, 128)}
    theirs = pipeline(
        "a fox, flat icon",
        image=Image.open(files[0]),
        mask_image=Image.open(files[1]),
        negative_prompt="red",
        height=128,
        width=128,
        strength=STRENGTH,
        num_inference_steps=STEPS,
        guidance_scale=GUIDANCE,
        generator=_after_start(),
        output_type="np",
        **more,
    ).images[0]
    area = np.asarray(Image.open(files[1])) > 0
    assert np.abs(shown(file) - theirs)[area].mean() < 1.2e-3, "of which rounding to PNG is 1e-3"
    np.testing.assert_array_equal(shown(file)[~area], shown(files[0])[~area])


@torch.no_grad()
def test_without_a_mask_everything_is_masked_and_gray(model, workspace, monkeypatch):
    name, folder = model
    seen = []
    reading = inpainting.reading_mask

    def watched(own, *given):
        def predict(noisy, timesteps, told):
            seen.append(noisy)
            return own.predict(noisy, timesteps, told)

        return reading(replace(own, predict=predict), *given)

    monkeypatch.setattr("core.generation.making.reading_mask", watched)
    job = job_of(folder, None, generate={"steps": 2, "width": 64, "height": 64, "count": 2, "batch_size": 2})
    assert len(run_generate(job, workspace, store=make_store())) == 2
    assert seen[0].shape == (4, 9, 8, 8) and bool((seen[0][:, 4] == 1).all())
    kind, components = family(name), family(name).load(folder)
    gray = kind.model_latents(
        components.vae.config, kind.encode_image_latents(components.vae, torch.zeros(1, 3, 64, 64))[0]
    )
    assert float((seen[0][:1, 5:] - gray).abs().mean()) < 0.5 * float(seen[0][:1, :4].abs().mean())
    torch.testing.assert_close(seen[0][:2, 5:], seen[0][2:, 5:])


def test_a_single_file_says_its_channels_by_its_shapes(tmp_path, monkeypatch):
    states = {part: random_state(part, config, torch.float32, 0) for part, config in configs_of("sd1").items()}
    save_file(single_file(states, "sd1"), tmp_path / "inpainting.safetensors", metadata={"format": "pt"})
    kind = replace(family("sd1"), layout=tiny_layout("sd1", tmp_path / "configs"))
    loaded = kind.load(tmp_path / "inpainting.safetensors")
    assert loaded.denoiser.conv_in.weight.shape[1] == 9 and inpainting.reads_mask(loaded)


def test_they_are_generated_with_and_not_trained(model, workspace):
    name, folder = model
    assert family_of(folder, "auto", GENERATED) == name
    assert plan_of(job_of(folder, None), workspace).sources.family == name
    with pytest.raises(ProblemsError) as raised:
        family_of(folder)
    assert raised.value.problems[0].code == "model.unsupported-variant"
