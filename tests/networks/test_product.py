"""Kinds whose change is a product, against lycoris-lora 4.1.3: the same tensors give the same output and merged weights, and
files of either are read by the other."""

import math

import pytest
import torch
from lycoris.functional import factorization
from lycoris.modules.full import FullModule
from lycoris.modules.locon import LoConModule
from lycoris.modules.loha import LohaModule
from lycoris.modules.lokr import LokrModule
from torch import nn

from core.families.targets import Target
from core.networks.kinds import kinds
from core.networks.kinds.lokr import split
from core.networks.kinds.product import ProductAdapter
from core.networks.network import Network, attached
from core.settings.blocks import BlockSize
from core.settings.check import build
from core.settings.job import TrainJob
from core.settings.rules import ineffective, training_problems

NAME = "lora_unet_down_blocks_0_attentions_0_proj_in"
MODULES = {"loha": LohaModule, "lokr": LokrModule, "locon": LoConModule, "full": FullModule}
LAYERS = {
    "linear": lambda: nn.Linear(48, 36),
    "narrow": lambda: nn.Linear(6, 64, bias=False),
    "conv": lambda: nn.Conv2d(24, 40, 3, stride=2, padding=1),
    "conv1x1": lambda: nn.Conv2d(24, 40, 1),
}
OPTIONS = {
    "loha": ({}, {"use_tucker": True}, {"use_scalar": True}),
    "lokr": (
        {},
        {"factor": 4},
        {"factor": 4, "use_tucker": True},
        {"factor": 2, "decompose_both": True},
        {"decompose_both": True, "unbalanced_factorization": True, "use_scalar": True},
        {"factor": 8, "unbalanced_factorization": True},
        {"full_matrix": True},
    ),
    "locon": ({"use_tucker": True}, {"use_tucker": True, "use_scalar": True}, {"use_tucker": False}),
    "full": ({},),
}
CASES = [(kind, own) for kind, several in OPTIONS.items() for own in several]
every_case = pytest.mark.parametrize(("kind", "own"), CASES, ids=[f"{kind} {'+'.join(own)}" for kind, own in CASES])
every_layer = pytest.mark.parametrize("layer", LAYERS)


def layer_of(layer):
    torch.manual_seed(3)
    return LAYERS[layer]().requires_grad_(False)


def inputs_of(module):
    draw = torch.Generator().manual_seed(4)
    shape = (2, 24, 7, 5) if isinstance(module, nn.Conv2d) else (2, 9, module.in_features)
    return torch.randn(shape, generator=draw)


def theirs(kind, own, module, rank=2, alpha=1.0):
    """LyCORIS' layer with weights as if trained."""
    torch.manual_seed(5)
    made = MODULES[kind](NAME, module, 1.0, rank, alpha, **own)
    with torch.no_grad():
        for weight in made.parameters():
            weight.normal_(0.0, 0.3)
    return made


def target_of(module):
    return Target(NAME, "proj_in", module, "", module)


def network_of(tensors, module):
    network = Network.from_tensors({f"{NAME}.{key}": value for key, value in tensors.items()}, [target_of(module)])
    assert not network.unmatched
    return network


def file_of(made):
    if isinstance(made, FullModule):  # its own dictionary holds differences only once it has taken the layer's place
        return {"diff": made.weight.detach().clone()} | (
            {"diff_b": made.bias.detach().clone()} if made.bias is not None else {}
        )
    return {key: value.detach().clone() for key, value in made.custom_state_dict().items()}


@every_layer
@every_case
@pytest.mark.parametrize("multiplier", [1.0, -0.6])
def test_the_same_tensors_give_the_same_output_and_merged_weight(kind, own, layer, multiplier):
    module = layer_of(layer)
    made, x = theirs(kind, own, module), inputs_of(module)
    made.multiplier = multiplier
    with torch.no_grad():
        expected, tensors = made(x), file_of(made)
    network = network_of(tensors, module)
    network.set_multiplier(multiplier)
    before = module.weight.clone()
    with attached(network):
        torch.testing.assert_close(module(x), expected, rtol=1e-5, atol=1e-5)
    network.merge_to()
    torch.testing.assert_close(module(x), expected, rtol=1e-5, atol=1e-5)
    if kind == "locon":  # of LoHa and LoKr lycoris-lora 4.1.3 multiplies alpha / rank twice where it merges
        made.org_module[0].weight.data = before
        made.scalar.data.fill_(1.0) if not own.get("use_scalar") else None
        merged = made.get_merged_weight(multiplier, module.weight.shape)[0]
        torch.testing.assert_close(module_weight(network, before, multiplier), merged.detach(), rtol=1e-5, atol=1e-5)


def module_weight(network, before, multiplier):
    return before + network.adapters[NAME].delta() * multiplier


@every_layer
@every_case
def test_a_fresh_layer_has_their_keys_shapes_and_spreads(kind, own, layer):
    module = layer_of(layer)
    torch.manual_seed(0)
    made = MODULES[kind](NAME, module, 1.0, 2, 1.0, **own)
    settings = kinds()[kind].settings
    adapter = kinds()[kind].fresh(target_of(module), BlockSize(2, 1.0), settings(**own) if settings else None, seed=1)
    expected = {key: (value.shape, _spread(value)) for key, value in made.custom_state_dict().items()}
    if kind == "full":
        expected = {"diff": (module.weight.shape, 0.0)}
        expected |= {"diff_b": (module.bias.shape, 0.0)} if module.bias is not None else {}
    found = {key: (value.shape, _spread(value)) for key, value in adapter.saved().items()}
    expected.pop("alpha", None)
    found.pop("alpha", None)
    assert {key: shape for key, (shape, _) in found.items()} == {key: shape for key, (shape, _) in expected.items()}
    for key, (shape, spread) in found.items():
        assert (spread == 0) == (expected[key][1] == 0), key
        if shape.numel() > 20:
            assert spread == pytest.approx(expected[key][1], rel=0.5), key


@every_layer
def test_the_full_matrix_is_what_kohya_ss_presets_ask_for_by_a_dim_of_100000(layer):
    module = layer_of(layer)
    made = LokrModule(NAME, module, 1.0, 100_000, 1.0, factor=6, decompose_both=False)
    own = kinds()["lokr"].settings(factor=6, full_matrix=True)
    adapter = kinds()["lokr"].fresh(target_of(module), BlockSize(16, 1.0), own, seed=1)
    expected = {key: value.shape for key, value in made.custom_state_dict().items() if key != "alpha"}
    assert {key: value.shape for key, value in adapter.saved().items() if key != "alpha"} == expected
    assert adapter.scale == made.scale == 1


def _spread(tensor):
    return float(tensor.detach().float().square().mean().sqrt())


@every_layer
@every_case
def test_their_reader_gives_the_output_of_our_file(kind, own, layer):
    module = layer_of(layer)
    settings = kinds()[kind].settings
    adapter = kinds()[kind].fresh(target_of(module), BlockSize(2, 1.0), settings(**own) if settings else None, seed=1)
    draw = torch.Generator().manual_seed(6)
    with torch.no_grad():
        for weight, _ in adapter.parameters():
            weight.add_(torch.randn(weight.shape, generator=draw) * 0.3)
    if not reads_its_own(kind, own, module):
        pytest.skip("lycoris-lora 4.1.3 reads no file of its own with these options")
    x, network = inputs_of(module), Network([adapter])
    with attached(network):
        expected = module(x).detach()
    saved = adapter.saved()
    reader = LoConModule if not isinstance(adapter, ProductAdapter) else MODULES[kind]
    with torch.no_grad():
        read = reader.make_module_from_state_dict(NAME, module, *(saved.get(key) for key in reader.weight_list))
        torch.testing.assert_close(read(x), expected, rtol=1e-5, atol=1e-5)


def reads_its_own(kind, own, module):
    """Of LoKr it guesses the factor from the shapes, and misses it for some."""
    tensors = file_of(theirs(kind, own, module))
    try:
        with torch.no_grad():
            MODULES[kind].make_module_from_state_dict(NAME, module, *map(tensors.get, MODULES[kind].weight_list))
    except (AttributeError, RuntimeError):
        return False
    return True


@pytest.mark.parametrize(("kind", "own"), [(kind, own) for kind, own in CASES if "use_scalar" in own])
def test_a_scalar_in_a_file_is_multiplied_in(kind, own):
    """Older versions of LyCORIS write it next to the matrices."""
    module = layer_of("conv")
    made, x = theirs(kind, own, module), inputs_of(module)
    with torch.no_grad():
        expected = made(x)
    beside = {key: value.detach() for key, value in made.named_parameters() if key != "dora_scale"}
    with attached(network_of(beside | {"alpha": made.alpha}, module)):
        torch.testing.assert_close(module(x), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("factor", [-1, 0, 1, 2, 3, 4, 6, 8, 16, 100])
def test_widths_are_split_as_lycoris_splits_them(factor):
    for width in (*range(1, 400), 640, 768, 1024, 1280, 2048, 2560, 5120, 10240):
        assert split(width, factor) == factorization(width, factor), width


def test_gradients_of_loha_are_those_of_the_written_out_formula():
    """Its change is built again in the backward pass."""
    module = nn.Linear(12, 10).double().requires_grad_(False)
    adapter = kinds()["loha"].fresh(target_of(module), BlockSize(3, 2.0), kinds()["loha"].settings(), seed=1)
    weights = [weight for weight, _ in adapter.parameters()]
    for weight in weights:
        weight.data = torch.randn(weight.shape, dtype=torch.float64)
    x = torch.randn(4, 12, dtype=torch.float64, requires_grad=True)
    with attached(Network([adapter])):
        found = torch.autograd.grad(module(x).square().sum(), [x, *weights])
    a, b, c, d = weights
    y = nn.functional.linear(x, module.weight + 2.0 / 3.0 * (a @ b) * (c @ d), module.bias)
    expected = torch.autograd.grad(y.square().sum(), [x, *weights])
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other)


def test_a_change_of_the_bias_acts_with_its_strength_and_is_merged():
    module = nn.Linear(4, 3)
    tensors = {"diff": torch.ones(3, 4), "diff_b": torch.tensor([1.0, 2.0, 3.0])}
    network, x, before = network_of(tensors, module), torch.randn(2, 4), module.bias.detach().clone()
    network.set_multiplier(0.5)
    with attached(network):
        live = module(x)
    network.merge_to()
    torch.testing.assert_close(module.bias, before + 0.5 * tensors["diff_b"])
    torch.testing.assert_close(module(x), live)


def test_the_norm_of_the_bias_change_shrinks_with_that_of_the_weight():
    network = network_of({"diff": torch.full((3, 4), 2.0), "diff_b": torch.ones(3)}, nn.Linear(4, 3))
    network.apply_max_norm(math.sqrt(12))
    tensors = network.state_dict()
    torch.testing.assert_close(tensors[f"{NAME}.diff"], torch.ones(3, 4))
    torch.testing.assert_close(tensors[f"{NAME}.diff_b"], torch.full((3,), 0.5))


@every_layer
@every_case
def test_the_norm_is_that_of_the_change(kind, own, layer):
    module = layer_of(layer)
    adapter = network_of(file_of(theirs(kind, own, module, alpha=3.0)), module).adapters[NAME]
    assert float(adapter.norm()) == pytest.approx(float(adapter.delta().norm()), rel=1e-5)


def test_what_options_make_useless_is_said():
    def told(**groups):
        job = build(TrainJob, groups)
        return ineffective(job).keys(), [problem.code for problem in training_problems(job)]

    unused, _ = told(network={"kind": "lokr"}, lokr={"full_matrix": True})
    assert {"network.rank", "network.alpha", "network.rs_lora"} <= unused
    assert "network.rank" not in told(network={"kind": "lokr"})[0]
    code = "network.tucker-without-convolutions"
    assert code in told(network={"kind": "loha"}, loha={"use_tucker": True})[1]
    for network in ({"conv_rank": 4}, {"layers": ["full"]}):
        assert code not in told(network={"kind": "loha", **network}, loha={"use_tucker": True})[1]


def test_the_metadata_say_the_algorithm_and_its_options_as_lycoris_takes_them():
    network = {"kind": "lokr", "layers": ["attn-mlp"], "conv_rank": 8, "rank_dropout": 0.1}
    job = build(TrainJob, {"network": network, "lokr": {"factor": 8, "decompose_both": True}})
    expected = {"algo": "lokr", "preset": "attn-mlp", "factor": "8", "decompose_both": "True", "rank_dropout": "0.1"}
    expected |= {"rank_dropout_scale": "True", "conv_dim": "8", "conv_alpha": "8"}
    assert kinds()["lokr"].network_args(job) == expected


@pytest.mark.parametrize(
    ("tensors", "fact"),
    [
        ({"hada_w1_a": (8, 2), "hada_w1_b": (2, 6), "hada_w2_a": (8, 3), "hada_w2_b": (3, 6)}, "hada_w2_a"),
        ({"hada_w1_a": (8, 2), "hada_w1_b": (2, 6), "hada_w2_a": (8, 2)}, "hada_w2_b"),
        ({"lokr_w1": (2, 3), "lokr_w2_a": (4, 2), "lokr_w2_b": (3, 8)}, "lokr_w2_b"),
        ({"lokr_w1": (2, 3)}, "lokr_w2"),
        ({"lokr_w1": (2, 3), "lokr_w1_a": (2, 1), "lokr_w2": (2, 2)}, "belong together"),
        (
            {"lora_down.weight": (2, 8, 1, 1), "lora_mid.weight": (3, 2, 3, 3), "lora_up.weight": (8, 2, 1, 1)},
            "lora_mid",
        ),
        ({"diff": (0, 4)}, "diff"),
    ],
)
def test_what_is_wrong_with_a_layer_is_said_with_its_key(tensors, fact):
    given = {key: torch.ones(shape) for key, shape in tensors.items()}
    kind = {"hada": "loha", "lokr": "lokr", "lora": "locon", "diff": "full"}[next(iter(tensors))[:4]]
    assert fact in kinds()[kind].flaw(NAME, given)


def test_layers_of_other_sizes_do_not_fit():
    loha = {"hada_w1_a": (8, 2), "hada_w1_b": (2, 6), "hada_w2_a": (8, 2), "hada_w2_b": (2, 6)}
    given = {key: torch.ones(shape) for key, shape in loha.items()}
    fitting = {"linear": nn.Linear(6, 8), "conv": nn.Conv2d(6, 8, 1)}
    for module in fitting.values():
        assert kinds()["loha"].from_tensors(target_of(module), given) is not None
    for module in (nn.Linear(8, 6), nn.Linear(6, 9), nn.Conv2d(6, 8, 3)):
        assert kinds()["loha"].from_tensors(target_of(module), given) is None
