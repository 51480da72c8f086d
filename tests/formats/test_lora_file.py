"""LoRA files: written as kohya tools write them, read back exactly, hashed as A1111 hashes them."""

import hashlib
import json
import os
from functools import partial

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save, save_file

from core.formats.tensors.header import read_header
from core.formats.tensors.outline import number_of
from core.formats.tensors.writer import SAFE_NAMES
from core.networks.adapter_file import (
    LoraFile,
    load_finite,
    load_lora,
    lora_outline,
    save_lora,
    to_diffusers,
    write_lora,
)
from tests.lora_layers import layers_of
from tests.recorded_json import recorded_json
from tests.refusals import refused

LAYER = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn1_to_q"
CONV = "lora_unet_down_blocks_0_resnets_0_conv1"
TEXT = "lora_te_text_model_encoder_layers_0_self_attn_q_proj"


def tensors(rank=4, alpha=2.0, conv_rank=2, conv_alpha=1.0):
    draw = torch.Generator().manual_seed(3)

    def random(*shape):
        return torch.randn(shape, generator=draw)

    return {
        f"{LAYER}.lora_down.weight": random(rank, 64),
        f"{LAYER}.lora_up.weight": random(64, rank),
        f"{LAYER}.alpha": torch.tensor(alpha),
        f"{CONV}.lora_down.weight": random(conv_rank, 32, 3, 3),
        f"{CONV}.lora_up.weight": random(32, conv_rank, 1, 1),
        f"{CONV}.alpha": torch.tensor(conv_alpha),
        f"{TEXT}.lora_down.weight": random(rank, 32),
        f"{TEXT}.lora_up.weight": random(32, rank),
        f"{TEXT}.alpha": torch.tensor(alpha),
    }


def test_what_is_saved_is_read_back_bit_for_bit(tmp_path):
    given = tensors()
    path = save_lora(tmp_path / "deep" / "fox.safetensors", given, {"ss_output_name": "fox", "title": "Füchse"})
    lora = load_lora(path)
    assert set(lora.tensors) == set(given)
    assert all(torch.equal(lora.tensors[key], given[key]) for key in given)
    assert lora.metadata["ss_output_name"] == "fox" and lora.metadata["title"] == "Füchse"
    assert lora.path == path and lora.family is None


def test_the_safetensors_library_reads_the_same(tmp_path):
    given = tensors()
    path = save_lora(tmp_path / "fox.safetensors", given, {"ss_epoch": "3"})
    theirs = load_file(path)
    assert all(torch.equal(theirs[key], given[key]) for key in given)
    with safe_open(path, "pt") as file:
        assert file.metadata()["ss_epoch"] == "3"


def test_layers_have_rank_alpha_and_scale(tmp_path):
    modules = layers_of(load_lora(save_lora(tmp_path / "fox.safetensors", tensors())))
    assert set(modules) == {LAYER, CONV, TEXT}
    assert (modules[LAYER].rank, modules[LAYER].alpha, modules[LAYER].scale) == (4, 2.0, 0.5)
    assert (modules[CONV].rank, modules[CONV].scale) == (2, 0.5)


def test_a_missing_alpha_means_alpha_is_the_rank(tmp_path):
    given = {key: value for key, value in tensors().items() if not key.endswith("alpha")}
    modules = layers_of(load_lora(save_lora(tmp_path / "fox.safetensors", given)))
    assert all(module.scale == 1 for module in modules.values())


def test_matrices_are_saved_in_the_wanted_type_and_alphas_exactly(tmp_path):
    given = tensors(alpha=0.1)
    path = save_lora(tmp_path / "fox.safetensors", given, dtype=torch.float16)
    read = load_lora(path)
    assert read.tensors[f"{LAYER}.lora_down.weight"].dtype == torch.float16
    assert torch.equal(read.tensors[f"{LAYER}.lora_down.weight"], given[f"{LAYER}.lora_down.weight"].half())
    assert torch.equal(read.tensors[f"{LAYER}.alpha"], torch.tensor(0.1)), "0.1 in fp16 would be off by 2e-4"


def test_tensors_that_share_memory_or_are_transposed_are_saved_whole(tmp_path):
    base = torch.randn(64, 4)
    given = {f"{LAYER}.lora_down.weight": base.T, f"{LAYER}.lora_up.weight": base}
    read = load_lora(save_lora(tmp_path / "fox.safetensors", given))
    assert torch.equal(read.tensors[f"{LAYER}.lora_down.weight"], base.T)


# ---- hashes ----


def test_a1111_hashes_are_those_of_the_file_with_ss_metadata_only(tmp_path):
    """sd-scripts' rule, computed here from the library's own serialization."""
    given = {
        **tensors(),
        "lora_unet_big.lora_down.weight": torch.randn(8, 40_000),
        "lora_unet_big.lora_up.weight": torch.zeros(4, 8),
    }
    metadata = {"ss_epoch": "3", "modelspec.title": "fox", "ss_tag_frequency": json.dumps({"füchse": {'a "b"': 1}})}
    path = save_lora(tmp_path / "fox.safetensors", given, metadata)
    written = load_lora(path).metadata
    plain = save(given, metadata={key: value for key, value in metadata.items() if key.startswith("ss_")})
    after_header = 8 + int.from_bytes(plain[:8], "little")
    assert len(plain) > 0x110000
    assert written["sshs_model_hash"] == hashlib.sha256(plain[after_header:]).hexdigest()
    assert written["sshs_legacy_hash"] == hashlib.sha256(plain[0x100000:0x110000]).hexdigest()[:8]
    content = path.read_bytes()
    assert (
        written["sshs_model_hash"] == hashlib.sha256(content[8 + int.from_bytes(content[:8], "little") :]).hexdigest()
    )


def test_the_model_hash_does_not_depend_on_metadata_and_small_files_have_the_hash_of_nothing(tmp_path):
    first = load_lora(save_lora(tmp_path / "a.safetensors", tensors(), {"ss_epoch": "1"})).metadata
    second = load_lora(save_lora(tmp_path / "b.safetensors", tensors(), {"ss_epoch": "2", "more": "x" * 1000})).metadata
    assert first["sshs_model_hash"] == second["sshs_model_hash"]
    assert first["sshs_legacy_hash"] == second["sshs_legacy_hash"] == "e3b0c442"


def test_the_same_content_gives_the_same_bytes(tmp_path):
    one = save_lora(tmp_path / "a.safetensors", tensors(), {"ss_epoch": "1", "b": "2"}).read_bytes()
    assert save_lora(tmp_path / "b.safetensors", tensors(), {"ss_epoch": "1", "b": "2"}).read_bytes() == one


# ---- accidents ----


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), 1e6])
def test_values_that_are_not_numbers_are_refused_and_the_old_file_stays(tmp_path, bad):
    path = save_lora(tmp_path / "fox.safetensors", tensors())
    before = path.read_bytes()
    given = tensors()
    given[f"{LAYER}.lora_up.weight"][0, 0] = bad  # 1e6 is infinite in fp16
    with refused("weights.not-finite" if bad != 1e6 else "weights.overflow", f"{LAYER}.lora_up.weight"):
        save_lora(path, given, dtype=torch.float16)
    assert path.read_bytes() == before


def test_a_run_goes_on_in_fp32_where_fp16_cannot_hold_a_weight_and_says_which(tmp_path):
    given = tensors()
    given[f"{LAYER}.lora_up.weight"][0, 0] = 1e6
    (advice,) = write_lora(tmp_path / "fox.safetensors", given, {"ss_epoch": "1"}, torch.float16)
    assert (advice.level, advice.code) == ("advice", "weights.overflow")
    assert f"{LAYER}.lora_up.weight" in advice.what and "fp16" in advice.what
    read = load_lora(tmp_path / "fox.safetensors")
    assert all(torch.equal(read.tensors[key], value) for key, value in given.items())
    assert write_lora(tmp_path / "b.safetensors", given, dtype=torch.bfloat16) == []
    assert load_lora(tmp_path / "b.safetensors").tensors[f"{LAYER}.lora_up.weight"].dtype == torch.bfloat16


@pytest.mark.parametrize("stored", ["float8_e4m3fn", "float8_e5m2"])
def test_an_alpha_in_fp8_is_read_without_torch_and_with_it(tmp_path, stored):
    dtype = getattr(torch, stored)
    numbers = torch.arange(256, dtype=torch.uint8).view(dtype)
    ours = torch.tensor([number_of(bytes([byte]), SAFE_NAMES[stored]) for byte in range(256)])
    assert torch.equal(ours.nan_to_num(7.25), numbers.float().nan_to_num(7.25))
    path, name = tmp_path / "a.safetensors", next(name for name in tensors() if name.endswith(".alpha"))
    for value in (2.0, -0.375, torch.nan):
        save_file(tensors() | {name: torch.tensor(value).to(dtype)}, path)
        for read in (lora_outline, load_finite, partial(load_lora, shapes=True)):
            if value == value:
                assert float(read(path).tensors[name]) == value
                continue
            with refused("weights.not-finite", name):
                read(path)


def test_a_large_alpha_is_no_reason_to_refuse_fp16(tmp_path):
    assert write_lora(tmp_path / "fox.safetensors", tensors(alpha=70_000.0), dtype=torch.float16) == []


def test_a_disk_that_fills_up_in_mid_save_leaves_the_old_file_whole(tmp_path, monkeypatch):
    path = save_lora(tmp_path / "fox.safetensors", tensors())
    before = path.read_bytes()

    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        save_lora(path, tensors(alpha=4.0))
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["fox.safetensors"], "nothing half-written stays"


@pytest.mark.parametrize(
    ("content", "code", "fact"),
    [
        ({"encoder.conv_in.weight": torch.zeros(2, 3, 3, 3)}, "lora.not-a-lora", "VAE"),
        ({"emb_params": torch.zeros(1, 768)}, "lora.not-a-lora", "SD 1.x textual inversion embedding"),
        (
            {f"{LAYER}.hada_w1_a": torch.zeros(2, 2), f"{LAYER}.hada_w1_b": torch.zeros(2, 2)},
            "lora.incomplete",
            "hada_w2_a",
        ),
        ({f"{LAYER}.lora_down.weight": torch.zeros(2, 4)}, "lora.incomplete", "lora_"),
        ({f"{LAYER}.lora_up.weight": torch.zeros(2, 4)}, "lora.incomplete", "lora_"),
        (
            {f"{LAYER}.lora_down.weight": torch.zeros(2, 4), f"{LAYER}.lora_up.weight": torch.zeros(4, 3)},
            "lora.incomplete",
            "rank",
        ),
        (
            {
                f"{LAYER}.{name}": torch.zeros(2, 2)
                for name in ("lora_down.weight", "lora_up.weight", "lora_side.weight")
            },
            "lora.incomplete",
            "lora_side.weight",
        ),
    ],
)
def test_what_is_no_plain_lora_is_refused_by_its_name(tmp_path, content, code, fact):
    save_file(content, tmp_path / "x.safetensors")
    with refused(code, fact):
        load_lora(tmp_path / "x.safetensors")


# ---- against sd-scripts and diffusers ----


@pytest.mark.parametrize("case", ["sd15/lora_lierla", "sd15/lora_c3lier", "sd15/lora_block_dims"])
def test_the_files_of_sd_scripts_are_read_and_written_with_the_same_keys(tmp_path, case):
    shapes = recorded_json("network_keys")["cases"][case]["keys"]
    path = save_lora(
        tmp_path / "x.safetensors", {key: torch.ones(shape) for key, shape in shapes.items()}, dtype=torch.float16
    )
    assert {key: list(entry.shape) for key, entry in read_header(path)[0].items()} == shapes
    lora = load_lora(path)
    assert lora.family == "sd1" and 3 * len(layers_of(lora)) == len(shapes)


def test_the_export_has_peft_names_and_the_same_change_of_weights(tmp_path):
    lora = load_lora(save_lora(tmp_path / "x.safetensors", tensors(alpha=3.0)))
    exported, metadata = to_diffusers(lora, fold_alpha=True)
    assert set(exported) == {
        f"{path}.lora_{matrix}.weight"
        for path in (
            "unet.mid_block.attentions.0.transformer_blocks.0.attn1.to_q",
            "unet.down_blocks.0.resnets.0.conv1",
            "text_encoder.text_model.encoder.layers.0.self_attn.q_proj",
        )
        for matrix in "AB"
    }
    module = layers_of(lora)[LAYER]
    path = "unet.mid_block.attentions.0.transformer_blocks.0.attn1.to_q"
    change = exported[f"{path}.lora_B.weight"] @ exported[f"{path}.lora_A.weight"]
    torch.testing.assert_close(change, 0.75 * module.up @ module.down, rtol=0, atol=1e-6)
    assert all(isinstance(value, str) for value in metadata.values())


def test_the_export_reads_back_as_the_same_lora(tmp_path):
    lora = load_lora(save_lora(tmp_path / "x.safetensors", tensors(alpha=2.0)))
    exported, metadata = to_diffusers(lora, fold_alpha=True)
    save_file(exported, tmp_path / "peft.safetensors", metadata=metadata)
    again = load_lora(tmp_path / "peft.safetensors")
    assert set(layers_of(again)) == set(layers_of(lora))
    for name, module in layers_of(lora).items():
        theirs = layers_of(again)[name]
        assert theirs.scale == 1 and torch.equal(theirs.up, module.up * module.scale)


def test_peft_files_with_alphas_in_their_metadata_are_read(tmp_path):
    path = "unet.mid_block.attentions.0.transformer_blocks.0.attn1.to_q"
    content = {f"{path}.lora_A.weight": torch.zeros(4, 64), f"{path}.lora_B.weight": torch.zeros(64, 4)}
    settings = {"unet.r": 4, "unet.lora_alpha": 8, "unet.alpha_pattern": {}}
    save_file(content, tmp_path / "x.safetensors", metadata={"lora_adapter_metadata": json.dumps(settings)})
    assert layers_of(load_lora(tmp_path / "x.safetensors"))[LAYER].scale == 2
    settings["unet.alpha_pattern"] = {path.removeprefix("unet."): 2}
    save_file(content, tmp_path / "x.safetensors", metadata={"lora_adapter_metadata": json.dumps(settings)})
    assert layers_of(load_lora(tmp_path / "x.safetensors"))[LAYER].scale == 0.5


def test_an_export_of_a_layer_of_no_part_is_refused():
    lora = LoraFile(
        {"lora_prior_x.lora_down.weight": torch.zeros(1, 1), "lora_prior_x.lora_up.weight": torch.zeros(1, 1)}
    )
    with refused("lora.unknown-layer"):
        to_diffusers(lora)
