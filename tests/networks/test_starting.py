"""Starting from a file, and LoRAs merged into the base model."""

import copy
from types import SimpleNamespace

import torch
from pytest import fixture, mark, raises
from torch import nn

from core.networks import files
from core.networks.adapter_file import LoraFile, save_lora
from core.networks.files import MergedFile, merge_files, read_network
from core.networks.network import Network, attached
from core.networks.starting import start_network
from core.record.problems import ProblemsError
from core.settings.network import NetworkSettings
from tests.refusals import refused

Q = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q"
OUT = "lora_unet_up_blocks_1_attentions_0_proj_out"
TEXT = "lora_te_text_model_encoder_layers_0_mlp_fc1"
BOTH = {"train_unet": True, "train_text_encoder": True}


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.q, self.out, self.text = nn.Linear(8, 6), nn.Conv2d(6, 5, 1), nn.Linear(7, 8)

    def forward(self, words):
        return self.out(self.q(self.text(words))[:, :, None, None]).flatten(1)


@fixture
def model():
    torch.manual_seed(0)
    return Model().requires_grad_(False)


def targets_of(model):
    return [
        SimpleNamespace(name=name, path="", parent=model, module=module)
        for name, module in ((TEXT, model.text), (Q, model.q), (OUT, model.out))
    ]


def trained(model, seed=5, **settings):
    """The tensors of a LoRA that has trained something."""
    network = Network.create(targets_of(model), NetworkSettings(**{**BOTH, **settings}), seed=seed)
    draw = torch.Generator().manual_seed(seed)
    for layer in network.adapters.values():
        layer.up.data = torch.randn(layer.up.shape, generator=draw)
    return {key: value.clone() for key, value in network.state_dict().items()}


def started(model, tensors, **settings):
    return start_network(targets_of(model), NetworkSettings(**{**BOTH, **settings}), 1, LoraFile(tensors))


def said(problems):
    return " ".join(problem.what for problem in problems)


def codes(problems):
    return [problem.code for problem in problems]


def test_a_network_starts_with_the_weights_of_the_file(model):
    tensors = trained(model, rank=4, alpha=2.0)
    network, problems = started(model, tensors, rank=4, alpha=2.0)
    assert not problems
    assert all(torch.equal(value, tensors[key]) for key, value in network.state_dict().items())


def test_the_alpha_of_the_file_counts_and_that_is_said(model):
    network, problems = started(model, trained(model, rank=4, alpha=2.0), rank=4, alpha=4.0)
    assert {layer.alpha for layer in network.adapters.values()} == {2.0}
    assert "2 in 3 layers where 4 is set" in said(problems)
    assert [(problem.level, problem.code) for problem in problems] == [("advice", "network.start-alpha")]


def test_layers_whose_alpha_is_0_are_named_and_refused_if_they_are_all(model):
    tensors, settings = trained(model, rank=4, alpha=2.0), {"rank": 4, "dim_from_weights": True}
    alphas = [key for key in tensors if key.endswith(".alpha")]
    for changed, level in ((alphas[:1], "advice"), (alphas, "error")):
        _, problems = started(model, tensors | dict.fromkeys(changed, torch.tensor(0.0)), **settings)
        assert [(problem.level, problem.code) for problem in problems] == [(level, "network.start-alpha-zero")]
        assert f"{len(changed)} of 3 layers" in said(problems)


def test_as_sd_scripts_the_alpha_set_here_trains_and_that_of_the_file_is_saved(model):
    tensors = trained(model, rank=4, alpha=2.0)
    settings = {"rank": 4, "alpha": 4.0, "weights_scale": "kohya"}
    network, problems = started(model, tensors, **settings)
    assert {layer.scale for layer in network.adapters.values()} == {1.0}
    assert float(network.state_dict()[f"{Q}.alpha"]) == 2.0 and codes(problems) == ["network.start-alpha-saved"]
    again, _ = started(model, tensors, **settings)
    again.load_state(network.state_dict())  # a run that continues
    assert {layer.scale for layer in again.adapters.values()} == {1.0}
    assert float(again.state_dict()[f"{Q}.alpha"]) == 2.0


def test_another_rank_is_refused_with_the_layers_and_the_two_ways_out(model):
    with raises(ProblemsError) as caught:
        started(model, trained(model, rank=4), rank=8)
    (problem,) = caught.value.problems
    assert problem.code == "network.start-rank" and TEXT in problem.what
    assert "3 layers" in problem.what and "rank 4" in problem.what and "rank 8" in problem.what
    assert "set network.rank to 4" in problem.fix and "dim_from_weights" in problem.fix


def test_a_file_of_another_network_type_is_refused_with_the_type_to_set(model):
    with refused("network.start-kind", "network.kind to lora"):
        started(model, trained(model), kind="full")
    loha = {f"{Q}.hada_{name}": torch.zeros(6 if name[-1] == "a" else 4, 4 if name[-1] == "a" else 8)
            for name in ("w1_a", "w1_b", "w2_a", "w2_b")}  # fmt: skip
    with refused("network.start-kind", "network.kind to loha"):
        started(model, loha, kind="lora")
    with refused("network.start-kind", "network.kind to loha"):
        started(model, loha, kind="lora", dim_from_weights=True)


@mark.parametrize("by_file", [True, False])
def test_norm_layers_alone_do_not_make_a_file_of_another_network_type_one_of_this(model, by_file):
    norm = SimpleNamespace(name=f"{Q[:-22]}_norm1", path="", parent=model, module=nn.LayerNorm(8))
    norms = {f"{norm.name}.w_norm": torch.ones(8), f"{norm.name}.b_norm": torch.ones(8)}
    settings = NetworkSettings(**BOTH, kind="full", train_norm=True, dim_from_weights=by_file)
    with refused("network.start-kind", "network.kind to lora"):
        start_network([*targets_of(model), norm], settings, 1, LoraFile(trained(model) | norms))


def test_where_no_one_rank_is_that_of_all_layers_the_ranks_of_the_file_are_advised(model):
    tensors = trained(model, rank=4) | {
        f"{Q}.lora_down.weight": torch.zeros(2, 8),
        f"{Q}.lora_up.weight": torch.zeros(6, 2),
    }
    with raises(ProblemsError) as caught:
        started(model, tensors, rank=8)
    assert codes(caught.value.problems) == ["network.start-rank"] * 2
    assert all("dim_from_weights" in each.fix and "network.rank" not in each.fix for each in caught.value.problems)


def test_a_mismatch_names_the_setting_that_the_rank_is_from():
    wide = Model().requires_grad_(False)
    wide.out = nn.Conv2d(6, 5, 3, padding=1)
    tensors = trained(wide, rank=4, conv_rank=4)
    with raises(ProblemsError) as caught:
        started(wide, tensors, rank=4, conv_rank=8)
    assert "set network.conv_rank to 4" in caught.value.problems[0].fix
    with raises(ProblemsError) as caught:
        started(wide, tensors, rank=4, conv_rank=4, block_dims=",".join(["8"] * 25))
    (problem,) = caught.value.problems
    assert problem.where == "network.network_weights, block_dims" and "rank 4 in network.block_dims" in problem.fix


def test_each_kind_of_mismatch_is_listed(model):
    tensors = trained(model, rank=4) | {
        f"{Q}.lora_down.weight": torch.zeros(2, 8),
        f"{Q}.lora_up.weight": torch.zeros(6, 2),
    }
    tensors[f"{OUT}.lora_down.weight"] = torch.zeros(4, 99)
    with raises(ProblemsError) as caught:
        started(model, tensors, rank=8)
    text = said(caught.value.problems)
    assert "rank 4" in text and "rank 2" in text
    assert codes(caught.value.problems) == ["network.start-rank", "network.start-rank", "network.start-shape"]


def test_layers_that_the_file_lacks_start_fresh_and_its_others_are_named(model):
    tensors = {key: value for key, value in trained(model).items() if not key.startswith(OUT)}
    tensors |= {
        "lora_unet_conv_in.lora_down.weight": torch.zeros(2, 4),
        "lora_unet_conv_in.lora_up.weight": torch.zeros(4, 2),
    }
    network, problems = started(model, tensors, train_text_encoder=False)
    assert set(network.adapters) == {Q, OUT} and not network.adapters[OUT].up.any() and network.adapters[Q].up.any()
    text = said(problems)
    assert "1 of 2 layers" in text and OUT in text and "lora_unet_conv_in" in text
    assert codes(problems) == [
        "network.start-fresh-layers",
        "network.start-untrained-part",
        "network.start-unused-layers",
    ]


def test_a_file_without_any_layer_that_is_trained_is_refused(model):
    tensors = {key: value for key, value in trained(model).items() if key.startswith(TEXT)}
    with refused("network.start-without-layers"):
        started(model, tensors, train_text_encoder=False)


def test_ranks_and_alphas_can_be_those_of_the_file(model):
    tensors = {key: value for key, value in trained(model, rank=4, alpha=2.0).items() if not key.startswith(OUT)}
    tensors |= {f"{Q}.lora_down.weight": torch.ones(3, 8), f"{Q}.lora_up.weight": torch.ones(6, 3)}
    del tensors[f"{TEXT}.alpha"]  # an old file: alpha = rank
    network, problems = started(model, tensors, rank=16, dim_from_weights=True)
    assert {name: (layer.rank, layer.alpha) for name, layer in network.adapters.items()} == {
        TEXT: (4, 4.0),
        Q: (3, 2.0),
    }
    assert torch.equal(network.adapters[Q].up, torch.ones(6, 3)) and not problems
    unet_only, _ = started(model, tensors, dim_from_weights=True, train_text_encoder=False)
    assert set(unet_only.adapters) == {Q}
    assert network.parameters()[0].requires_grad


def test_rates_by_block_leave_out_layers_of_the_file(model):
    network, problems = started(model, trained(model), dim_from_weights=True, down_lr_weight="zeros")
    assert set(network.adapters) == {TEXT, OUT} and Q in said(problems)


def test_diffusers_names_of_sdxl_blocks_find_the_original_ones():
    module = nn.Linear(8, 6).requires_grad_(False)
    name = "lora_unet_input_blocks_4_1_transformer_blocks_0_attn1_to_q"
    targets = [SimpleNamespace(name=name, path="", parent=nn.Module(), module=module)]
    network = Network.create(targets, NetworkSettings(rank=2, alpha=2), seed=1)
    other = "lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_attn1_to_q"
    tensors = {key.replace(name, other): value + 1 for key, value in network.state_dict().items()}
    read = Network.from_tensors(tensors, targets)
    assert set(read.adapters) == {name} and read.unmatched == ()
    begun, problems = start_network(targets, NetworkSettings(rank=2, alpha=3, train_unet=True), 1, LoraFile(tensors))
    assert not problems and torch.equal(begun.adapters[name].up, network.adapters[name].up + 1)


# -- merging


@fixture
def as_family(monkeypatch):
    """The little model stands for a family's parts."""
    monkeypatch.setattr(files, "family", lambda name: SimpleNamespace(layers=lambda part, norms: targets_of(part)))


def test_merged_files_draw_what_attached_ones_draw(model, tmp_path, as_family):
    paths = [save_lora(tmp_path / f"{seed}.safetensors", trained(model, seed), {"ss_v2": "False"}) for seed in (1, 2)]
    merged = copy.deepcopy(model)
    parts = lambda part: SimpleNamespace(denoiser=part, text_encoders=[], family="sd1")  # noqa: E731
    merge_files(parts(merged), [MergedFile(path, strength) for path, strength in zip(paths, (1.0, -0.5), strict=True)])
    words = torch.randn(3, 7)
    networks = [read_network(parts(model), path, strength) for path, strength in zip(paths, (1.0, -0.5), strict=True)]
    with attached(*networks):
        live = model(words)
    torch.testing.assert_close(merged(words), live, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(model(words), live)


@mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_merging_adds_in_float32_and_rounds_once(model, tmp_path, as_family, dtype):
    path = save_lora(tmp_path / "a.safetensors", trained(model), {"ss_v2": "False"})
    model = model.to(dtype)
    before = model.q.weight.clone()
    tensors = trained(model)
    change = tensors[f"{Q}.lora_up.weight"].double() @ tensors[f"{Q}.lora_down.weight"].double()
    merge_files(SimpleNamespace(denoiser=model, text_encoders=[], family="sd1"), [MergedFile(path, 0.5)])
    exact = (before.double() + 0.5 * change).to(dtype)
    torch.testing.assert_close(model.q.weight, exact, rtol=1e-6 if dtype == torch.float32 else 8e-3, atol=1e-6)
    assert model.q.weight.dtype == dtype
