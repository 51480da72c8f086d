"""LoRAs that act in the region of their prompt, of every kind; recorded runs are in test_recorded.py."""

import pytest
import torch
from PIL import Image
from torch import nn

from core.families.targets import Target
from core.generation.plan import plan_of
from core.generation.regional import _InRegion
from core.networks.adapter_file import save_lora
from core.networks.kinds import kind_named
from core.networks.network import Network
from core.record.workspace import PROJECT, Workspace
from core.settings.blocks import BlockSize
from core.settings.check import build
from core.settings.job import GenerateJob
from tests.refusals import refused

STARTER = PROJECT / "models" / "starter"


def network_of(kind, **given):
    torch.manual_seed(0)
    layer = nn.Linear(8, 8)
    target = Target("lora_unet_mid_block_attentions_0_transformer_blocks_0_attn1_to_k", "", layer, "", layer)
    own = kind_named(kind).settings
    adapter = kind_named(kind).fresh(target, BlockSize(4, 4.0), own(**given) if own is not None else None, 0)
    for parameter, _ in adapter.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return layer, Network([adapter]), adapter


@pytest.mark.parametrize(("kind", "own"), [("lora", {}), ("loha", {}), ("dora", {"wd_on_output": True}), ("oft", {})])
def test_a_layer_changes_as_much_as_its_region_says(kind, own):
    layer, network, adapter = network_of(kind, **own)
    x = torch.randn(2, 8)
    plain = layer(x)
    network.attach()
    whole = layer(x)
    stack = layer.__dict__["_adapters"]
    stack[0] = _InRegion(adapter, lambda y, x, adapter: y + (adapter.add_to(y, x) - y) / 2)
    torch.testing.assert_close(layer(x), (plain + whole) / 2, rtol=1e-4, atol=1e-5)


def test_a_kind_that_changes_what_a_layer_is_given_is_refused():
    layer, network, adapter = network_of("glora")
    network.attach()
    layer.__dict__["_adapters"][0] = _InRegion(adapter, lambda y, x, adapter: adapter.add_to(y, x))
    with refused("regions.lora-on-input", adapter.name):
        layer(torch.randn(2, 8))


@pytest.mark.parametrize(
    ("kind", "own", "fits"),
    [
        ("glora", {}, False),
        ("ia3", {"all_layers": True, "train_on_input": True}, False),
        ("ia3", {"all_layers": True}, True),
        ("dora", {}, False),
        ("dora", {"wd_on_output": True}, True),
        ("loha", {}, True),
    ],
)
def test_such_files_are_refused_by_name_before_anything_is_loaded(tmp_path, kind, own, fits):
    path = save_lora(tmp_path / "one.safetensors", network_of(kind, **own)[1].saved())
    Image.new("RGB", (64, 64), (255, 0, 0)).save(tmp_path / "map.png")
    generate = {"prompt": "a AND b", "loras": [{"file": str(path)}]}
    groups = {"model": {"base_model": str(STARTER)}, "regions": {"region_map": str(tmp_path / "map.png")}}
    workspace = Workspace(tmp_path / "outputs", PROJECT / "models")

    def plan(**more):
        return plan_of(build(GenerateJob, {"generate": generate | more} | groups), workspace)

    if fits:
        assert plan().requests
        return
    with refused("regions.lora-on-input", "one.safetensors"):
        plan()
    assert plan(network_merge=True).requests and plan(prompt="a b").requests
