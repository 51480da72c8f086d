"""One table of kinds: what a kind declares is what detection, names and rules go by, with no list of theirs."""

from dataclasses import replace

import pytest
import torch
from safetensors.torch import save_file

from core.formats.detect import identify
from core.formats.lora.names import layer_name, resembled_kind, to_kohya_key
from core.formats.lora.recognition import ranks_of
from core.formats.tensors.header import read_header
from core.networks.kinds import kinds
from core.settings.network import NETWORK_KINDS

A, B = "toy_a", "toy_b.weight"
LAYER = "down_blocks_1_attentions_0_transformer_blocks_0_attn2_to_k"


@pytest.fixture
def toy(monkeypatch):
    """A kind that no file of the product names, next to those that register."""
    declared = {
        "name": "toy",
        "title": "Toy",
        "forms": ((A, B),),
        "optional": (),
        "prefix": "toy_unet_",
        "uses": {"rank"},
    }
    keys = {"input_keys": (B,), "rank_keys": (B,), "telling_keys": (A,), "module_name": "toys", "looks": None}
    kind = replace(kinds()["loha"], **declared, **keys)
    monkeypatch.setitem(NETWORK_KINDS, "toy", kind)
    return kind


def test_keys_and_prefix_of_a_kind_are_read_in_names(toy):
    assert to_kohya_key(f"toy_unet_{LAYER}.{B}", None) == (f"toy_unet_{LAYER}", B)
    assert to_kohya_key(f"unet.{LAYER.replace('_attn2', '.attn2')}.{B}", "sd1")[1] == B
    assert layer_name(f"toy_unet_{LAYER}") == f"lora_unet_{LAYER}"
    assert resembled_kind([A, "other"]) == "looks like Toy with unknown keys (other)"


@pytest.mark.parametrize("start", ["toy_unet_", "down_blocks.1.other."])
def test_a_file_of_a_kind_is_recognized_by_what_it_declares(toy, tmp_path, start):
    path = tmp_path / "a.safetensors"
    layer = f"{start}{LAYER}" if start == toy.prefix else f"unet.{start}attn2.to_k"
    save_file({f"{layer}.{A}": torch.zeros(8, 3), f"{layer}.{B}": torch.zeros(3, 768)}, path)
    found = identify(path)
    assert (found.kind, found.family) == ("lora", "sd1")
    assert found.network == ("Toy" if start == toy.prefix else None), "its files' layers begin with its prefix"
    if found.network:
        assert ranks_of(read_header(path)[0], found.network, {}) == (3, None)


def test_the_rank_of_a_peft_file_is_read_whatever_its_adapter_is_called(tmp_path):
    path = tmp_path / "a.safetensors"
    layer = "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k"
    save_file({f"{layer}.lora_{side}.my_style.weight": torch.zeros(5, 5) for side in "AB"}, path)
    assert ranks_of(read_header(path)[0], identify(path).network, {}) == (5, None)
