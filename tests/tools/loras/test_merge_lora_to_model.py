"""LoRAs merged into checkpoints file to file: what merging into the loaded model gives, for every kind."""

from __future__ import annotations

import json
from functools import cache

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from core.families import family
from core.families.loading import load
from core.formats.tensors.header import read_header
from core.formats.tensors.reading import TensorFile
from core.networks.adapter_file import save_lora
from core.networks.bias_norm import NormAdapter
from core.networks.files import MergedFile, merge_files, targets_of
from core.networks.kinds import kind_named, kinds
from core.networks.network import Network
from core.settings.network import NetworkSettings
from tests.models import tiny_folder, tiny_lora
from tests.refusals import refused
from tests.tools.models.test_convert_model import convert
from tests.tools.models.test_file_metadata import refusals
from tests.tools.test_tools import use

FAMILIES = ("sd1", "sdxl")
KINDS = [name for name in kinds() if name not in ("lora", "lora_fa", "dylora")]  # those are a LoRA in files
PARTS = ("text_encoders", "denoiser")


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """models(family): (folder, single file, a LoRA on every layer)."""
    root = tmp_path_factory.mktemp("models")

    @cache
    def make(name):
        folder = tiny_folder(name, root / name)
        lora = tiny_lora(loaded(name, folder), root / f"{name}_lora.safetensors", conv=True)
        return folder, convert(folder, root / f"{name}.safetensors", save_model_as="safetensors"), lora

    return make


def loaded(name, path):
    return load(family(name).layout, path, parts=PARTS)


def merged(file, *loras, output, **asked):
    given = {"file": str(file), "models": [str(each) for each in loras], "output": str(output)} | asked
    return use(name="merge_lora_to_model", **given)


def assert_equal_models(one, other):
    for ours, theirs in zip((*one.text_encoders, one.denoiser), (*other.text_encoders, other.denoiser), strict=True):
        wanted = theirs.state_dict()
        for key, value in ours.state_dict().items():
            torch.testing.assert_close(value, wanted[key], rtol=1e-5, atol=1e-6, msg=key)


@pytest.mark.slow(but=("sd1",))
@pytest.mark.parametrize("name", FAMILIES)
def test_a_lora_is_merged_as_into_the_loaded_model(name, models, tmp_path):
    folder, file, lora = models(name)
    whole = loaded(name, folder)
    merge_files(whole, [MergedFile(lora, 0.7), MergedFile(lora, -0.2)])
    path, lines = merged(file, lora, lora, ratios="0.7, -0.2", output=tmp_path / "m.safetensors")
    assert_equal_models(loaded(name, path), whole)
    assert "left out" not in "\n".join(lines)
    entries, metadata = read_header(path)
    before = load_file(file)
    assert entries.keys() == before.keys()
    assert json.loads(metadata["sd_merge_recipe"])["loras"][1]["ratio"] == -0.2
    assert metadata["modelspec.merged_from"] == f"{name}, {name}_lora, {name}_lora"


@pytest.mark.slow
@pytest.mark.parametrize("name", FAMILIES)
def test_biases_and_norm_layers_are_merged_with_their_layers(name, models, tmp_path):
    folder, file, lora = models(name)
    draw, whole = torch.Generator().manual_seed(7), loaded(name, folder)
    settings = NetworkSettings(rank=4, conv_rank=4, train_text_encoder=True, train_norm=True)
    network = Network.create(targets_of(whole, norms=True), settings, seed=0)
    biased = [each for each in network.adapters.values() if getattr(each.module, "bias", None) is not None]
    more = {f"{each.name}.diff_b": torch.randn(len(each.module.bias), generator=draw)
            for each in biased if not isinstance(each, NormAdapter)}  # fmt: skip
    more |= {
        key: torch.randn(value.shape, generator=draw) for key, value in network.saved().items() if key.endswith("_norm")
    }
    encoder = f"lora_te{'1' if name == 'sdxl' else ''}_text_model"
    width = len(whole.text_encoders[0].final_layer_norm.weight)
    more |= {f"{encoder}_final_layer_norm.w_norm": torch.randn(width, generator=draw),
             f"{encoder}_encoder_layers_0_layer_norm1.w_norm": torch.randn(width, generator=draw),
             f"{encoder}_encoder_layers_0_layer_norm2.b_norm": torch.ones(width + 1)}  # fmt: skip
    other = save_lora(tmp_path / "other.safetensors", load_file(lora) | more, read_header(lora)[1])
    merge_files(whole, [MergedFile(other, 0.7), MergedFile(lora, -0.2)])
    path, lines = merged(file, other, lora, ratios="0.7, -0.2", output=tmp_path / "m.safetensors")
    assert_equal_models(loaded(name, path), whole)
    assert next(line for line in lines if "left out" in line).endswith("layer_norm2.b_norm")
    for key in (
        "up_blocks.1.resnets.0.norm1.weight",
        "up_blocks.1.attentions.0.norm.bias",
        "mid_block.resnets.0.conv1.bias",
    ):
        assert not torch.equal(whole.denoiser.state_dict()[key], loaded(name, folder).denoiser.state_dict()[key])


@pytest.mark.slow
def test_a_folder_stays_one_unless_the_output_is_named_as_a_file(models, tmp_path):
    folder, _, lora = models("sd1")
    out, _ = merged(folder, lora, ratios="0.5", output=tmp_path / "folder")
    again = loaded("sd1", folder)
    merge_files(again, [MergedFile(lora, 0.5)])
    assert out.is_dir()
    assert_equal_models(loaded("sd1", out), again)
    file, _ = merged(folder, lora, ratios="0.5", output=tmp_path / "one.safetensors")
    assert file.is_file()
    assert_equal_models(loaded("sd1", file), again)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_is_merged_after_another(kind, models, tmp_path):
    folder, file, lora = models("sd1")
    whole, draw = loaded("sd1", folder), torch.Generator().manual_seed(3)
    settings = NetworkSettings(kind=kind, rank=6 if kind == "boft" else 4, conv_rank=4, train_text_encoder=True)
    own = kind_named(kind).settings
    network = Network.create(targets_of(whole), settings, seed=0, kind_settings=own() if own is not None else None)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=draw) * 0.05)
    named = {
        f"{adapter.file_name}.{key}": tensor
        for adapter in network.adapters.values()
        for key, tensor in adapter.saved().items()
    }
    other = save_lora(tmp_path / "other.safetensors", named, {"ss_base_model_version": "sd_v1"})
    merge_files(whole, [MergedFile(lora, 1.0), MergedFile(other, 0.6)])
    path, _ = merged(file, lora, other, ratios="1, 0.6", output=tmp_path / "m.safetensors")
    assert_equal_models(loaded("sd1", path), whole)


@pytest.mark.slow
def test_block_weights_and_precision_hold_and_other_tensors_stay_in_every_byte(models, tmp_path):
    folder, file, lora = models("sd1")
    path, _ = merged(file, lora, lbws=["MIDD"], output=tmp_path / "m.safetensors")
    before, after = load_file(file), load_file(path)
    changed = {key for key, value in after.items() if not torch.equal(value, before[key])}
    unet = "model.diffusion_model."
    assert any(key.startswith("cond_stage_model.") for key in changed)
    assert any(key.startswith(f"{unet}middle_block.") for key in changed)
    assert not any(
        key.startswith((f"{unet}input_blocks.1.", f"{unet}output_blocks.11.", "first_stage")) for key in changed
    )
    half, _ = merged(file, lora, save_precision="fp16", output=tmp_path / "half.safetensors")
    whole = loaded("sd1", folder)
    merge_files(whole, [MergedFile(lora, 1.0)])
    key = f"{unet}middle_block.1.proj_in.weight"
    wanted = whole.denoiser.state_dict()["mid_block.attentions.0.proj_in.weight"]
    assert torch.equal(load_file(half)[key].flatten(), wanted.half().flatten())


@pytest.mark.slow
def test_a_model_without_a_vae_stays_one(models, tmp_path):
    _, file, lora = models("sd1")
    with safe_open(file, "pt") as opened:
        metadata = opened.metadata()
    bare = {key: value for key, value in load_file(file).items() if not key.startswith("first_stage_model.")}
    save_file(bare, tmp_path / "bare.safetensors", metadata)
    path, _ = merged(tmp_path / "bare.safetensors", lora, output=tmp_path / "m.safetensors")
    whole, _ = merged(file, lora, output=tmp_path / "whole.safetensors")
    found, wanted = load_file(path), load_file(whole)
    assert found.keys() == bare.keys() and all(torch.equal(found[key], wanted[key]) for key in found)


@pytest.mark.slow
def test_what_cannot_be_merged_is_refused_and_leaves_nothing(models, tmp_path):
    _, file, lora = models("sd1")
    given = {"name": "merge_lora_to_model", "file": str(file), "output": str(tmp_path / "out.safetensors")}
    other = str(models("sdxl")[2])
    assert refusals(**given, models=[]) == ["tools.no-file-given"]
    assert refusals(**given, models=[other]) == ["lora.other-family"]
    assert refusals(**given, models=[str(lora)], ratios="1, 2") == ["merge.bad-ratios"]
    assert refusals(**given, models=[str(lora)], ratios="x", lbws=["1, 2", "ALL"]) == [
        "merge.bad-ratios", "merge.block-weights", "merge.block-weights"]  # fmt: skip
    assert refusals(**given | {"output": str(file)}, models=[str(lora)]) == ["tools.output-is-input"]
    elsewhere = {
        key.replace("mid_block", "nowhere"): value for key, value in load_file(lora).items() if "mid_block" in key
    }
    save_file(elsewhere, tmp_path / "foreign.safetensors", {"ss_base_model_version": "sd_v1"})
    assert refusals(**given, models=[str(tmp_path / "foreign.safetensors")]) == ["lora.no-matching-layers"]
    wide = {"lora_unet_mid_block_attentions_0_proj_in.lora_up.weight": torch.ones(7, 4),
            "lora_unet_mid_block_attentions_0_proj_in.lora_down.weight": torch.ones(4, 7)}  # fmt: skip
    save_lora(tmp_path / "wide.safetensors", wide, {"ss_base_model_version": "sd_v1"})
    assert refusals(**given, models=[str(tmp_path / "wide.safetensors")]) == ["lora.other-size"]
    assert not (tmp_path / "out.safetensors").exists() and not list(tmp_path.glob(".tmp*"))


@pytest.mark.slow
def test_block_weights_hold_for_the_names_of_sd_scripts_oft(models, tmp_path):
    _, file, _ = models("sd1")
    name = "unet_mid_block_attentions_0_transformer_blocks_0_attn1_to_q"
    width = load_file(file)["model.diffusion_model.middle_block.1.transformer_blocks.0.attn1.to_q.weight"].shape[0]
    blocks = {f"oft_{name}.oft_blocks": torch.randn(4, width // 4, width // 4), f"oft_{name}.alpha": torch.tensor(1.0)}
    save_file(blocks, tmp_path / "oft.safetensors", {"ss_base_model_version": "sd_v1"})
    for lbw, changes in (("OUTS", False), ("MIDD", True)):
        path, _ = merged(file, tmp_path / "oft.safetensors", lbws=[lbw], output=tmp_path / f"{lbw}.safetensors")
        before, after = load_file(file), load_file(path)
        assert any(not torch.equal(after[key], before[key]) for key in before) == changes


def test_layers_that_the_model_lacks_are_said(models, tmp_path):
    _, file, lora = models("sd1")
    more = load_file(lora) | {"lora_unet_up_blocks_9_attentions_0_proj_in.lora_up.weight": torch.ones(8, 4),
                              "lora_unet_up_blocks_9_attentions_0_proj_in.lora_down.weight": torch.ones(4, 8)}  # fmt: skip
    save_lora(
        tmp_path / "more.safetensors", more, {"ss_base_model_version": "sd_v1", "modelspec.license": "CC-BY-NC-4.0"}
    )
    _, lines = merged(file, tmp_path / "more.safetensors", output=tmp_path / "m.safetensors")
    assert any("up_blocks_9" in line for line in lines)
    assert "left out, of the LoRAs: license" in lines


@pytest.mark.parametrize("of", ("model", "lora"))
def test_nan_is_refused_by_tensor_and_file(of, models, tmp_path):
    _, file, lora = models("sd1")
    key, layer = "model.diffusion_model.middle_block.1.proj_in.weight", "lora_unet_mid_block_attentions_0_proj_in"
    path, name = (file, key) if of == "model" else (lora, f"{layer}.lora_up.weight")
    state, bad = load_file(path), tmp_path / "bad.safetensors"
    state[name].flatten()[0] = torch.nan
    save_file(state, bad, read_header(path)[1])
    with refused("weights.not-finite", name, bad.name):
        merged(bad if of == "model" else file, bad if of == "lora" else lora, output=tmp_path / "m.safetensors")
    assert not (tmp_path / "m.safetensors").exists()


def test_a_weight_that_fp16_cannot_hold_is_named(models, tmp_path):
    _, file, lora = models("sd1")
    narrow = convert(file, tmp_path / "fp16.safetensors", save_precision="fp16")
    with refused("merge.overflow", "model.diffusion_model.", lora.name):
        merged(narrow, lora, ratios="1e8", output=tmp_path / "m.safetensors")


def test_each_weight_is_read_once_also_where_it_becomes_narrower(models, tmp_path, monkeypatch):
    _, file, lora = models("sd1")
    counts, read_at = [], TensorFile._read_at
    monkeypatch.setattr(TensorFile, "_read_at", lambda *given: counts.append(read_at(*given)) or counts[-1])
    monkeypatch.setattr("core.formats.tensors.reading.is_cached", lambda handle: True)
    merged(file, lora, save_precision="fp16", output=tmp_path / "half.safetensors")
    assert 0 < sum(counts) <= file.stat().st_size + lora.stat().st_size


@pytest.mark.slow
def test_a_merge_that_fp16_cannot_hold_is_written_in_fp32(models, tmp_path):
    _, file, lora = models("sd1")
    path, lines = merged(file, lora, ratios="1e8", save_precision="fp16", output=tmp_path / "half.safetensors")
    assert any("written in fp32" in line for line in lines) and list(tmp_path.iterdir()) == [path]
    found = [value for value in load_file(path).values() if value.is_floating_point()]
    assert all(value.dtype == torch.float32 and value.isfinite().all() for value in found)
    assert max(float(value.abs().max()) for value in found) > torch.finfo(torch.float16).max
