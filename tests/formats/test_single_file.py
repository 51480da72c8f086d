"""A whole model as one file: the names, shapes and extra tensors that other programs expect, and what diffusers reads."""

import pytest
import torch
from diffusers import AutoencoderKL, StableDiffusionPipeline, StableDiffusionXLPipeline, UNet2DConditionModel
from safetensors.torch import load_file, save_file

from core.families import family
from core.formats.models.checkpoint import open_checkpoint
from core.formats.models.single_file import file_tensors
from core.formats.models.whole_model import ModelFacts
from core.formats.tensors.lazy import in_memory
from tests.models import random_state, tiny_configs
from tests.offline import no_network
from tests.recorded_json import recorded_json
from tests.whole_models import FAMILIES, assert_texts_equal

PIPELINES = {"sd1": StableDiffusionPipeline, "sd2": StableDiffusionPipeline, "sdxl": StableDiffusionXLPipeline}


def test_unknown_keys_of_the_source_survive_as_they_are_and_averages_do_not(tmp_path, sd1):
    extra = {
        "alphas_cumprod": torch.linspace(1, 0, 1000),
        "first_stage_model.loss.logvar": torch.tensor(0.5),
        "somebody.elses": torch.arange(5),
        "model_ema.diffusion_modeltime_embed0weight": torch.zeros(4),
        "model_ema.decay": torch.tensor(0.9999),
        "cond_stage_model.transformer.text_model.embeddings.position_ids": torch.arange(77.0)[None].bfloat16(),
    }
    save_file(load_file(sd1.file) | extra, tmp_path / "source.safetensors")
    for form in ("safetensors", "ckpt"):
        sd1.write(tmp_path / f"m.{form}", form=form, source=tmp_path / "source.safetensors", dtype=torch.float16)
        kept = (
            load_file(tmp_path / f"m.{form}") if form == "safetensors" else load_ckpt(tmp_path / "m.ckpt")["state_dict"]
        )
        for key in ("alphas_cumprod", "first_stage_model.loss.logvar", "somebody.elses"):
            assert torch.equal(kept[key], extra[key]) and kept[key].dtype == extra[key].dtype
        assert not any(key.startswith("model_ema") for key in kept)
        positions = kept["cond_stage_model.transformer.text_model.embeddings.position_ids"]
        assert torch.equal(positions, torch.arange(77)[None]), "bf16 had rounded it"
        assert len(kept) == len(load_file(sd1.file)) + 4


def load_ckpt(path):
    return torch.load(path, map_location="cpu", weights_only=True)


@pytest.mark.slow
def test_a_source_without_the_text_model_level_gives_each_tensor_once(tmp_path, sd1):
    old = {key.replace("transformer.text_model.", "transformer."): value for key, value in load_file(sd1.file).items()}
    old["cond_stage_model.transformer.embeddings.position_ids"] = torch.arange(77)[None]
    save_file(old, tmp_path / "old.safetensors")
    sd1.write(tmp_path / "m.safetensors", source=tmp_path / "old.safetensors")
    written = set(load_file(tmp_path / "m.safetensors"))
    assert written == set(load_file(sd1.file)) | {"cond_stage_model.transformer.text_model.embeddings.position_ids"}


@pytest.mark.slow
def test_epoch_and_step_are_added_to_those_of_a_source_ckpt(tmp_path, sd1):
    torch.save({"state_dict": load_file(sd1.file), "epoch": 3, "global_step": 1000}, tmp_path / "source.ckpt")
    sd1.write(tmp_path / "m.ckpt", form="ckpt", source=tmp_path / "source.ckpt", facts=ModelFacts(epoch=2, step=50))
    written = load_ckpt(tmp_path / "m.ckpt")
    assert (written["epoch"], written["global_step"]) == (5, 1050)
    assert set(written) == {"state_dict", "epoch", "global_step"}
    sd1.write(tmp_path / "n.ckpt", form="ckpt", facts=ModelFacts(epoch=2, step=50))
    assert load_ckpt(tmp_path / "n.ckpt")["global_step"] == 50, "a safetensors source counts nothing"


@pytest.mark.slow
def test_a_ckpt_of_parts_of_larger_memory_holds_those_parts_only(tmp_path, sd1):
    """Weights that are views, as flattened optimizers keep them, must not drag all of it into the file."""
    flat = torch.cat([value.flatten() for value in sd1.trained["unet"].values()])
    views, place = {}, 0
    for key, value in sd1.trained["unet"].items():
        views[key] = flat[place : place + value.numel()].view(value.shape)
        place += value.numel()
    sd1.write(tmp_path / "m.ckpt", {**sd1.trained, "unet": views}, form="ckpt")
    sd1.assert_equal(tmp_path / "m.ckpt")
    assert (tmp_path / "m.ckpt").stat().st_size < 1.3 * sd1.file.stat().st_size


@pytest.mark.slow
@pytest.mark.parametrize("convolutions", [False, True])
def test_sd2_files_have_matrices_whichever_form_the_model_in_memory_has(tmp_path, sd2, convolutions):
    unet = {
        key: value.reshape(*value.shape[:2], *((1, 1) if convolutions else ()))
        if key.endswith(("proj_in.weight", "proj_out.weight"))
        else value
        for key, value in sd2.trained["unet"].items()
    }
    for form, target in (("safetensors", tmp_path / "m.safetensors"), ("diffusers_safetensors", tmp_path / "m")):
        sd2.write(target, {**sd2.trained, "unet": unet}, form)
        sd2.assert_equal(target)
    shapes = {key: value.ndim for key, value in load_file(tmp_path / "m.safetensors").items() if ".proj_in.w" in key}
    assert set(shapes.values()) == {2} and len(shapes) == 16
    file = tmp_path / "m" / "unet" / "diffusion_pytorch_model.safetensors"
    assert {value.ndim for key, value in load_file(file).items() if key.endswith("proj_out.weight")} == {2}


def test_sd1_files_have_convolutions_there(written):
    tensors = load_file(written("sd1", "safetensors"))
    assert {value.ndim for key, value in tensors.items() if key.endswith("proj_in.weight")} == {4}
    assert tensors["first_stage_model.encoder.mid.attn_1.q.weight"].ndim == 4


@pytest.mark.slow
def test_the_layer_that_sd2_never_reads_is_kept_or_made(tmp_path, sd2):
    prefix = "cond_stage_model.model."
    source = load_file(sd2.file)
    sd2.write(tmp_path / "kept.safetensors")
    kept = load_file(tmp_path / "kept.safetensors")
    for key in (f"{prefix}transformer.resblocks.3.attn.in_proj_weight", f"{prefix}text_projection"):
        assert torch.equal(kept[key], source[key])
    sd2.write(tmp_path / "made.safetensors", source=sd2.folder)
    made = load_file(tmp_path / "made.safetensors")
    again = [key for key in made if key.startswith(f"{prefix}transformer.resblocks.3.")]
    assert len(again) == 12
    assert all(torch.equal(made[key], made[key.replace("resblocks.3.", "resblocks.2.")]) for key in again)
    assert torch.equal(made[f"{prefix}text_projection"], torch.ones(32, 32))
    assert torch.equal(made[f"{prefix}logit_scale"], torch.tensor(1.0))


def test_q_k_and_v_stand_in_this_order(sd2, written):
    joined = load_file(written("sd2", "safetensors"))[
        "cond_stage_model.model.transformer.resblocks.1.attn.in_proj_bias"
    ]
    encoder = {key.removeprefix("text_model."): value for key, value in sd2.trained["text_encoder"].items()}
    parts = [encoder[f"encoder.layers.1.self_attn.{letter}_proj.bias"] for letter in "qkv"]
    assert torch.equal(joined, torch.cat(parts))


def test_sdxls_text_projection_is_turned_as_openclip_has_it(sdxl, written):
    """pooled = h @ P in OpenCLIP, h @ W.T in transformers."""
    projection = load_file(written("sdxl", "safetensors"))["conditioner.embedders.1.model.text_projection"]
    assert torch.equal(projection, sdxl.trained["text_encoder_2"]["text_projection.weight"].T)


@pytest.mark.slow
def test_the_projection_as_sd_scripts_reads_it_goes_back_as_it_came(tmp_path, sdxl):
    key = "conditioner.embedders.1.model.text_projection"
    kohya = sdxl.load(sdxl.file, kohya_projection=True).text_encoders[1].state_dict()
    sdxl.write(tmp_path / "m.safetensors", {"text_encoder_2": kohya}, kohya_projection=True)
    assert torch.equal(load_file(tmp_path / "m.safetensors")[key], load_file(sdxl.file)[key])
    sdxl.write(tmp_path / "copied.safetensors", {}, kohya_projection=True)
    assert torch.equal(load_file(tmp_path / "copied.safetensors")[key], load_file(sdxl.file)[key])
    sdxl.write(tmp_path / "n.safetensors", source=sdxl.folder, kohya_projection=True)  # a folder is read right anyway
    wanted = sdxl.trained["text_encoder_2"]["text_projection.weight"].T
    assert torch.equal(load_file(tmp_path / "n.safetensors")[key], wanted)


@pytest.mark.slow
def test_a_model_that_predicts_v_says_so_and_is_read_so(tmp_path, sdxl):
    facts = ModelFacts(prediction="v", zero_terminal_snr=True)
    sdxl.write(tmp_path / "m.safetensors", facts=facts)
    written = load_file(tmp_path / "m.safetensors")
    assert written["v_pred"].numel() == written["ztsnr"].numel() == 0
    assert open_checkpoint(tmp_path / "m.safetensors").kind.prediction == "v"
    sdxl.write(tmp_path / "n.safetensors", source=tmp_path / "m.safetensors")
    assert "v_pred" in load_file(tmp_path / "n.safetensors"), "it survives where nothing else is said"
    sdxl.write(tmp_path / "e.safetensors", source=tmp_path / "m.safetensors", facts=ModelFacts(prediction="epsilon"))
    assert "v_pred" not in load_file(tmp_path / "e.safetensors")


@pytest.mark.slow
def test_another_vae_is_baked_in_with_nothing_left_of_the_old_one(tmp_path, sd1):
    other = random_state("vae", tiny_configs("sd1")["vae"], torch.float32, seed=5)
    save_file(other, tmp_path / "vae.safetensors")
    sd1.write(tmp_path / "m.safetensors", {"unet": sd1.trained["unet"]}, vae=tmp_path / "vae.safetensors")
    found = sd1.load(tmp_path / "m.safetensors", parts=["vae"]).vae.state_dict()
    assert all(torch.equal(found[key], value) for key, value in other.items())
    assert set(load_file(tmp_path / "m.safetensors")) == set(load_file(sd1.file))


@pytest.mark.slow(only=("sd15-sd1",))
@pytest.mark.parametrize(("vectors", "name"), [("sd15", "sd1"), ("sd21", "sd2"), ("sdxl", "sdxl")])
def test_names_and_shapes_of_the_published_sizes_are_those_of_sd_scripts(vectors, name):
    models = recorded_json("checkpoint_keys")["models"]
    module = family(name)
    parts = ["unet", "vae", *module.layout.text_encoders]
    empty = {part: module.make_empty(part).state_dict() for part in parts}
    states = {
        part: {key.removeprefix("text_model."): in_memory(value) for key, value in state.items()}
        for part, state in empty.items()
    }
    ours = {key: list(tensor.shape) for key, tensor in file_tensors(states, name).items()}
    found = {
        part: value if isinstance(value, dict) else models["sd15"]["vae"] for part, value in models[vectors].items()
    }
    expected = {key: entry["shape"] for part in parts for key, entry in found[part].items()}
    assert ours == expected


@pytest.mark.slow
@pytest.mark.parametrize("name", FAMILIES)
def test_diffusers_computes_the_same_from_the_single_file(models, written, name):
    model, file = models[name], written(name, "safetensors")
    inputs = unet_inputs(model)
    with no_network(), torch.no_grad():
        ours = model.load(file, parts=["denoiser", "vae"])
        unet = UNet2DConditionModel.from_single_file(
            file, config=str(model.folder), subfolder="unet", local_files_only=True
        )
        vae = AutoencoderKL.from_single_file(file, config=str(model.folder), subfolder="vae", local_files_only=True)
        for theirs, part in ((unet, "unet"), (vae, "vae")):
            state = theirs.state_dict()
            assert all(torch.equal(state[key], value) for key, value in model.trained[part].items())
        # Where a tensor begins in memory decides which of the CPU's ways of summing is taken: 1e-5, not bits.
        torch.testing.assert_close(unet(**inputs).sample, ours.denoiser(**inputs).sample, rtol=1e-5, atol=1e-5)
        latents = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
        torch.testing.assert_close(vae.decode(latents).sample, ours.vae.decode(latents).sample, rtol=1e-5, atol=1e-5)


def unet_inputs(model):
    draw = torch.Generator().manual_seed(0)
    config = tiny_configs(model.name)["unet"]
    inputs = {
        "sample": torch.randn(1, 4, 16, 16, generator=draw),
        "timestep": torch.tensor([500]),
        "encoder_hidden_states": torch.randn(1, 7, config["cross_attention_dim"], generator=draw),
    }
    if model.name == "sdxl":
        inputs["added_cond_kwargs"] = {
            "text_embeds": torch.randn(1, 48, generator=draw),
            "time_ids": torch.tensor([[64.0, 64, 0, 0, 64, 64]]),
        }
    return inputs


@pytest.mark.slow(but=("sd1",))
@pytest.mark.parametrize("name", FAMILIES)
def test_diffusers_reads_the_texts_of_the_single_file_alike(models, written, name):
    model = models[name]
    with no_network():
        pipeline = PIPELINES[name].from_single_file(
            written(name, "safetensors"), config=str(model.folder), local_files_only=True
        )
    assert_texts_equal(pipeline, model)


@pytest.mark.parametrize("name", FAMILIES)
def test_a_file_written_from_a_file_without_training_is_the_same_file(tmp_path, models, name):
    model = models[name]
    model.write(tmp_path / "m.safetensors", {})
    ours, theirs = load_file(tmp_path / "m.safetensors"), load_file(model.file)
    assert set(ours) == set(theirs)
    assert all(torch.equal(ours[key], value) and ours[key].dtype == value.dtype for key, value in theirs.items())
