"""Parts of a model in one file and in a folder: the same weights under the same names."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from core.formats.hashes import HashMemo
from core.formats.models.checkpoint import open_checkpoint, open_vae, part_digest, read_part
from core.record.cancel import Cancelled, CancelToken
from tests.models import TINY, random_state, shipped_config, single_file_tensor, tiny_sd1
from tests.refusals import refused


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny_sd1(tmp_path_factory.mktemp("model") / "tiny")


@pytest.fixture(scope="module")
def states():
    return {
        name: random_state(name, {**shipped_config(name), **change}, torch.float32) for name, change in TINY.items()
    }


def in_one_file(states, parts=("unet", "text_encoder", "vae")):
    return dict(single_file_tensor(part, key, value) for part in parts for key, value in states[part].items())


@pytest.fixture(scope="module")
def file(tmp_path_factory, states):
    path = tmp_path_factory.mktemp("model") / "tiny.safetensors"
    save_file(in_one_file(states), path)
    return path


def test_a_file_and_a_folder_have_the_same_names(folder, file):
    one, other = open_checkpoint(folder), open_checkpoint(file)
    assert set(one.parts) == set(other.parts) == {"unet", "vae", "text_encoder"}
    for name, part in one.parts.items():
        assert set(part.locations) == set(other.parts[name].locations)
    assert one.kind.layout == "diffusers" and other.kind.layout == "single_file"
    assert one.parts["unet"].config["cross_attention_dim"] == 32 and other.parts["unet"].config is None


def test_the_weights_are_read_in_the_wanted_type(folder, states):
    part = open_checkpoint(folder).parts["unet"]
    state = read_part(part, torch.bfloat16)
    assert set(state) == set(states["unet"])
    assert all(torch.equal(state[key], value.bfloat16()) for key, value in states["unet"].items())


def test_the_same_weights_have_the_same_digest_in_a_file_and_in_a_folder(folder, file):
    one, other = open_checkpoint(folder).parts, open_checkpoint(file).parts
    for name in one:  # the VAE's attention is linear in one and 1x1 convolutions in the other
        assert part_digest(one[name]) == part_digest(other[name])
    assert len({part_digest(part) for part in one.values()}) == 3


def test_a_changed_weight_changes_the_digest_and_the_memo_notices(tmp_path, folder):
    shutil.copytree(folder, tmp_path / "m")
    memo, path = HashMemo(tmp_path / "memo.json"), tmp_path / "m" / "vae" / "diffusion_pytorch_model.safetensors"
    before = part_digest(open_checkpoint(tmp_path / "m").parts["vae"], memo)
    state = load_file(path)
    state["quant_conv.bias"][0] += 1
    save_file(state, path)
    assert part_digest(open_checkpoint(tmp_path / "m").parts["vae"], memo) != before


def test_position_ids_and_averages_are_left_out(tmp_path, states):
    tensors = in_one_file(states) | {
        "cond_stage_model.transformer.text_model.embeddings.position_ids": torch.arange(77)[None].half(),
        "model_ema.diffusion_modeltime_embed0weight": torch.zeros(2),
        "model_ema.decay": torch.zeros(()),
        "alphas_cumprod": torch.zeros(1000),
        "first_stage_model.loss.discriminator.main.0.weight": torch.zeros(2),
    }
    save_file(tensors, tmp_path / "m.safetensors")
    for name, part in open_checkpoint(tmp_path / "m.safetensors").parts.items():
        assert set(part.locations) == {key.removeprefix("text_model.") for key in states[name]}


def test_files_without_the_text_model_level_are_read_alike(tmp_path, states):
    tensors = {
        key.replace("transformer.text_model.", "transformer."): value for key, value in in_one_file(states).items()
    }
    save_file(tensors, tmp_path / "m.safetensors")
    assert set(open_checkpoint(tmp_path / "m.safetensors").parts["text_encoder"].locations) == set(
        states["text_encoder"]
    )


def test_an_old_pickled_checkpoint_is_read_like_a_safetensors_file(tmp_path, states):
    torch.save({"state_dict": in_one_file(states), "global_step": 1}, tmp_path / "m.ckpt")
    state = read_part(open_checkpoint(tmp_path / "m.ckpt").parts["vae"])
    attention = "encoder.mid_block.attentions.0.to_q.weight"
    assert state[attention].flatten().equal(states["vae"][attention].flatten())


def test_a_folder_of_shards_is_read_whole_and_a_missing_shard_is_named(tmp_path, folder, states):
    shutil.copytree(folder, tmp_path / "m")
    inside = tmp_path / "m" / "unet"
    (inside / "diffusion_pytorch_model.safetensors").unlink()
    keys = sorted(states["unet"])
    names = [f"diffusion_pytorch_model-0000{n}-of-00002.safetensors" for n in (1, 2)]
    weight_map = {}
    for name, some in zip(names, (keys[:300], keys[300:]), strict=True):
        save_file({key: states["unet"][key] for key in some}, inside / name)
        weight_map |= dict.fromkeys(some, name)
    index = inside / "diffusion_pytorch_model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": weight_map}))
    state = read_part(open_checkpoint(tmp_path / "m").parts["unet"])
    assert all(torch.equal(state[key], states["unet"][key]) for key in keys)
    (inside / names[1]).unlink()
    with refused("model.missing-part", names[1]):
        open_checkpoint(tmp_path / "m")


def test_full_precision_is_taken_before_a_16_bit_variant(tmp_path, folder, states):
    shutil.copytree(folder, tmp_path / "m")
    inside = tmp_path / "m" / "text_encoder"
    save_file({key: value.half() for key, value in states["text_encoder"].items()}, inside / "model.fp16.safetensors")

    def dtypes():
        part = open_checkpoint(tmp_path / "m").parts["text_encoder"]
        return {location.entry.dtype for location in part.locations.values()}

    assert dtypes() == {"F32"}
    (inside / "model.safetensors").unlink()
    assert dtypes() == {"F16"}
    (inside / "model.fp16.safetensors").unlink()
    with refused("model.no-weights"):
        open_checkpoint(tmp_path / "m")


@pytest.mark.parametrize("form", ["ldm", "prefixed", "diffusers", "old names", "3-d", "folder", "vae of a model"])
def test_a_vae_is_found_in_every_form(tmp_path, folder, states, form):
    state = {key: value.clone() for key, value in states["vae"].items()}
    ldm = {key.removeprefix("first_stage_model."): value for key, value in in_one_file(states, ["vae"]).items()}
    path = tmp_path / "vae.safetensors"
    if form == "ldm":
        save_file({key: value.contiguous() for key, value in ldm.items()} | {"loss.logvar": torch.zeros(1)}, path)
    elif form == "prefixed":
        save_file({f"first_stage_model.{key}": value.contiguous() for key, value in ldm.items()}, path)
    elif form == "diffusers":
        save_file(state, path)
    elif form in ("old names", "3-d"):
        old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
        renamed = {}
        for key, value in state.items():
            for new, name in old.items():
                if f".attentions.0.{new}." in key:
                    key = key.replace(f".{new}.", f".{name}.")
                    value = value[..., None] if form == "3-d" and value.ndim == 2 else value
            renamed[key] = value
        save_file(renamed, path)
    else:
        path = folder / "vae" if form == "folder" else folder
    part = open_vae(path)
    assert set(part.locations) == set(state)
    loaded = read_part(part)
    assert all(torch.equal(loaded[key].flatten(), value.flatten()) for key, value in state.items())


def test_what_holds_no_vae_says_what_it_is(tmp_path, folder):
    with refused("model.no-vae"):
        open_vae(folder / "unet")
    save_file({"emb_params": torch.zeros(1, 768)}, tmp_path / "x.safetensors")
    with refused("model.not-a-vae", "SD 1"):
        open_vae(tmp_path / "x.safetensors")
    save_file({"decoder.conv_in.weight": torch.zeros(4, 4, 3, 3)}, tmp_path / "half.safetensors")
    with refused("model.not-a-vae", "incomplete"):
        open_vae(tmp_path / "half.safetensors")


def test_reading_stops_when_cancelled(folder):
    token = CancelToken()
    token.cancel()
    with pytest.raises(Cancelled):
        read_part(open_checkpoint(folder).parts["vae"], cancel=token)


def test_weight_bytes_are_those_of_the_numbers(folder, states):
    part = open_checkpoint(folder).parts["unet"]
    count = sum(value.numel() for value in states["unet"].values())
    assert part.weight_bytes() == 4 * count and part.weight_bytes(2) == 2 * count


def test_the_shipped_starter_has_every_part():
    parts = open_checkpoint(Path(__file__).parents[2] / "models" / "starter").parts
    assert {name: len(part.locations) for name, part in parts.items()} == {"unet": 688, "vae": 244, "text_encoder": 68}
