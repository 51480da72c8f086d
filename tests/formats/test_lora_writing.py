"""LoRA files written tensor by tensor have the bytes that the safetensors library writes, and tensors wait on the disk as they are."""

from __future__ import annotations

import hashlib
import json

import pytest
import torch
from safetensors.torch import load_file, save

from core.formats.hashes import LEGACY_BYTES, LEGACY_START
from core.formats.tensors.entry import TORCH_NAMES
from core.formats.tensors.header import header_with, read_header
from core.formats.tensors.lazy import as_lazy
from core.formats.tensors.spill import Spill
from core.formats.tensors.writer import LIBRARY_DTYPES, SAFE_NAMES
from core.networks.adapter_file import load_finite, open_lora, save_lora
from core.record.draws import normal
from tests.refusals import refused

LAYERS = ("lora_unet_up_blocks_1_attentions_0_proj_in", "lora_te_text_model_encoder_layers_0_mlp_fc1", "lora_unet_Z")
METADATA = {"ss_output_name": 'fox "a\\b" \n Füchse', "modelspec.title": "glyph", "ss_tag_frequency": "{}"}


def tensors(width=40):
    found = {}
    for number, name in enumerate(LAYERS):
        found |= {f"{name}.lora_up.weight": normal((width, 4), number, "up")}
        found |= {f"{name}.lora_down.weight": normal((4, width), number, "down"), f"{name}.alpha": torch.tensor(2.0)}
    return found


def as_the_library(given, metadata, dtype):
    """The file as it was made before tensors were written one by one: serialized whole by the library, then under another header."""
    ready = {name: value.to(torch.float32 if name.endswith("alpha") else dtype) for name, value in given.items()}
    ours = {key: value for key, value in metadata.items() if key.startswith("ss_")}
    content = save(ready, metadata=ours or None)
    start = 8 + int.from_bytes(content[:8], "little")
    legacy = hashlib.sha256(content[LEGACY_START : LEGACY_START + LEGACY_BYTES]).hexdigest()[:8]
    hashes = {"sshs_model_hash": hashlib.sha256(content[start:]).hexdigest(), "sshs_legacy_hash": legacy}
    header = header_with(content[8:start], metadata | hashes)
    return len(header).to_bytes(8, "little") + header + content[start:]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("metadata", [METADATA, {}])
def test_the_bytes_are_those_of_the_library(dtype, metadata, tmp_path):
    path = save_lora(tmp_path / "lora.safetensors", tensors(), metadata, dtype)
    assert path.read_bytes() == as_the_library(tensors(), metadata, dtype)


@pytest.mark.parametrize("width", [22_000, 23_000, 24_000])  # of 64 KiB at 1 MiB: 8, 56 and all
def test_the_legacy_hash_is_of_its_place_in_the_file(width, tmp_path):
    path = save_lora(tmp_path / "lora.safetensors", tensors(width), METADATA, torch.float16)
    assert path.read_bytes() == as_the_library(tensors(width), METADATA, torch.float16)
    assert read_header(path)[1]["sshs_legacy_hash"] != hashlib.sha256().hexdigest()[:8]


def test_tensors_are_ordered_as_the_library_orders_every_dtype(tmp_path):
    assert set(LIBRARY_DTYPES) == set(TORCH_NAMES)
    given = {name[::-1]: torch.zeros(8, dtype=getattr(torch, type_)) for name, type_ in TORCH_NAMES.items()}
    content = save(given)
    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    assert [header[name]["dtype"] for name in header] == LIBRARY_DTYPES
    assert all(SAFE_NAMES[as_lazy(value).type] == name[::-1] for name, value in given.items())


def test_an_alpha_that_is_an_integer_is_a_float_in_the_file_and_other_integers_stay(tmp_path):
    name = LAYERS[0]
    given = tensors() | {f"{name}.alpha": torch.tensor(4), f"{name}.flag": torch.tensor([True])}
    found = load_file(save_lora(tmp_path / "lora.safetensors", given, dtype=torch.float16))
    assert (found[f"{name}.alpha"].dtype, found[f"{name}.flag"].dtype) == (torch.float32, torch.bool)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int64, torch.bool, torch.float8_e4m3fn])
def test_what_is_spilled_is_read_again_to_the_bit(dtype, tmp_path):
    given = {"a": torch.arange(24).view(2, 3, 4).mT.to(dtype), "empty": torch.zeros(0, 3, dtype=dtype)}
    given |= {"number": torch.tensor(1).to(dtype)}
    with Spill(tmp_path / "not" / "there" / "yet.safetensors") as spill:
        first, second = spill.put(given), spill.put({"b": torch.ones(3)})
        assert second["b"].read().tolist() == [1, 1, 1]  # reading moves no place to write to
        third = spill.put({"c": torch.zeros(2)})
        assert third["c"].read().tolist() == [0, 0]
        for name, value in given.items():
            stored = first[name]
            assert (stored.shape, stored.ndim, stored.numel()) == (tuple(value.shape), value.ndim, value.numel())
            assert stored.read().dtype == dtype
            assert torch.equal(stored.read().float(), value.float())
        assert first["number"].number == 1 and float(first["number"].read()) == 1
        assert torch.equal(second["b"].reshape(3, 1).read(), torch.ones(3, 1))
        assert (second["b"] * 2).read().tolist() == [2, 2, 2]
    assert not list(tmp_path.iterdir())


def test_an_open_file_is_what_a_loaded_one_is(tmp_path):
    path = "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"
    given = {f"{path}.lora_A.weight": normal((4, 40), 0, "a"), f"{path}.lora_B.weight": normal((40, 4), 0, "b")}
    given |= {f"{path}.lora_B.bias": torch.ones(40), f"{path}.lora_magnitude_vector": normal((40,), 0, "m")}
    config = json.dumps({"unet.r": 4, "unet.lora_alpha": 2})
    peft, kohya = tmp_path / "peft.safetensors", save_lora(tmp_path / "kohya.safetensors", tensors())
    header = save(given | {"bundle_emb.fox.clip_l": torch.ones(1, 768)}, metadata={"lora_adapter_metadata": config})
    peft.write_bytes(header)
    for file in (peft, kohya):
        whole = load_finite(file)
        with open_lora(file) as lora:
            for name in ("tensors", "bias_norm", "bundled"):
                stored, there = getattr(lora, name), getattr(whole, name)
                assert stored.keys() == there.keys()
                for key, value in there.items():
                    assert torch.equal(stored[key].read(), value) and tuple(stored[key].shape) == tuple(value.shape)
            assert (lora.metadata, lora.family, lora.left_out) == (whole.metadata, whole.family, whole.left_out)
            assert lora.path == file


def test_an_open_file_with_what_is_no_number_is_refused_by_its_key(tmp_path):
    given = tensors() | {f"{LAYERS[1]}.lora_up.weight": torch.full((40, 4), torch.inf)}
    save_path = tmp_path / "broken.safetensors"
    save_path.write_bytes(save(given))
    with refused("weights.not-finite", f"{LAYERS[1]}.lora_up.weight"), open_lora(save_path):
        pass


def test_stored_tensors_are_saved_and_refused_as_those_in_memory(tmp_path):
    given = tensors() | {f"{LAYERS[1]}.lora_up.weight": torch.full((40, 4), 1e6)}
    with Spill(tmp_path / "lora.safetensors") as spill:
        stored = spill.put(given)
        path = save_lora(tmp_path / "lora.safetensors", stored, METADATA, torch.bfloat16)
        assert path.read_bytes() == as_the_library(given, METADATA, torch.bfloat16)
        with refused("weights.overflow", f"{LAYERS[1]}.lora_up.weight"):
            save_lora(tmp_path / "narrow.safetensors", stored, METADATA, torch.float16)
    assert [each.name for each in tmp_path.iterdir()] == ["lora.safetensors"]
