"""scale_weight_norms: how long a layer's change may be."""

import torch
from pytest import approx, mark
from torch import nn

from core.networks.kinds.lora import LoraAdapter
from core.networks.network import Network


def layer_of(name, module, rank=4, alpha=2.0, size=1.0, seed=0):
    layer = LoraAdapter.fresh(name, module.requires_grad_(False), rank, alpha, seed=1)
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        layer.up.copy_(torch.randn(layer.up.shape, generator=draw))
        layer.up.mul_(size / layer.delta().norm().item() if size else 0)
    return layer


def network_of(*sizes):
    modules = [nn.Linear(30, 20), nn.Conv2d(8, 12, 3, padding=1), nn.Linear(16, 16)]
    return Network([layer_of(f"lora_unet_{place}", modules[place], size=size) for place, size in enumerate(sizes)])


@mark.parametrize("module", [nn.Linear(30, 20), nn.Conv2d(8, 12, 3), nn.Conv2d(8, 12, 1)])
@mark.parametrize("alpha", [0.5, 4.0])
def test_the_length_is_that_of_the_whole_product(module, alpha):
    layer = layer_of("lora_unet_x", module, alpha=alpha, size=3.0)
    assert float(layer.norm()) == approx(layer.delta().norm().item(), rel=1e-6) == approx(3, rel=1e-5)


def test_the_length_is_exact_where_up_and_down_nearly_cancel():  # small products of large matrices
    layer = layer_of("lora_unet_x", nn.Linear(40, 40), rank=2, alpha=2.0)
    with torch.no_grad():
        layer.down[1] = -layer.down[0]
        layer.up[:, 1] = layer.up[:, 0] * (1 + 1e-4)
    exact = (layer.up.double() @ layer.down.double()).detach().norm()
    assert float(layer.norm()) == approx(float(exact), rel=1e-5)


def test_only_what_is_too_long_is_shortened_both_factors_by_the_root():
    network = network_of(4.0, 0.9, 0.2)
    before = {key: value.clone() for key, value in network.state_dict().items()}
    facts = network.apply_max_norm(1.0)
    assert (int(facts.scaled), float(facts.mean), float(facts.largest)) == (1, approx(2.1 / 3), approx(1.0))
    after = network.state_dict()
    for part in ("lora_down.weight", "lora_up.weight"):  # |W| = 4 -> 1: each factor is halved
        torch.testing.assert_close(after[f"lora_unet_0.{part}"], before[f"lora_unet_0.{part}"] / 2)
    assert all(torch.equal(after[key], before[key]) for key in before if not key.startswith("lora_unet_0"))
    assert network.adapters["lora_unet_0"].delta().norm().item() == approx(1.0)


def test_a_rank_1_example_by_hand():
    layer = LoraAdapter(
        "lora_unet_x", nn.Linear(2, 2), torch.tensor([[3.0, 4.0]]), torch.tensor([[1.0], [0.0]]), alpha=2.0
    )
    Network([layer]).apply_max_norm(2.5)  # |W| = 2 * 1 * 5 = 10: a quarter of it, each factor a half
    assert layer.down.tolist() == [[1.5, 2.0]] and layer.up.tolist() == [[0.5], [0.0]]


def test_a_fresh_network_stays_as_it_is():  # |W| = 0
    network = network_of(0.0, 0.0)
    before = {key: value.clone() for key, value in network.state_dict().items()}
    facts = network.apply_max_norm(1.0)
    assert (int(facts.scaled), float(facts.largest)) == (0, 0.0)
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())


def test_a_second_time_changes_no_more_than_the_last_digit():
    network = network_of(50.0, 3.0)
    network.apply_max_norm(1.0)
    before = {key: value.clone() for key, value in network.state_dict().items()}
    network.apply_max_norm(1.0)
    for key, value in network.state_dict().items():
        torch.testing.assert_close(value, before[key], rtol=3e-7, atol=0)
