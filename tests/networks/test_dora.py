"""DoRA: LyCORIS' formula and files, PEFT's shapes, what the multiplier means."""

import torch
from lycoris.modules.locon import LoConModule
from pytest import mark

from core.networks.kinds.dora import to_magnitude
from core.settings.check import build
from core.settings.job import TrainJob
from core.settings.rules import training_problems
from tests.networks.oracle import LAYERS, NAME, check_equal, input_of, layer_of, live, network_of, random_tensors


def dora(layer, **more):
    return LoConModule("x", layer, lora_dim=4, alpha=2, weight_decompose=True, **more)


@mark.parametrize("layer", LAYERS)
@mark.parametrize("on_out", [True, False])
def test_is_lycoris_weight_decompose(layer, on_out):
    check_equal(lambda module: dora(module, wd_on_out=on_out), layer)


def test_each_row_of_the_weight_has_the_trained_length():
    layer = layer_of("3x3")
    tensors = random_tensors(dora(layer))
    network_of(layer, tensors).merge_to()
    torch.testing.assert_close(
        layer.weight.flatten(1).norm(dim=1), tensors["dora_scale"].flatten().abs(), rtol=1e-5, atol=1e-5
    )


@mark.parametrize("on_out", [True, False])
@mark.parametrize("multiplier", [0.4, -0.5])
def test_the_multiplier_goes_straight_from_the_model_to_the_trained_weight(on_out, multiplier):
    layer = layer_of("linear")
    x, tensors = input_of(layer), random_tensors(dora(layer, wd_on_out=on_out))
    whole = live(layer, x, network_of(layer, tensors))
    part = live(layer, x, network_of(layer, tensors, multiplier))
    torch.testing.assert_close(part, layer(x) + multiplier * (whole - layer(x)), rtol=1e-5, atol=1e-5)
    network_of(layer, tensors, multiplier).merge_to()
    torch.testing.assert_close(layer(x), part, rtol=1e-5, atol=1e-5)


def test_the_gradient_takes_the_norm_as_constant():
    """Section 4.3 of the paper: length / |V| is a factor of the gradient."""
    layer = layer_of("linear")
    x, tensors = input_of(layer), random_tensors(dora(layer))
    network = network_of(layer, tensors)
    up, down = (tensors[f"lora_{side}.weight"].clone().requires_grad_() for side in ("up", "down"))
    magnitude = tensors["dora_scale"].clone().requires_grad_()
    change = layer.weight + up @ down * 0.5
    y = x @ (change * magnitude / change.detach().norm(dim=1, keepdim=True)).t() + layer.bias
    y.square().sum().backward()
    adapter = network.adapters[NAME]
    for parameter in network.parameters():
        parameter.requires_grad_()
    network.attach()
    layer(x).square().sum().backward()
    for parameter, other in zip(network.parameters(), (down, up, magnitude), strict=True):
        torch.testing.assert_close(parameter.grad, other.grad, rtol=1e-4, atol=1e-4)
    assert adapter.magnitude.grad is not None


def test_over_a_turned_layer_the_norm_is_of_what_the_layers_below_make():
    layer = layer_of("linear")
    x, lora = input_of(layer), LoConModule("x", layer, lora_dim=2, alpha=1)
    under, over = network_of(layer, random_tensors(lora), 0.7), network_of(layer, random_tensors(dora(layer)))
    both = live(layer, x, under, over)
    under.merge_to()
    over.merge_to()
    torch.testing.assert_close(layer(x), both, rtol=1e-5, atol=1e-5)


def test_the_norm_is_that_of_what_lies_below_now():
    layer = layer_of("linear")
    x, own, lora = input_of(layer), random_tensors(dora(layer)), LoConModule("x", layer, lora_dim=2, alpha=1)
    network, tensors = network_of(layer, own), random_tensors(lora)
    for below in ([network_of(layer, tensors)], [network_of(layer, tensors)], [network_of(layer, tensors, 0.3)], []):
        expected = live(layer, x, *below, network_of(layer, own))
        assert torch.equal(live(layer, x, *below, network), expected)


@mark.parametrize("layer", ["linear", "3x3"])
def test_the_magnitude_vector_has_pefts_shape(layer):
    scale = random_tensors(dora(layer_of(layer)))["dora_scale"]
    assert to_magnitude(scale).shape == ((24,) if layer == "linear" else (1, 16, 1, 1))


def test_weights_of_which_each_process_has_a_part_are_refused():
    job = build(TrainJob, {"network": {"kind": "dora"}, "sharding": {"deepspeed": True, "zero_stage": 3}})
    assert "network.needs-weights" in [problem.code for problem in training_problems(job)]
