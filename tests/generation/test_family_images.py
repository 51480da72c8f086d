"""SD 2.x and SDXL draw what diffusers' own pipelines draw, with and without a LoRA."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, EulerDiscreteScheduler, StableDiffusionPipeline, StableDiffusionXLPipeline
from safetensors.torch import load_file, save_file

from core.families import family
from core.formats.detect import FAMILY_NAMES
from core.generation.model.loras import loras_attached
from core.generation.sample.canvas import decode_pixels
from core.generation.sample.loop import Stage
from core.networks.adapter_file import load_lora, to_diffusers
from core.networks.files import read_network
from core.record.workspace import PROJECT
from core.settings.generation.generate import LoraUse
from tests.lora_layers import layers_of
from tests.models import tiny_folder, tiny_lora
from tests.prompts import encode_prompts
from tests.refusals import refused
from tests.sampling import images, sampled

STARTER = PROJECT / "models" / "starter"
SCHEDULE = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "steps_offset": 1}
PROMPT, NEGATIVE, SEED, STEPS, GUIDANCE = "a fox, flat icon", "red", 11, 4, 4.0


class Model:
    def __init__(self, name, folder):
        self.name, self.folder, self.family = name, tiny_folder(name, folder), family(name)
        self.components = self.family.load(self.folder)

    def pipeline(self):
        kind = StableDiffusionXLPipeline if self.name == "sdxl" else StableDiffusionPipeline
        made = kind.from_pretrained(self.folder, local_files_only=True)
        made.set_progress_bar_config(disable=True)
        return made

    def lora(self, path, conv=False):
        return tiny_lora(self.components, path, conv)


@pytest.fixture(scope="module", params=["sd2", "sdxl"])
def model(request, tmp_path_factory):
    return Model(request.param, tmp_path_factory.mktemp(request.param) / "tiny")


def ours(model, sampler="ddim", width=96, height=64):
    states = encode_prompts(model.components, PROMPT, NEGATIVE)
    latents = sampled(
        model.components,
        states,
        seeds=[SEED],
        width=width,
        height=height,
        sampler=sampler,
        steps=STEPS,
        guidance_scale=GUIDANCE,
    )
    return decode_pixels(model.components.vae, latents)[0].permute(1, 2, 0).numpy()


def theirs(model, pipeline, scheduler, width=96, height=64):
    kind = {"sd2": "v_prediction", "sdxl": "epsilon"}[model.name]
    pipeline.scheduler = scheduler(**SCHEDULE, prediction_type=kind)
    made = pipeline(
        PROMPT,
        negative_prompt=NEGATIVE,
        num_inference_steps=STEPS,
        guidance_scale=GUIDANCE,
        width=width,
        height=height,
        generator=torch.Generator("cpu").manual_seed(SEED),
        output_type="np",
    )
    return made.images[0]


def plain_ddim(**settings):
    return DDIMScheduler(**settings, clip_sample=False, set_alpha_to_one=True)


@pytest.mark.slow(but=("sd2",))
def test_a_seed_gives_diffusers_image(model):
    pipeline = model.pipeline()
    for sampler, scheduler in (("ddim", plain_ddim), ("euler", EulerDiscreteScheduler)):
        mine = ours(model, sampler)
        assert mine.shape == (64, 96, 3) and mine.std() > 0.01
        assert np.abs(mine - theirs(model, pipeline, scheduler)).max() < 1e-4


@pytest.mark.slow
def test_a_lora_on_every_layer_draws_diffusers_image_and_leaves_the_model_as_it_was(model, tmp_path):
    path = model.lora(tmp_path / "all.safetensors")
    before = ours(model)
    with loras_attached(model.components, [LoraUse(file=str(path))], lambda name: path) as report:
        mine = ours(model)
    assert report.loras[0].modules == len(load_file(path)) // 3 and not report.problems
    pipeline = model.pipeline()
    pipeline.load_lora_weights(path.parent, weight_name=path.name, local_files_only=True)
    assert np.abs(mine - theirs(model, pipeline, plain_ddim)).max() < 2e-4
    assert np.abs(mine - before).max() > 0.02, "it is seen"
    assert np.array_equal(ours(model), before)


@pytest.mark.slow(but=("sd2",))
def test_convolutions_too(model, tmp_path):
    path = model.lora(tmp_path / "conv.safetensors", conv=True)
    network = read_network(model.components, path, 1.0)
    assert len(network.adapters) == len(load_file(path)) // 3 and not network.unmatched


@pytest.mark.slow(but=("sd2",))
def test_an_export_for_diffusers_comes_back_as_the_same_lora(model, tmp_path):
    lora = load_lora(model.lora(tmp_path / "own.safetensors", conv=True))
    tensors, metadata = to_diffusers(lora)
    save_file(tensors, tmp_path / "peft.safetensors", metadata)
    again = load_lora(tmp_path / "peft.safetensors")
    if model.name == "sdxl":  # a tiny SD 2's names and sizes are SD 1's
        assert again.family == "sdxl"
    before, after = layers_of(lora), layers_of(again)
    assert set(after) == set(before)
    for name, module in before.items():
        other = after[name]
        assert torch.equal(module.down, other.down) and torch.allclose(module.up * module.scale, other.up * other.scale)


@pytest.mark.slow(but=("sd2",))
def test_a_lora_of_another_family_is_refused(model, starter, tmp_path):
    path = model.lora(tmp_path / "own.safetensors")
    with refused("lora.other-family", FAMILY_NAMES[model.name], "SD 1.x"):
        read_network(starter, path, 1.0)


def test_a_drawn_image_tells_sdxl_its_own_size_and_no_crop():
    assert Stage((832, 1216)).sizes_of("positive") == (1216, 832, 0, 0, 1216, 832)


@pytest.mark.slow(but=("sd2",))
def test_a_batch_draws_what_each_seed_draws_alone(model):
    states = encode_prompts(model.components, PROMPT, NEGATIVE)
    how = {"width": 64, "height": 64, "steps": 2, "guidance_scale": GUIDANCE}
    together = images(model.components, states, seeds=[3, 5], **how)
    alone = images(model.components, states, seeds=[5], **how)[0]
    assert np.abs(np.asarray(together[1], dtype=int) - np.asarray(alone, dtype=int)).max() <= 1


def test_prompts_beyond_a_window_are_read_whole(model):
    long = encode_prompts(model.components, "fox " * 80, "a")
    assert long.positive.context.shape[1] == long.negative.context.shape[1] == 154
    pooled = long.positive.pooled
    assert (pooled is None) == (model.name == "sd2")
