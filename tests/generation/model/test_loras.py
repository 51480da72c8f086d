"""LoRAs in use: the same image as diffusers draws with the same file, and a model that is untouched afterwards."""

from __future__ import annotations

import os
import shutil

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, StableDiffusionPipeline
from safetensors.torch import save_file

from core.families import family
from core.generation.model.library import Scan, find, find_all, prompt_names
from core.generation.model.loras import loras_attached
from core.generation.plan.plan import plan_of
from core.generation.prompt.analysis import findings_of
from core.generation.sample.canvas import decode_pixels
from core.networks.adapter_file import load_lora, save_lora, to_diffusers
from core.networks.sizes import has_large_kernel
from core.record.problems import ProblemsError
from core.record.workspace import PROJECT, Workspace
from core.settings.check import build
from core.settings.generation.generate import LoraUse
from core.settings.job import GenerateJob
from tests.prompts import encode_prompts
from tests.sampling import sampled

STARTER = PROJECT / "models" / "starter"
PROMPT, SEED, STEPS, GUIDANCE = "a fox, flat icon", 11, 5, 4.0
SD1 = {"ss_base_model_version": "sd_v1"}


def random_lora(components, *, conv: bool, seed: int = 0, rank: int = 4, size: float = 0.4):
    """kohya tensors of every layer that a LoRA can hook, random and strong enough to be seen. With conv, 3x3
    convolutions have another rank and alpha, and the other layers several alphas; without, all have alpha 2."""
    made = torch.Generator().manual_seed(seed)
    tensors = {}
    kind = family("sd1")
    targets = [*kind.lora_targets(components.text_encoders[0]), *kind.lora_targets(components.denoiser, conv=conv)]
    for number, target in enumerate(targets):
        weight = target.module.weight
        own_rank, alpha = (
            (rank, 2.0) if not conv else (2, 1.0) if has_large_kernel(target.module) else (rank, 1.0 + number % 3)
        )
        inputs = weight[0].numel()
        down = torch.randn(own_rank, *weight.shape[1:], generator=made) / inputs**0.5
        up = torch.randn(weight.shape[0], own_rank, *(1 for _ in weight.shape[2:]), generator=made)
        up *= size * float(weight.std()) * inputs**0.5 / alpha * own_rank**0.5
        tensors[f"{target.name}.lora_down.weight"] = down
        tensors[f"{target.name}.lora_up.weight"] = up
        tensors[f"{target.name}.alpha"] = torch.tensor(alpha)
    return tensors


@pytest.mark.parametrize("stored", ["float8_e4m3fn", "float8_e5m2"])
def test_an_alpha_in_fp8_acts_as_any(starter, tmp_path, stored):
    tensors = random_lora(starter, conv=False)
    narrow = {key: value.to(getattr(torch, stored)) if "alpha" in key else value for key, value in tensors.items()}
    save_file(narrow, tmp_path / "a.safetensors", SD1)
    with loras_attached(starter, [LoraUse(file="a", strength=1.0)], lambda name: tmp_path / "a.safetensors") as found:
        assert {adapter.alpha for adapter in found.networks[0].adapters.values()} == {2.0}


def our_image(components, uses=()):
    """float32 [H, W, 3] in [0, 1] with these (path, strength) LoRAs."""
    found = {str(path): path for path, _ in uses}
    asked = [LoraUse(file=str(path), strength=strength) for path, strength in uses]
    with loras_attached(components, asked, found.__getitem__):
        states = encode_prompts(components, PROMPT, "")
        latents = sampled(
            components,
            states,
            seeds=[SEED],
            width=128,
            height=128,
            sampler="ddim",
            steps=STEPS,
            guidance_scale=GUIDANCE,
        )
    return decode_pixels(components.vae, latents)[0].permute(1, 2, 0).numpy()


def their_image(path, strength=None):
    """The same by diffusers alone: its pipeline, its reading of the file."""
    pipeline = StableDiffusionPipeline.from_pretrained(
        STARTER, dtype=torch.float32, safety_checker=None, local_files_only=True
    )
    pipeline.set_progress_bar_config(disable=True)
    pipeline.scheduler = DDIMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False, steps_offset=1
    )
    pipeline.load_lora_weights(path.parent, weight_name=path.name, adapter_name="one", local_files_only=True)
    if strength is not None:
        pipeline.set_adapters(["one"], [strength])
    made = pipeline(
        PROMPT,
        num_inference_steps=STEPS,
        guidance_scale=GUIDANCE,
        generator=torch.Generator("cpu").manual_seed(SEED),
        output_type="np",
    )
    return made.images[0]


def distance(one, other) -> float:
    return float(np.abs(one - other).max())


@pytest.fixture(scope="module")
def plain(starter):
    return our_image(starter)


@pytest.mark.slow
def test_a_file_with_one_alpha_draws_diffusers_image(starter, plain, tmp_path):
    path = save_lora(tmp_path / "one_alpha.safetensors", random_lora(starter, conv=False), SD1)
    ours = our_image(starter, [(path, 1.0)])
    assert np.abs(ours - plain).mean() > 0.03  # visible
    assert distance(ours, their_image(path)) < 1e-4


@pytest.mark.slow
def test_strength_is_diffusers_adapter_weight(starter, tmp_path):
    path = save_lora(tmp_path / "one_alpha.safetensors", random_lora(starter, conv=False, seed=1), SD1)
    assert distance(our_image(starter, [(path, 0.5)]), their_image(path, 0.5)) < 1e-4


@pytest.mark.slow
def test_a_file_with_several_alphas_draws_diffusers_image_through_our_export(starter, plain, tmp_path):
    path = save_lora(tmp_path / "conv.safetensors", random_lora(starter, conv=True, size=0.15), SD1)
    tensors, metadata = to_diffusers(load_lora(path))
    export = tmp_path / "conv_diffusers.safetensors"
    save_file(tensors, export, metadata)
    ours = our_image(starter, [(path, 1.0)])
    assert np.abs(ours - plain).mean() > 0.03
    assert distance(ours, their_image(export)) < 1e-4
    assert distance(ours, our_image(starter, [(export, 1.0)])) < 1e-4  # our own reading of the export


@pytest.mark.slow
def test_the_model_is_bit_identical_afterwards_also_after_an_error(starter, plain, tmp_path):
    path = save_lora(tmp_path / "a.safetensors", random_lora(starter, conv=True, size=0.2), SD1)
    before = {
        name: value.clone()
        for part in (starter.denoiser, *starter.text_encoders)
        for name, value in part.state_dict().items()
    }
    our_image(starter, [(path, 1.0), (path, -0.3)])
    with pytest.raises(KeyboardInterrupt), loras_attached(starter, [LoraUse(file="a")], lambda name: path):
        raise KeyboardInterrupt
    after = {
        name: value for part in (starter.denoiser, *starter.text_encoders) for name, value in part.state_dict().items()
    }
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert np.array_equal(our_image(starter), plain)


def test_a_dora_used_before_with_a_merged_lora_is_alone_again_as_it_was(starter, tmp_path):
    target = next(each for each in family("sd1").lora_targets(starter.denoiser) if "attn1_to_q" in each.name)
    weight, names = target.module.weight, f"{target.name}."
    own = {key: value for key, value in random_lora(starter, conv=False).items() if key.startswith(names)}
    lengths = {f"{names}dora_scale": 2 * weight.norm(dim=1, keepdim=True)}
    paths = {
        "lora": save_lora(tmp_path / "lora.safetensors", own, SD1),
        "dora": save_lora(tmp_path / "dora.safetensors", own | lengths, SD1),
    }

    def changed(*names):
        with loras_attached(starter, [LoraUse(file=each) for each in names], paths.__getitem__, len(names) - 1):
            return target.module(torch.eye(weight.shape[1])).detach()

    alone, before = changed("dora"), weight.clone()
    assert not torch.allclose(changed("lora", "dora"), alone, rtol=1e-2)
    assert torch.equal(weight, before) and torch.equal(changed("dora"), alone)


@pytest.mark.slow
def test_strength_0_is_the_plain_image_and_two_halves_are_one_whole(starter, plain, tmp_path):
    path = save_lora(tmp_path / "a.safetensors", random_lora(starter, conv=False), SD1)
    assert np.array_equal(our_image(starter, [(path, 0.0)]), plain)
    whole = our_image(starter, [(path, 1.0)])
    assert distance(our_image(starter, [(path, 0.5), (path, 0.5)]), whole) < 1e-4
    assert distance(our_image(starter, [(path, 1.0), (path, -1.0)]), plain) < 1e-4


def test_everything_wrong_with_the_files_is_said_together_and_nothing_attached(starter, tmp_path):
    wide = {
        "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_k.lora_down.weight": torch.ones(4, 2048),
        "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_k.lora_up.weight": torch.ones(640, 4),
    }
    loha = {"lora_unet_mid_block_attentions_0_proj_in.hada_w1_a": torch.ones(2, 2)}
    other = {
        "lora_unet_mid_block_attentions_9_proj_in.lora_down.weight": torch.ones(2, 8),
        "lora_unet_mid_block_attentions_9_proj_in.lora_up.weight": torch.ones(8, 2),
    }
    for name, tensors in {
        "sdxl": wide,
        "loha": loha,
        "stranger": other,
        "vae": {"encoder.conv_in.weight": torch.ones(1)},
    }.items():
        save_file(tensors, tmp_path / f"{name}.safetensors", {})
    names = ["sdxl", "loha", "stranger", "vae", "missing"]
    uses = [LoraUse(file=name) for name in names]
    workspace = Workspace(outputs=tmp_path / "outputs", models=tmp_path)

    def file_of(name):
        return tmp_path / f"{name}.safetensors" if name != "missing" else find("lora", name, workspace)

    with pytest.raises(ProblemsError) as caught, loras_attached(starter, uses, file_of):
        pass
    expected = [
        ("lora.other-family", "SDXL"),
        ("lora.incomplete", "hada_w1_b"),
        ("lora.no-matching-layers", "stranger"),
        ("lora.not-a-lora", "VAE"),
        ("lora.not-found", "'missing'"),
    ]
    assert caught.value.codes == [code for code, _ in expected]
    assert all(fact in problem.what for (_, fact), problem in zip(expected, caught.value.problems, strict=True))
    assert all(problem.where and problem.fix for problem in caught.value.problems)
    assert not any(hasattr(type(module), "adapts") for module in starter.denoiser.modules())


def test_layers_that_the_model_lacks_are_named_and_the_others_used(starter, plain, tmp_path):
    tensors = random_lora(starter, conv=False)
    tensors["lora_unet_mid_block_attentions_9_proj_in.lora_down.weight"] = torch.ones(4, 8)
    tensors["lora_unet_mid_block_attentions_9_proj_in.lora_up.weight"] = torch.ones(8, 4)
    path = save_lora(tmp_path / "a.safetensors", tensors, SD1)
    with loras_attached(starter, [LoraUse(file="a", strength=0.7)], lambda name: path) as report:
        [problem] = report.problems
        [used] = report.loras
    assert "lora_unet_mid_block_attentions_9_proj_in" in problem.what and (problem.level, problem.code) == (
        "advice",
        "lora.unmatched-layers",
    )
    assert (used.path, used.strength, used.modules) == (path, 0.7, len(tensors) // 3)


def test_loras_are_listed_newest_first_and_found_by_path_label_and_name(starter, tmp_path):
    workspace = Workspace(outputs=tmp_path / "outputs", models=tmp_path / "models")
    places = [
        workspace.models / "loras" / "old.safetensors",
        workspace.models / "loras" / "deep" / "fox.safetensors",
        workspace.runs / "2026-01-01_a" / "checkpoints" / "fox.safetensors",
        workspace.runs / "2026-01-02_b" / "checkpoints" / "fox-000002.safetensors",
    ]
    tensors = {name: value for name, value in list(random_lora(starter, conv=False).items())[:3]}
    for age, place in enumerate(places):
        save_lora(place, tensors, SD1)
        os.utime(place, (1_000_000 + age, 1_000_000 + age))
    (workspace.models / "loras" / "broken.safetensors").write_bytes(b"no model")
    (workspace.runs / "2026-01-02_b" / "state").mkdir()
    save_lora(workspace.runs / "2026-01-02_b" / "state" / "network.safetensors", tensors, SD1)
    *sound, broken = [label for label, _ in Scan(workspace).loras()]
    assert sound == ["2026-01-02_b / fox-000002", "2026-01-01_a / fox", "loras/deep/fox", "loras/old"]
    assert broken.startswith("loras/broken (unreadable: ")
    assert find("lora", str(places[0]), workspace) == places[0]
    assert find("lora", "models/loras/old.safetensors", workspace) == places[0]
    assert find("lora", "loras/old.safetensors", workspace) == places[0]
    assert find("lora", "outputs/runs/2026-01-01_a/checkpoints/fox.safetensors", workspace) == places[2]
    assert find("lora", "Fox", workspace) == places[2]  # the newest of two with this name
    assert find("lora", "loras/deep/fox", workspace) == places[1]
    assert find("lora", "fox-000002.safetensors", workspace) == places[3]
    with pytest.raises(ProblemsError) as caught:
        find("lora", "fxo", workspace)
    assert "fox" in caught.value.problems[0].fix
    with pytest.raises(ProblemsError):
        find("lora", "", workspace)


def test_a_lora_is_found_by_folder_and_name_and_several_of_one_name_are_said(starter, tmp_path):
    space = Workspace(tmp_path / "outputs", tmp_path / "models")
    tensors = {name: value for name, value in list(random_lora(starter, conv=False).items())[:3]}
    places = {
        name: space.models / "loras" / f"{name}.safetensors"
        for name in ("a/same", "b/same", "deep/a/other", "_mine/own", "e\u0301te\u0301")
    }
    for age, place in enumerate(places.values()):
        save_lora(place, {key: value + age for key, value in tensors.items()}, SD1)
        os.utime(place, (1_000_000 - age, 1_000_000 - age))
    for text, name in (
        ("a/same", "a/same"),
        ("b\\same", "b/same"),
        ("Été", "e\u0301te\u0301"),  # macOS writes an accent as a character of its own
        ("loras\\b\\Same.safetensors", "b/same"),
        ("/b/same", "b/same"),
        ("a/other", "deep/a/other"),
        ("deep/a/other", "deep/a/other"),
        ("./a//same", "a/same"),
        ("models/loras/a/same", "a/same"),
        ("_mine/own", "_mine/own"),
    ):
        assert find_all("lora", text, space) == [places[name]]
    for text in ("ame", "e/a/other", "x/same"):
        with pytest.raises(ProblemsError):
            find_all("lora", text, space)
    assert find_all("lora", "same", space) == [places["a/same"], places["b/same"]]
    for name in ("v1", "v2"):
        save_lora(
            space.models / "loras" / f"renamed {name}.safetensors", tensors, SD1 | {"ss_output_name": f"Trained {name}"}
        )
        assert find_all("lora", f"trained {name}", space) == [space.models / "loras" / f"renamed {name}.safetensors"], (
            "A1111's alias"
        )
    save_lora(space.models / "loras" / "copy.safetensors", tensors, SD1 | {"ss_output_name": "Trained v1"})
    with pytest.raises(ProblemsError):
        find_all("lora", "trained v1", space)

    def said(prompt):
        found = findings_of(prompt, prompt_names(space))
        return [(each.problem.code, each.problem.level) for each in found], "".join(each.problem.what for each in found)

    assert said("x <lora:a/same:0.8> <lora:b\\same:1>")[0] == []
    codes, words = said("x <lora:same:0.8>")
    assert codes == [("lora.several", "advice")] and all(str(places[name]) in words for name in ("a/same", "b/same"))
    job = build(GenerateJob, {"generate": {"prompt": "x <lora:same:1>"}, "model": {"base_model": str(STARTER)}})
    notes = plan_of(job, space).notes
    assert [note.code for note in notes] == ["lora.several"]
    shutil.copy(places["a/same"], places["b/same"])
    assert said("x <lora:same:0.8>")[0] == []  # copies


def test_models_are_files_and_folders_and_not_the_parts_of_folders():
    labels = dict(Scan(Workspace(outputs=PROJECT / "no such folder")).checkpoints())
    assert labels["starter"] == STARTER
    assert not any("unet" in label or "vae" in label for label in labels)
