"""DyLoRA: some ranks train at each step, all are used."""

import math
from collections import Counter
from types import SimpleNamespace

import torch
from pytest import fixture, mark
from torch import nn
from torch.nn.functional import linear

from core.networks.adapter import PLUS
from core.networks.network import Network, attached
from core.settings.check import build
from core.settings.job import TrainJob
from core.settings.rules import training_problems

NAMES = {
    "to_q": "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q",
    "wide": "lora_unet_down_blocks_0_resnets_0_conv1",
    "text": "lora_te_text_model_encoder_layers_0_mlp_fc1",
}
RANK, UNIT = 8, 2


def job(**groups):
    sizes = {"kind": "dylora", "rank": RANK, "alpha": 4.0, "conv_rank": RANK, "conv_alpha": 4.0}
    network = sizes | {"train_text_encoder": True} | groups.pop("network", {})
    return build(TrainJob, {"network": network, "dylora": {"unit": UNIT}} | groups)


@fixture
def model():
    torch.manual_seed(0)
    layers = {"to_q": nn.Linear(6, 5), "wide": nn.Conv2d(4, 6, 3, padding=1), "text": nn.Linear(6, 6)}
    return nn.ModuleDict(layers).requires_grad_(False)


def network_of(model, seed=1):
    """As if trained: every number of up has moved."""
    targets = [SimpleNamespace(name=name, path="", parent=model, module=model[key]) for key, name in NAMES.items()]
    made = job()
    network, draw = (
        Network.create(targets, made.network, seed, kind_settings=made.dylora),
        torch.Generator().manual_seed(3),
    )
    for adapter in network.adapters.values():
        adapter.put(adapter.down.detach(), torch.randn(adapter.up.shape, generator=draw))
    return network


@mark.parametrize("micro_batch", [0, 1])
def test_a_pass_trains_one_unit_and_scales_by_the_root_of_the_share(model, micro_batch):
    network, x = network_of(model), torch.randn(3, 6)
    adapter = network.adapters[NAMES["to_q"]]
    network.show(4, micro_batch, ["a", "b", "c"])
    first = adapter.drawn
    with attached(network):
        y = model["to_q"](x)
        y.square().sum().backward()
    scale = 4.0 / RANK * math.sqrt(RANK / (first + UNIT))
    expected = linear(x, model["to_q"].weight, model["to_q"].bias) + linear(linear(x, adapter.down), adapter.up) * scale
    torch.testing.assert_close(y, expected)
    trained = [place for place in range(RANK // UNIT) if adapter.parameters()[2 * place][0].grad is not None]
    assert trained == [first // UNIT] and adapter.parameters()[2 * trained[0] + 1][0].grad.any()


def test_the_gradients_are_those_of_the_whole_product(model):
    network, x = network_of(model), torch.randn(3, 6)
    adapter = network.adapters[NAMES["to_q"]]
    network.show(4, 0, ["a"])
    with attached(network):
        model["to_q"](x).square().sum().backward()
    first = adapter.drawn
    down, up = adapter.down.detach().requires_grad_(), adapter.up.detach().requires_grad_()
    scale = 4.0 / RANK * math.sqrt(RANK / (first + UNIT))
    y = model["to_q"](x) + linear(linear(x, down), up) * scale
    network.hide()
    y.square().sum().backward()
    part = slice(first, first + UNIT)
    torch.testing.assert_close(adapter.parameters()[first][0].grad, down.grad[part])
    torch.testing.assert_close(adapter.parameters()[first + 1][0].grad, up.grad[:, part])


def test_the_rank_is_drawn_evenly_by_seed_step_micro_batch_and_layer(model):
    network = network_of(model)
    q, text = network.adapters[NAMES["to_q"]], network.adapters[NAMES["text"]]

    def drawn(network_, step, micro_batch=0, layer="to_q"):
        network_.show(step, micro_batch, ["a"])
        return network_.adapters[NAMES[layer]].drawn

    steps = range(240)
    first = [drawn(network, step) for step in steps]
    counts = Counter(first)
    assert counts.keys() == {0, 2, 4, 6} and max(counts.values()) < 1.6 * min(counts.values())
    assert first == [drawn(network_of(model), step) for step in steps]
    for other in (
        [drawn(network_of(model, seed=2), step) for step in steps],
        [drawn(network, step, 1) for step in steps],
        [drawn(network, step, 0, "text") for step in steps],
    ):
        assert 30 < sum(one == two for one, two in zip(first, other, strict=True)) < 90  # a quarter by chance
    assert q.micro_step == text.micro_step == (239, 0)


def test_used_it_has_all_ranks_and_no_chance(model):
    network, x = network_of(model), torch.randn(3, 6)
    adapter = network.adapters[NAMES["to_q"]]
    network.show(1, 0, ["a"])
    network.hide()
    with attached(network):
        y = model["to_q"](x)
    torch.testing.assert_close(y, model["to_q"](x) + linear(linear(x, adapter.down), adapter.up) * 0.5)


def test_its_file_is_a_loras_and_its_first_ranks_are_a_smaller_one(model):
    network, image = network_of(model), torch.randn(1, 4, 5, 5)
    tensors = network.saved()
    name = NAMES["wide"]
    assert tensors[f"{name}.lora_down.weight"].shape == (RANK, 4, 3, 3)
    assert tensors[f"{name}.lora_up.weight"].shape == (6, RANK, 1, 1)
    targets = [SimpleNamespace(name=each, path="", parent=model, module=model[key]) for key, each in NAMES.items()]
    lora = Network.from_tensors(tensors, targets)
    with attached(network):
        whole = model["wide"](image)
    with attached(lora):
        torch.testing.assert_close(model["wide"](image), whole)


def test_lora_plus_holds_for_the_up_parts(model):
    adapter = network_of(model).adapters[NAMES["to_q"]]
    roles = {
        role: sum(weight.numel() for weight, own in adapter.parameters() if own == role) for role in ("plain", PLUS)
    }
    assert roles == {"plain": RANK * 6, PLUS: RANK * 5}


@mark.parametrize(
    ("network", "code"),
    [
        ({"rank": 7, "conv_rank": None}, "network.dylora-unit"),
        ({"conv_rank": 4}, "network.dylora-conv-rank"),
        ({"block_dims": ",".join(["8"] * 24 + ["3"])}, "network.dylora-unit"),
        ({"layer_dims": ["attn=5"]}, "network.dylora-unit"),
        ({"rank": 7, "conv_rank": None, "block_dims": ",".join(["8"] * 25), "train_text_encoder": False}, None),
        ({}, None),
    ],
)
def test_ranks_are_multiples_of_the_unit_and_one_for_all_layers(network, code):
    codes = [problem.code for problem in training_problems(job(network=network)) if "dylora" in problem.code]
    assert codes == ([code] if code else [])


def test_torch_compile_is_refused(model):
    codes = [problem.code for problem in training_problems(job(memory={"torch_compile": True}))]
    assert "memory.compile-with-chance" in codes
