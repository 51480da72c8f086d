"""How a LoRA starts (kaiming, gaussian, orthogonal, PiSSA) and the rank-stabilized alpha."""

import math
from types import SimpleNamespace

import torch
from peft import LoraConfig, get_peft_model
from pytest import approx, fixture, mark
from torch import nn

from core.networks.fp8 import Fp8Linear, _convert
from core.networks.kinds.initialization import PissaAdapter, largest_singular_triplets
from core.networks.network import Network, attached
from core.settings.check import build
from core.settings.job import TrainJob
from core.settings.network import NetworkSettings
from core.settings.rules import ineffective

NAMES = {
    "q": "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q",
    "wide": "lora_unet_down_blocks_0_resnets_0_conv1",
    "small": "lora_unet_down_blocks_0_attentions_0_proj_in",
}


@fixture
def model():
    torch.manual_seed(0)
    layers = {"q": nn.Linear(64, 48), "wide": nn.Conv2d(8, 20, 3, padding=1), "small": nn.Conv2d(6, 3, 1)}
    return nn.ModuleDict(layers).requires_grad_(False)


INPUTS = {"q": (5, 64), "wide": (2, 8, 6, 6), "small": (2, 6, 4, 4)}


def targets_of(model):
    return [SimpleNamespace(name=name, path="", parent=model, module=model[key]) for key, name in NAMES.items()]


def network_of(model, initialization, seed=1, **settings):
    sizes = {"rank": 4, "alpha": 2.0, "conv_rank": 4, "conv_alpha": 2.0}
    return Network.create(targets_of(model), NetworkSettings(initialization=initialization, **sizes | settings), seed)


def outputs(model, *networks):
    draw = torch.Generator().manual_seed(5)
    with attached(*networks):
        return {key: model[key](torch.randn(shape, generator=draw)) for key, shape in INPUTS.items()}


def moved(network, size=0.05):
    draw = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for weight in network.parameters():
            weight.add_(torch.randn(weight.shape, generator=draw) * size)
    return network


@mark.parametrize("initialization", ["kaiming", "gaussian", "orthogonal", "pissa"])
@mark.parametrize("rank", [1, 3, 4])
def test_a_fresh_one_changes_no_output(model, initialization, rank):
    before = outputs(model)
    after = outputs(model, network_of(model, initialization, rank=rank, conv_rank=rank))
    for key, value in before.items():
        torch.testing.assert_close(after[key], value, rtol=0, atol=1e-5)


@mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_fresh_pissa_kept_in_16_bits_changes_nothing(model, dtype):
    network = network_of(model, "pissa")
    network.to(dtype)
    assert all(float(adapter.delta().abs().max()) == 0 for adapter in network.adapters.values())


@mark.parametrize("initialization", ["gaussian", "orthogonal", "pissa"])
def test_the_draw_is_addressed_by_seed_and_layer(model, initialization):
    one, same, other = (network_of(model, initialization, seed=seed).state_dict() for seed in (1, 1, 2))
    assert all(torch.equal(value, same[key]) for key, value in one.items())
    down = f"{NAMES['q']}.lora_down.weight"
    assert torch.equal(one[down], other[down]) is False


def test_gaussian_has_pefts_spread(model):
    down = network_of(model, "gaussian", rank=32).adapters[NAMES["q"]].down
    assert float(down.detach().std()) == approx(1 / 32, rel=0.05)  # 2,048 numbers


def test_orthogonal_matrices_are_pefts_in_size_and_their_product_is_zero(model):
    adapter = network_of(model, "orthogonal", rank=8).adapters[NAMES["q"]]
    assert (adapter.up @ adapter.down).abs().max() < 1e-7
    torch.manual_seed(1)
    config = LoraConfig(r=8, target_modules=["q"], init_lora_weights="orthogonal")
    theirs = get_peft_model(nn.ModuleDict({"q": nn.Linear(64, 48)}), config).base_model.model["q"]
    pairs = (adapter.down, theirs.lora_A.default.weight), (adapter.up, theirs.lora_B.default.weight)
    for ours, other in pairs:  # each number is a sum of 4 normals / 10 with half of an orthonormal basis: 0.1 sqrt(1/2)
        assert float(ours.detach().std()) == approx(0.1 * math.sqrt(0.5), rel=0.15)
        assert float(other.detach().std()) == approx(0.1 * math.sqrt(0.5), rel=0.15)


def test_pissa_starts_with_the_principal_components_as_in_peft(model):
    """PEFT subtracts the same product from the base weight; both compute what the model did."""
    adapter = network_of(model, "pissa").adapters[NAMES["q"]]
    left, values, right = torch.linalg.svd(model["q"].weight, full_matrices=False)
    product = adapter.up.detach() @ adapter.down.detach() * adapter.scale
    # 1e-4 of weights up to 0.1: random singular values are close together, so the iteration still turns a little
    torch.testing.assert_close(product, left[:, :4] * values[:4] @ right[:4], rtol=1e-3, atol=1e-4)
    plain = nn.ModuleDict({"q": nn.Linear(64, 48)})
    plain.load_state_dict({"q.weight": model["q"].weight, "q.bias": model["q"].bias})
    config = LoraConfig(r=4, lora_alpha=2, target_modules=["q"], init_lora_weights="pissa")
    theirs = get_peft_model(plain, config).base_model.model["q"]
    for ours, other in ((adapter.down, theirs.lora_A.default.weight), (adapter.up, theirs.lora_B.default.weight)):
        torch.testing.assert_close(ours.detach().abs(), other.detach().abs(), rtol=1e-2, atol=1e-3)  # signs are free
    residual = model["q"].weight - product
    torch.testing.assert_close(theirs.base_layer.weight.detach(), residual, rtol=1e-3, atol=1e-4)


def test_trained_pissa_equals_training_beside_the_residual(model):
    network = moved(network_of(model, "pissa"))
    adapter, x = network.adapters[NAMES["q"]], torch.randn(5, 64)
    residual = model["q"].weight - adapter.first_up @ adapter.first_down * adapter.scale
    expected = x @ residual.t() + model["q"].bias + x @ adapter.down.t() @ adapter.up.t() * adapter.scale
    with attached(network):
        torch.testing.assert_close(model["q"](x), expected, rtol=1e-5, atol=1e-5)


def test_subspace_iteration_finds_the_largest_singular_values():
    """Of a matrix whose singular values fall slowly, as those of a model's weights: at most 1 % off, and fewer values are zeros."""
    weight = torch.randn(300, 200, generator=torch.Generator().manual_seed(0))
    left, values, right = largest_singular_triplets(weight, 16, 1, "x")
    torch.testing.assert_close(values, torch.linalg.svdvals(weight)[:16], rtol=0.01, atol=0)
    torch.testing.assert_close(left.t() @ left, torch.eye(16), rtol=0, atol=1e-5)
    torch.testing.assert_close(right @ right.t(), torch.eye(16), rtol=0, atol=1e-5)
    _, few, _ = largest_singular_triplets(weight[:3], 5, 1, "x")
    torch.testing.assert_close(few[:3], torch.linalg.svdvals(weight[:3]), rtol=1e-4, atol=0)
    assert not few[3:].any()


def test_its_file_is_the_difference_to_the_unchanged_model(model):
    network = moved(network_of(model, "pissa"))
    expected, tensors = outputs(model, network), network.saved()
    assert tensors[f"{NAMES['q']}.lora_down.weight"].shape == (8, 64)
    assert tensors[f"{NAMES['wide']}.lora_up.weight"].shape == (20, 8, 1, 1)
    assert float(tensors[f"{NAMES['q']}.alpha"]) == 4.0  # alpha / rank is as while training
    for key, value in outputs(model, Network.from_tensors(tensors, targets_of(model))).items():
        torch.testing.assert_close(value, expected[key], rtol=1e-5, atol=1e-5)


def test_in_16_bits_the_file_keeps_a_small_change(model):
    """The two products side by side would be rounded at the size of the principal components."""
    network = moved(network_of(model, "pissa"), size=1e-4)
    change = network.adapters[NAMES["q"]].delta()
    half = {key: value.half() for key, value in network.saved().items()}
    found = Network.from_tensors(half, targets_of(model)).adapters[NAMES["q"]].delta()
    assert float((found - change).norm() / change.norm()) < 2e-3
    adapter = network.adapters[NAMES["q"]]
    beside = [matrix.detach().half().float() for matrix in adapter._weights(torch.float32)]
    rounded = beside[1] @ beside[0] * adapter.scale
    assert float((rounded - change).norm() / change.norm()) > 0.05


def test_its_state_comes_back_to_the_bit_on_any_start(model):
    network, other = moved(network_of(model, "pissa")), network_of(model, "pissa", seed=9)
    other.load_state({key: value.clone() for key, value in network.state_dict().items()})
    one, two = outputs(model, network), outputs(model, other)
    assert all(torch.equal(value, two[key]) for key, value in one.items())


@mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_max_norm_limits_the_difference_of_pissa(model, dtype):
    network = network_of(model, "pissa")
    network.to(dtype)
    moved(network)
    before = {name: adapter.delta() for name, adapter in network.adapters.items()}
    limit = float(before[NAMES["q"]].norm()) / 2
    network.apply_max_norm(limit)
    adapter = network.adapters[NAMES["q"]]
    expected = before[NAMES["q"]] / 2
    # Of two products of 16-bit numbers
    rounding = 1e-5 if dtype is torch.float32 else 0.1 * float(expected.abs().max())
    torch.testing.assert_close(adapter.delta(), expected, rtol=0, atol=rounding)
    fresh = network_of(model, "pissa")
    fresh.to(dtype)
    with torch.no_grad():
        for each in fresh.adapters.values():
            each.shorten(torch.tensor(0.37))
    assert all(float(each.delta().abs().max()) == 0 for each in fresh.adapters.values())


def test_pissa_computes_with_matrices_of_the_outputs_type_while_nothing_trains(model):
    network = network_of(model, "pissa")
    adapter = network.adapters[NAMES["q"]]
    assert {weight.dtype for weight in adapter._weights(torch.bfloat16)} == {torch.float32}  # masters train
    for weight in network.parameters():
        weight.requires_grad_(False)
    assert {weight.dtype for weight in adapter._weights(torch.bfloat16)} == {torch.bfloat16}


def test_pissa_merges_as_it_is_attached(model):
    network = moved(network_of(model, "pissa"))
    live = outputs(model, network)
    network.merge_to()
    for key, value in outputs(model).items():
        torch.testing.assert_close(value, live[key], rtol=1e-5, atol=1e-5)


def test_pissa_reads_weights_in_fp8_with_their_factors(model):
    _convert(model["q"], Fp8Linear)
    before = outputs(model)["q"]
    network = network_of(model, "pissa")
    adapter = network.adapters[NAMES["q"]]
    wide = model["q"].weight.float() * model["q"].factors.float()
    values = torch.linalg.svdvals(wide)[:4]
    product = adapter.up.detach() @ adapter.down.detach() * adapter.scale
    torch.testing.assert_close(torch.linalg.svdvals(product)[:4], values, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(outputs(model, network)["q"], before, rtol=0, atol=1e-5)


def test_dropout_is_of_what_trains_and_not_of_what_is_subtracted(model):
    network = network_of(model, "pissa", network_dropout=0.5)
    adapter, x = network.adapters[NAMES["q"]], torch.randn(2, 64)
    adapter.put(torch.zeros_like(adapter.down), torch.zeros_like(adapter.up))
    network.show(1, 0, ["a", "b"])
    with attached(network):
        dropped = model["q"](x)
    network.hide()
    with attached(network):
        torch.testing.assert_close(dropped, model["q"](x))


def test_without_numbers_it_is_counted_alone(model):
    """The forecast: what trains, not what is subtracted."""
    empty = nn.ModuleDict({"q": nn.Linear(64, 48), "wide": nn.Conv2d(8, 20, 3), "small": nn.Conv2d(6, 3, 1)}).to("meta")
    network = network_of(empty, "pissa")
    assert all(isinstance(adapter, PissaAdapter) for adapter in network.adapters.values())
    lora = network_of(empty, "kaiming")
    assert sum(map(torch.numel, network.parameters())) == sum(map(torch.numel, lora.parameters()))


def test_what_does_not_go_with_it_is_said():
    for network, said in (
        ({"kind": "lora"}, False),
        ({"kind": "lora_fa"}, True),
        ({"kind": "lora", "network_weights": "x"}, True),
    ):
        job = build(TrainJob, {"network": network | {"initialization": "pissa"}})
        assert ("network.initialization" in ineffective(job)) is said
        assert job.network.starts_by_pissa is not said


@mark.parametrize("rank", [4, 16])
def test_the_rank_stabilized_alpha_is_that_of_the_file(model, rank):
    """alpha / sqrt(rank), which a reader computes as (alpha * sqrt(rank)) / rank; LyCORIS stores it so."""
    network = network_of(model, "kaiming", rank=rank, alpha=2.0, rs_lora=True)
    adapter = network.adapters[NAMES["q"]]
    assert adapter.scale == approx(2.0 / math.sqrt(rank))
    assert float(network.saved()[f"{NAMES['q']}.alpha"]) == approx(2.0 * math.sqrt(rank), rel=1e-7)
    moved(network)
    loaded = Network.from_tensors(network.saved(), targets_of(model))
    for key, value in outputs(model, network).items():
        torch.testing.assert_close(outputs(model, loaded)[key], value)
