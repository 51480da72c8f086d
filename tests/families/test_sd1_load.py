"""Loading SD 1.x models: from a folder and from a file, offline, in the compute type; what is wrong is named."""

import gc
import json
import os
import shutil
import sys
from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusionPipeline
from safetensors.torch import load_file, save_file

from core.diffusion.text_states import Conditioning
from core.families import part_shapes, published_shapes
from core.families.part_shapes import make_empty
from core.families.sd1 import FAMILY as sd1
from core.formats.hashes import HashMemo
from core.generation.plan.plan import check_task
from core.record.cancel import Cancelled, CancelToken
from core.record.problems import ProblemsError
from core.record.workspace import Workspace
from core.settings.check import build
from core.settings.job import GenerateJob
from tests.models import SD15_NUMBERS, TINY, random_state, shipped_config, single_file_tensor, tiny_sd1
from tests.offline import no_network
from tests.refusals import refused

STARTER = Path(__file__).parents[2] / "models" / "starter"


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return tiny_sd1(tmp_path_factory.mktemp("load") / "tiny")


@pytest.fixture
def copy(tmp_path, tiny):
    return Path(shutil.copytree(tiny, tmp_path / "copy"))


def problems_of(*arguments, **named):
    with pytest.raises(ProblemsError) as caught:
        sd1.load(*arguments, **named)
    return caught.value.problems


def change(path, edit):
    state = load_file(path)
    edit(state)
    save_file(state, path)


# ---- the same as diffusers ----


@pytest.mark.parametrize("part", SD15_NUMBERS)
def test_a_part_of_the_shipped_config_has_the_published_size(part):
    assert sum(weight.numel() for weight in make_empty(part, shipped_config(part)).parameters()) == SD15_NUMBERS[part]


@pytest.fixture(scope="module")
def starters():
    """The starter as it is loaded here and by diffusers."""
    with no_network():
        pipeline = StableDiffusionPipeline.from_pretrained(STARTER, torch_dtype=torch.float32, local_files_only=True)
        return sd1.load(STARTER), pipeline


def test_the_starter_loads_offline_and_equals_what_diffusers_loads(starters):
    ours, theirs = starters
    for one, other in (
        (ours.denoiser, theirs.unet),
        (ours.vae, theirs.vae),
        (ours.text_encoders[0], theirs.text_encoder),
    ):
        state, expected = one.state_dict(), other.state_dict()
        assert set(state) == set(expected) and all(torch.equal(state[key], expected[key]) for key in expected)
    assert ours.prediction == "epsilon" and ours.vae_config["scaling_factor"] == 0.18215 and ours.family == "sd1"


def test_the_parts_compute_what_diffusers_computes(starters):
    ours, pipeline = starters
    draw = torch.Generator().manual_seed(1)
    latents, times = torch.randn(2, 4, 16, 16, generator=draw), torch.tensor([10, 900])
    pixels = torch.rand(1, 3, 64, 48, generator=draw) * 2 - 1
    with torch.no_grad():
        states = sd1.encode_captions(ours, ["a fox, glyph style", "pizza, flat icon"])
        expected, _ = pipeline.encode_prompt(["a fox, glyph style", "pizza, flat icon"], "cpu", 1, False)
        assert torch.equal(states.context, expected)
        assert torch.equal(
            sd1.predict(ours, latents, times, Conditioning(states)),
            pipeline.unet(latents, times, states.context).sample,
        )
        mean, logvar = sd1.encode_image_latents(ours.vae, pixels)
        posterior = pipeline.vae.encode(pixels).latent_dist
        assert torch.equal(mean, posterior.mean) and torch.equal(logvar, posterior.logvar)
        assert mean.shape == (1, 4, 8, 6)
        image = sd1.decode_latents(ours.vae, mean * ours.vae_config["scaling_factor"])
        torch.testing.assert_close(image, pipeline.vae.decode(mean).sample, rtol=1e-4, atol=1e-4)
    assert image.shape == pixels.shape


# ---- what comes back ----


@pytest.mark.slow
def test_parts_are_frozen_whole_and_in_the_wanted_type(tiny):
    loaded = sd1.load(tiny, dtype=torch.bfloat16)
    for module, dtype in (
        (loaded.denoiser, torch.bfloat16),
        (loaded.text_encoders[0], torch.bfloat16),
        (loaded.vae, torch.float32),
    ):
        assert not module.training
        for tensor in [*module.parameters(), *module.buffers()]:
            assert not tensor.is_meta and not tensor.requires_grad
            assert tensor.dtype == dtype or not tensor.is_floating_point()
    assert sd1.load(tiny, parts=("vae",), vae_dtype=torch.float16).vae.dtype == torch.float16
    ids = loaded.text_encoders[0].embeddings.position_ids
    assert torch.equal(ids, torch.arange(77)[None]), "no file holds these"


def test_only_the_parts_asked_for_are_loaded(tiny):
    loaded = sd1.load(tiny, parts=("denoiser",))
    assert loaded.denoiser is not None and loaded.vae is None
    assert loaded.text_encoders == [] and loaded.tokenizers == []
    assert loaded.vae_config["scaling_factor"] == 0.18215, "cached latents need it without the VAE"
    words = sd1.load(tiny, parts=("text_encoders", "tokenizers"))
    assert words.denoiser is None and len(words.text_encoders) == len(words.tokenizers) == 1


@pytest.mark.slow
def test_nothing_of_a_file_stays_mapped_or_shared(copy):
    loaded = sd1.load(copy)
    before = loaded.denoiser.conv_in.weight.clone()
    (copy / "unet" / "diffusion_pytorch_model.safetensors").write_bytes(b"")
    assert torch.equal(loaded.denoiser.conv_in.weight, before)
    storages = [tensor.untyped_storage().data_ptr() for tensor in loaded.denoiser.parameters()]
    assert len(set(storages)) == len(storages), "a part that is let go frees its memory"


def test_loading_leaves_the_interpreter_as_it_was(tiny):
    interval = sys.getswitchinterval()
    sd1.load(tiny, parts=("vae",))
    assert gc.isenabled() and sys.getswitchinterval() == pytest.approx(interval)


def test_a_v_model_and_another_scaling_are_told_by_the_folder(copy):
    scheduler = copy / "scheduler" / "scheduler_config.json"
    scheduler.write_text(json.dumps({**json.loads(scheduler.read_text()), "prediction_type": "v_prediction"}))
    config = copy / "vae" / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "scaling_factor": 0.5}))
    loaded = sd1.load(copy, parts=("denoiser",))
    assert loaded.prediction == "v" and loaded.vae_config["scaling_factor"] == 0.5


def test_another_vae_replaces_the_models_own(tmp_path, tiny):
    config = {**shipped_config("vae"), **TINY["vae"]}
    other = random_state("vae", config, torch.float32, seed=9)
    (tmp_path / "vae").mkdir()
    (tmp_path / "vae" / "config.json").write_text(json.dumps({**config, "scaling_factor": 0.25}))
    save_file(other, tmp_path / "vae" / "diffusion_pytorch_model.safetensors")
    loaded = sd1.load(tiny, parts=("vae",), vae=tmp_path / "vae")
    assert (
        torch.equal(loaded.vae.quant_conv.weight, other["quant_conv.weight"])
        and loaded.vae_config["scaling_factor"] == 0.25
    )
    assert sd1.digest(tiny, "vae", vae=tmp_path / "vae") != sd1.digest(tiny, "vae")


def test_digests_are_remembered_and_told(tmp_path, tiny):
    memo = HashMemo(tmp_path / "memo.json")
    loaded = sd1.load(tiny, memo=memo)
    assert set(loaded.hashes) == {"unet", "vae", "text_encoder"}
    assert loaded.hashes["vae"] == sd1.digest(tiny, "vae", memo=memo) == sd1.digest(tiny, "vae")


def test_weight_bytes_are_what_loading_takes(tiny):
    loaded = sd1.load(tiny)
    sizes = sd1.weight_bytes(tiny, 2)
    for name, module in (("unet", loaded.denoiser), ("vae", loaded.vae), ("text_encoder", loaded.text_encoders[0])):
        assert sizes[name] == 2 * sum(value.numel() for value in module.parameters())


def test_loading_can_be_cancelled(tiny):
    token = CancelToken()
    token.cancel()
    with pytest.raises(Cancelled):
        sd1.load(tiny, cancel=token)


@pytest.mark.slow
def test_old_folders_with_old_names_load_the_same(copy, tiny):
    """Before 2023: pickles, `text_model.` and position_ids in the text encoder, other names in the VAE's attention."""
    text = copy / "text_encoder" / "model.safetensors"
    state = {f"text_model.{key}": value for key, value in load_file(text).items()}
    state["text_model.embeddings.position_ids"] = torch.arange(77)[None].half()
    torch.save(state, copy / "text_encoder" / "pytorch_model.bin")
    text.unlink()
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    vae = copy / "vae" / "diffusion_pytorch_model.safetensors"
    renamed = {}
    for key, value in load_file(vae).items():
        for new, name in old.items():
            key = key.replace(f".attentions.0.{new}.", f".attentions.0.{name}.")
        renamed[key] = value
    vae.unlink()
    torch.save(renamed, copy / "vae" / "diffusion_pytorch_model.bin")
    one, other = sd1.load(copy), sd1.load(tiny)
    for mine, theirs in ((one.vae, other.vae), (one.text_encoders[0], other.text_encoders[0])):
        state, expected = mine.state_dict(), theirs.state_dict()
        assert set(state) == set(expected) and all(torch.equal(state[key], expected[key]) for key in expected)


@pytest.mark.slow
def test_linear_and_1x1_projections_are_both_accepted(copy, tiny):
    """Some conversions store proj_in and proj_out as matrices where the config says convolution."""

    def flatten(state):
        for key in state:
            if key.endswith(("proj_in.weight", "proj_out.weight")):
                state[key] = state[key][:, :, 0, 0].contiguous()

    change(copy / "unet" / "diffusion_pytorch_model.safetensors", flatten)
    one, other = (
        sd1.load(copy, parts=("denoiser",)).denoiser.state_dict(),
        sd1.load(tiny, parts=("denoiser",)).denoiser.state_dict(),
    )
    assert all(torch.equal(one[key], other[key]) for key in other)


# ---- what is wrong is named ----


@pytest.mark.slow
def test_missing_unknown_and_misshapen_tensors_are_all_named(copy):
    def spoil(state):
        for _ in range(7):
            del state[next(key for key in state if key.startswith("down_blocks.0.resnets"))]
        state["extra.weight"] = torch.zeros(1)
        state["conv_in.weight"] = torch.zeros(16, 4, 3, 3)

    change(copy / "unet" / "diffusion_pytorch_model.safetensors", spoil)
    lacks, unknown, shape = problems_of(copy, parts=("denoiser",))
    assert [each.code for each in (lacks, unknown, shape)] == ["model.other-tensors"] * 2 + ["model.other-sizes"]
    assert "7 tensors: down_blocks.0.resnets" in lacks.what and lacks.what.endswith("and 2 more")
    assert "1 unknown tensor: extra.weight" in unknown.what
    assert "conv_in.weight 16x4x3x3 instead of 32x4x3x3" in shape.what
    assert all(problem.where == str(copy / "unet") and problem.fix for problem in (lacks, unknown, shape))


def test_a_single_file_of_other_sizes_is_said_to_need_its_folder(tmp_path):
    tensors = {}
    for name, config in TINY.items():
        for key, value in random_state(name, {**shipped_config(name), **config}, torch.float32).items():
            tensors.update([single_file_tensor(name, key, value)])
    save_file(tensors, tmp_path / "tiny.safetensors")
    (problem,) = [
        found
        for found in problems_of(tmp_path / "tiny.safetensors", parts=("vae",))
        if found.code == "model.other-sizes"
    ]
    assert ": decoder.conv_in.bias 32 instead of 512; " in problem.what
    assert "diffusers folder" in problem.fix
    asked = build(
        GenerateJob, {"model": {"base_model": str(tmp_path / "tiny.safetensors")}, "generate": {"prompt": "x"}}
    )
    with refused("model.other-sizes"):  # before anything is loaded
        check_task(asked, Workspace(tmp_path / "outputs", tmp_path))


def test_a_file_without_a_part_says_which(tmp_path):
    unet = random_state("unet", {**shipped_config("unet"), **TINY["unet"]}, torch.float32)
    tensors = dict(single_file_tensor("unet", key, value) for key, value in unet.items())
    tensors["cond_stage_model.transformer.text_model.final_layer_norm.bias"] = torch.zeros(768)
    save_file(tensors, tmp_path / "pruned.safetensors")
    (problem,) = problems_of(tmp_path / "pruned.safetensors")
    assert problem.code == "model.missing-part" and "VAE" in problem.what and "set a VAE" in problem.fix


@pytest.mark.parametrize(
    ("name", "content", "code", "words"),
    [
        (
            "xl",
            {"model.diffusion_model.label_emb.0.0.weight": (1280, 2816)},
            "model.other-family",
            "an SDXL checkpoint; this job works with SD 1.x",
        ),
        ("lora", {"lora_te1_x.lora_down.weight": (4, 8)}, "model.not-a-checkpoint", "but: SDXL LoRA"),
        ("odd", {"a": (1, 1)}, "model.not-a-checkpoint", "but: model of an unknown kind"),
    ],
)
def test_what_is_no_sd1_model_is_refused_by_its_name(tmp_path, name, content, code, words):
    path = tmp_path / f"{name}.safetensors"
    save_file({key: torch.zeros(shape, dtype=torch.float16) for key, shape in content.items()}, path)
    (problem,) = problems_of(path)
    assert problem.code == code and words in problem.what and problem.where == str(path) and problem.fix


def test_missing_empty_and_broken_paths_are_named(tmp_path, copy):
    assert problems_of(tmp_path / "none.safetensors")[0].code == "file.missing"
    assert problems_of(tmp_path)[0].code == "model.empty-folder"
    weights = copy / "unet" / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    assert problems_of(copy)[0].code == "model.truncated"


@pytest.mark.parametrize(
    ("change", "built"),
    [
        ({}, False),
        ({"_name_or_path": "x", "torch_dtype": "x"}, False),
        ({"sample_size": 64}, True),
        ({"flip_sin_to_cos": 1}, True),
        ({"act_fn": "no such function"}, True),
        ({"_class_name": 5}, True),
    ],
)
def test_the_starter_is_checked_without_building_it_unless_its_config_is_another_one(
    tmp_path, monkeypatch, change, built
):
    folder = Path(shutil.copytree(STARTER, tmp_path / "starter", copy_function=os.symlink))
    config = folder / "unet" / "config.json"
    text = json.dumps(json.loads(config.read_text()) | change)
    config.unlink()  # a link
    config.write_text(text)
    made, make = [], part_shapes.make_empty
    monkeypatch.setattr(part_shapes, "make_empty", lambda name, *how: made.append(name) or make(name, *how))
    part_shapes.shapes_of.cache_clear()
    problems = sd1.problems(folder)
    assert made == ["unet"] * built and bool(problems) is bool({"act_fn", "_class_name"} & {*change})


def test_a_damaged_starter_does_not_stop_other_models(tmp_path, monkeypatch, tiny):
    (tmp_path / "unet").mkdir()
    (tmp_path / "unet" / "config.json").write_text("{")
    monkeypatch.setattr(published_shapes, "STARTER", tmp_path)
    assert sd1.problems(tiny) == []


@pytest.mark.parametrize("stated", [True, 5, "CLIPTextModel", {}, [None], [[1]]])
def test_a_part_whose_config_names_no_class_is_of_the_usual_one(copy, stated):
    config = copy / "text_encoder" / "config.json"
    content = json.loads(config.read_text())
    config.write_text(json.dumps(content | {"architectures": stated}))
    assert sd1.problems(copy) == []


def swapped_words(content):
    words = content["model"]["vocab"]
    words["fox</w>"], words["cat</w>"] = words["cat</w>"], words["fox</w>"]


@pytest.mark.parametrize(
    ("part", "file", "change"),
    [
        ("text_encoders", "text_encoder/config.json", lambda config: config.update(hidden_act="gelu")),
        ("text_encoders", "text_encoder/config.json", lambda config: config.update(num_attention_heads=1)),
        ("text_encoders", "text_encoder/config.json", lambda config: config.update(layer_norm_eps=0.1)),
        ("text_encoders", "tokenizer/tokenizer.json", swapped_words),
        ("vae", "vae/config.json", lambda config: config.update(norm_num_groups=1)),
    ],
)
def test_the_same_weights_that_compute_otherwise_have_another_digest(tiny, copy, part, file, change):
    assert sd1.digest(copy, part) == sd1.digest(tiny, part)
    content = json.loads((copy / file).read_text())
    change(content)
    (copy / file).write_text(json.dumps(content))
    assert sd1.digest(copy, part) != sd1.digest(tiny, part)
    if part == "vae":
        assert sd1.digest(tiny, part, vae=copy / "vae") == sd1.digest(copy, part)
