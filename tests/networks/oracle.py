"""lycoris-lora as the oracle of its kinds: the same tensors on one layer, there and here."""

from types import SimpleNamespace

import torch
from torch import nn

from core.networks.network import Network, attached

NAME = "lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_attn2_to_k"
LAYERS = {
    "linear": lambda: nn.Linear(12, 24),
    "without bias": lambda: nn.Linear(24, 16, bias=False),
    "1x1": lambda: nn.Conv2d(16, 24, 1),
    "3x3": lambda: nn.Conv2d(12, 16, 3, stride=2, padding=1),
}


def layer_of(name):
    torch.manual_seed(3)
    return LAYERS[name]().requires_grad_(False)


def input_of(layer):
    draw = torch.Generator().manual_seed(4)
    shape = (2, layer.in_channels, 6, 6) if isinstance(layer, nn.Conv2d) else (2, 5, layer.in_features)
    return torch.randn(shape, generator=draw)


def random_tensors(module):
    """The file's tensors of a layer of LyCORIS with every parameter moved."""
    draw = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=draw) * 0.2)
    return {key: value.detach().clone() for key, value in module.state_dict().items()}


def target_of(layer, name=NAME):
    return SimpleNamespace(name=name, path="", parent=None, attribute="", module=layer)


def network_of(layer, tensors, multiplier=1.0, name=NAME):
    network = Network.from_tensors(
        {f"{name}.{key}": value for key, value in tensors.items()}, [target_of(layer)], multiplier
    )
    assert network.adapters and not network.unmatched
    return network


def live(layer, x, *networks):
    with attached(*networks):
        return layer(x).detach()


def check_equal(make, layer_name, multiplier=1.0):
    """Output and merged weight are LyCORIS', and its module made from our file computes the same. make: layer -> its module"""
    layer = layer_of(layer_name)
    x, theirs = input_of(layer), make(layer)
    theirs.multiplier = multiplier
    tensors = random_tensors(theirs)
    network = network_of(layer, tensors, multiplier)
    expected = theirs(x).detach()
    assert (expected - layer(x)).abs().max() > 1e-2
    torch.testing.assert_close(live(layer, x, network), expected, rtol=1e-5, atol=1e-5)
    saved = {key.removeprefix(f"{NAME}."): value for key, value in network.saved().items()}
    assert {key: value.shape for key, value in saved.items()} == {key: value.shape for key, value in tensors.items()}
    theirs.load_state_dict(saved)
    torch.testing.assert_close(theirs(x).detach(), expected, rtol=1e-6, atol=1e-6)
    merged = theirs.get_merged_weight(multiplier, layer.weight.shape)[0].detach()
    network.merge_to()
    torch.testing.assert_close(layer.weight, merged, rtol=1e-5, atol=1e-5)
