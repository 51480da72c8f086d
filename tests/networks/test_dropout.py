"""What a step leaves out of a LoRA: how much, in which order, and that it depends on the address alone."""

import torch
from pytest import approx, fixture, mark
from torch import nn
from torch.utils.checkpoint import checkpoint

from core.networks.dropout import Dropout, _halves, hashes
from core.networks.kinds.lora import LoraAdapter
from core.networks.network import Network, attached
from core.settings.network import NetworkSettings

LAYER = "lora_unet_down_blocks_0_attentions_0_proj_in"
LINEAR, CONV = (lambda: nn.Linear(12, 10)), (lambda: nn.Conv2d(12, 10, 3, stride=2, padding=1))


def network_on(module, **settings):
    """A trained-looking LoRA of rank 8 on one module."""
    layer = LoraAdapter.fresh(LAYER, module.requires_grad_(False), 8, 4.0, seed=1)
    draw = torch.Generator().manual_seed(2)
    with torch.no_grad():
        layer.up.copy_(torch.randn(layer.up.shape, generator=draw) * 0.3)
    return Network([layer], dropout=Dropout(NetworkSettings(**settings), seed=7))


def through(module, network, x):
    with attached(network):
        return module(x)


@fixture
def tokens():
    return torch.randn(4, 50, 12, generator=torch.Generator().manual_seed(3))


@fixture
def images():
    return torch.randn(4, 12, 8, 6, generator=torch.Generator().manual_seed(3))


def test_the_numbers_are_wellons_hash_of_counter_and_address():  # written out with Python's unlimited integers
    key, layer = 0x1234567890ABCDEF, 0x7EDCBA9876543210
    ours = hashes(torch.tensor([_halves(key)], dtype=torch.int32), _halves(layer), 300)[0].tolist()
    for counter, number in enumerate(ours):
        x = counter ^ (key & 0xFFFFFFFF) ^ (layer & 0xFFFFFFFF)
        x ^= x >> 16
        x = x * 0x21F0AAAD & 0xFFFFFFFF
        x ^= (key >> 32) ^ (layer >> 32)
        x ^= x >> 15
        x = x * 0x735A2D97 & 0xFFFFFFFF
        x ^= x >> 15
        assert number & 0xFFFFFFFF == x


@mark.parametrize("share", [0.1, 0.3, 0.5])
def test_elements_are_dropped_with_their_probability_and_the_rest_makes_up_for_it(share):
    dropout = Dropout(NetworkSettings(network_dropout=share), seed=1)
    dropout.show(3, 0, ["a", "b"], "cpu")
    hidden, factor = dropout.drop_values(torch.ones(2, 5000, 8), LAYER, -1)
    assert factor == approx(1 / (1 - share))
    assert set(hidden.unique().tolist()) == {0.0, 1.0}
    deviation = (share * (1 - share) / hidden.numel()) ** 0.5
    assert float((hidden == 0).float().mean()) == approx(share, abs=5 * deviation)
    # Neighbors, images and ranks are independent: the share of equal pairs is p^2 + (1 - p)^2.
    equal = share**2 + (1 - share) ** 2
    for one, other in ((hidden[:, 1:], hidden[:, :-1]), (hidden[0], hidden[1]), (hidden[..., 0], hidden[..., 1])):
        assert float((one == other).float().mean()) == approx(equal, abs=0.03)


def test_ranks_are_dropped_for_a_whole_image_each_image_its_own(images, tokens):
    dropout = Dropout(NetworkSettings(rank_dropout=0.5), seed=1)
    dropout.show(3, 0, list("abcd"), "cpu")
    hidden, factor = dropout.drop_values(torch.ones(4, 50, 64), LAYER, -1)
    assert factor == 2.0
    unscaled = Dropout(NetworkSettings(rank_dropout=0.5, rank_dropout_scale=False), seed=1)
    unscaled.show(3, 0, list("abcd"), "cpu")
    same, one = unscaled.drop_values(torch.ones(4, 50, 64), LAYER, -1)
    assert one == 1.0 and torch.equal(same, hidden)
    assert bool((hidden == hidden[:, :1]).all()), "the same ranks at every token"
    kept = hidden[:, 0]
    assert all(0.2 < float(row.mean()) < 0.8 for row in kept)  # 64 ranks: 0.5 within five deviations of 0.06
    assert len({tuple(row.tolist()) for row in kept}) == 4
    conv, _ = dropout.drop_values(torch.ones(4, 64, 5, 6), LAYER, 1)
    assert torch.equal(conv[:, :, 0, 0], kept) and bool((conv == conv[:, :, :1, :1]).all())


def test_two_windows_of_a_text_have_masks_of_their_own():
    dropout = Dropout(NetworkSettings(rank_dropout=0.5), seed=1)
    dropout.show(0, 0, ["a", "b"], "cpu")
    hidden, _ = dropout.drop_values(torch.ones(4, 7, 64), LAYER, -1)  # a's two windows, then b's
    assert len({tuple(row.tolist()) for row in hidden[:, 0]}) == 4


@mark.parametrize(("make", "kind"), [(LINEAR, "tokens"), (CONV, "images")])
def test_output_is_the_module_plus_up_of_what_is_left_of_down(make, kind, request):
    x, module = request.getfixturevalue(kind), make()
    network = network_on(module, network_dropout=0.25, rank_dropout=0.25)
    network.show(5, 1, list("abcd"))
    layer, dropout = network.adapters[LAYER], network.dropout
    if isinstance(module, nn.Conv2d):
        down = nn.functional.conv2d(x, layer.down, stride=2, padding=1)
        expected = nn.functional.conv2d(dropout.drop_values(down, LAYER, 1)[0], layer.up)
    else:
        expected = dropout.drop_values(x @ layer.down.t(), LAYER, -1)[0] @ layer.up.t()
    factor = layer.scale / 0.75 / 0.75
    torch.testing.assert_close(through(module, network, x), module(x) + factor * expected)


def test_the_mean_over_many_steps_is_the_output_without_dropout(tokens):
    module = LINEAR()
    network = network_on(module, network_dropout=0.2, rank_dropout=0.2)
    whole = through(module, network, tokens)
    total = torch.zeros_like(whole)
    with torch.no_grad():
        for step in range(400):
            network.show(step, 0, list("abcd"))
            total += through(module, network, tokens)
    size = float((whole - module(tokens)).detach().norm())
    # A mean over 400 of deviations near the size itself
    assert float((total / 400 - whole).detach().norm()) < 0.15 * size


@mark.parametrize("settings", [{"network_dropout": 0.5}, {"rank_dropout": 0.5}, {"module_dropout": 0.9}])
def test_nothing_is_left_out_while_no_images_are_shown(tokens, settings):
    module = LINEAR()
    network, plain = network_on(module, **settings), network_on(module)
    expected = through(module, plain, tokens)
    assert torch.equal(through(module, network, tokens), expected)
    network.show(0, 0, list("abcd"))
    network.hide()
    assert torch.equal(through(module, network, tokens), expected)


def test_a_layer_is_left_out_whole_with_its_probability(tokens):
    module = LINEAR()
    network = network_on(module, module_dropout=0.3)
    plain, whole = module(tokens), through(module, network, tokens)
    left = 0
    for step in range(400):
        network.show(step, 0, list("abcd"))
        output = through(module, network, tokens)
        assert torch.equal(output, plain) or torch.equal(output, whole)
        left += torch.equal(output, plain)
    assert left / 400 == approx(0.3, abs=0.12)  # five deviations


@mark.parametrize(("make", "kind"), [(LINEAR, "tokens"), (CONV, "images")])
@mark.parametrize("settings", [{"network_dropout": 0.5}, {"rank_dropout": 0.5}])
def test_an_image_has_the_same_masks_alone_and_in_any_batch(make, kind, settings, request):
    x, module = request.getfixturevalue(kind), make()
    network = network_on(module, **settings)
    network.show(2, 0, list("abcd"))
    together = through(module, network, x)
    for order in ([2], [3, 0], [1, 2, 3]):
        network.show(2, 0, ["abcd"[place] for place in order])
        torch.testing.assert_close(through(module, network, x[order]), together[order])


@mark.parametrize(("step", "micro_batch", "image"), [(2, 0, "b"), (2, 1, "a"), (3, 0, "a")])
def test_another_step_micro_batch_or_image_has_other_masks(tokens, step, micro_batch, image):
    module = LINEAR()
    network = network_on(module, rank_dropout=0.5, network_dropout=0.5)
    network.show(2, 0, ["a"])
    first = through(module, network, tokens[:1])
    network.show(step, micro_batch, [image])
    assert not torch.equal(through(module, network, tokens[:1]), first)


def test_layers_have_masks_of_their_own():
    dropout = Dropout(NetworkSettings(network_dropout=0.5), seed=1)
    dropout.show(0, 0, ["a"], "cpu")
    one, other = (dropout.drop_values(torch.ones(1, 40, 8), name, -1)[0] for name in ("lora_unet_a", "lora_unet_b"))
    assert 0.3 < float((one == other).float().mean()) < 0.7


@mark.parametrize("settings", [{"network_dropout": 0.5, "rank_dropout": 0.3}, {"module_dropout": 0.5}])
def test_gradients_are_the_same_with_checkpointing_which_computes_forwards_twice(tokens, settings):
    module = LINEAR()
    network = network_on(module, **settings)
    found = []
    for recompute in (False, True):
        network.show(1, 0, list("abcd"))
        with attached(network):
            x = tokens.clone().requires_grad_()
            y = checkpoint(module, x, use_reentrant=False) if recompute else module(x)
            torch.rand(3)  # the global generator moves on in between
            found.append(torch.autograd.grad(y.square().sum(), [x, *network.parameters()], allow_unused=True))
    for one, other in zip(*found, strict=True):
        assert (one is None and other is None) or torch.equal(one, other)


def test_masters_get_float32_gradients_under_bfloat16(tokens):
    module = LINEAR().bfloat16()
    network = network_on(module, network_dropout=0.5)
    network.show(1, 0, list("abcd"))
    through(module, network, tokens.bfloat16()).float().square().sum().backward()
    network.hide()
    assert all(weight.grad.dtype == torch.float32 and bool(weight.grad.any()) for weight in network.parameters())
