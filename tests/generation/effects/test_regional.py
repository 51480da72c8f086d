"""LoRAs that act in the region of their prompt, of every kind; recorded runs are in test_recorded.py."""

import pytest
import torch
from torch import nn

from core.families.targets import Target
from core.generation.effects.regions import _InRegion
from core.networks.adapter import adapt, forward_with_adapters
from core.networks.kinds import kind_named
from core.settings.blocks import BlockSize


def network_of(kind, **given):
    torch.manual_seed(0)
    layer = nn.Linear(8, 8)
    target = Target("lora_unet_mid_block_attentions_0_transformer_blocks_0_attn1_to_k", "", layer, "", layer)
    own = kind_named(kind).settings
    adapter = kind_named(kind).fresh(target, BlockSize(4, 4.0), own(**given) if own is not None else None, 0)
    for parameter, _ in adapter.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return layer, adapter


ON_OUTPUT = [("lora", {}), ("loha", {}), ("dora", {"wd_on_output": True}), ("oft", {}), ("ia3", {"all_layers": True})]
ON_INPUT = [("dora", {}), ("dora_lokr", {}), ("glora", {}), ("ia3", {"all_layers": True, "train_on_input": True})]


@pytest.mark.parametrize(("kind", "own"), ON_OUTPUT + ON_INPUT)
def test_a_layer_changes_as_much_as_its_region_says(kind, own):
    """Also where the kind changes what the layer is given, and next to another LoRA before it and one after it."""
    layer, adapter = network_of(kind, **own)
    below, above = (other(layer, seed) for seed in (1, 2))
    x, masks = torch.randn(2, 3, 8), torch.tensor([[0.0], [1.0], [0.25]])

    def made(*adapters):
        layer.__dict__["_adapters"] = list(adapters)
        return layer(x)

    adapt(layer, forward_with_adapters)
    limited = _InRegion(adapter, lambda y, start, x, adapter: y + (adapter.changed(start, x) - y) * masks)
    for before in ([], [below]):
        plain, whole = made(*before), made(*before, adapter)
        torch.testing.assert_close(made(*before, limited), plain + (whole - plain) * masks, rtol=1e-4, atol=1e-5)
        assert float((whole - plain).detach().abs().mean()) > 1e-2
    added = above.add_to(torch.zeros_like(x), x)
    torch.testing.assert_close(made(below, limited, above), made(below, limited) + added, rtol=1e-4, atol=1e-5)


def other(layer, seed):
    """A LoRA on the same layer."""
    target = Target(f"lora_unet_{seed}", "", layer, "", layer)
    adapter = kind_named("lora").fresh(target, BlockSize(2, 2.0), None, seed)
    for parameter, _ in adapter.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return adapter
