"""(IA)^3: LyCORIS' formula and files; which layers the paper scales."""

import torch
from lycoris.modules.ia3 import IA3Module
from pytest import mark

from core.networks.kinds import kinds
from core.networks.network import Network
from core.settings.check import build
from core.settings.job import TrainJob
from core.settings.optimization.usual_rates import usual_rates
from core.settings.rules import ineffective
from tests.networks.oracle import LAYERS, check_equal, layer_of, target_of

BLOCK = "lora_unet_mid_block_attentions_0_transformer_blocks_0"


@mark.parametrize("layer", LAYERS)
@mark.parametrize("on_input", [False, True])
@mark.parametrize("multiplier", [1.0, 0.4])
def test_is_lycoris_ia3(layer, on_input, multiplier):
    check_equal(lambda module: IA3Module("x", module, train_on_input=on_input), layer, multiplier)


def made(**own):
    job = build(TrainJob, {"network": {"kind": "ia3", "train_text_encoder": True}, "ia3": own})
    names = (
        f"{BLOCK}_attn2_to_k",
        f"{BLOCK}_attn2_to_q",
        f"{BLOCK}_ff_net_2",
        "lora_te_text_model_encoder_layers_0_mlp_fc2",
    )
    targets = [target_of(layer_of("linear"), name) for name in names]
    network = Network.create(targets, job.network, 0, kind_settings=job.ia3)
    return {name.removeprefix(f"{BLOCK}_"): adapter.on_input for name, adapter in network.adapters.items()}


def test_the_papers_layers_are_keys_and_values_by_output_and_the_feed_forward_by_input():
    assert made() == {"attn2_to_k": False, "ff_net_2": True, "lora_te_text_model_encoder_layers_0_mlp_fc2": True}
    assert set(made(all_layers=True).values()) == {False} and len(made(all_layers=True)) == 4
    assert set(made(all_layers=True, train_on_input=True).values()) == {True}


def test_what_it_does_not_use_is_said():
    job = build(TrainJob, {"network": {"kind": "ia3", "rank": 64, "alpha": 1.0}})
    assert {"network.rank", "network.alpha", "network.rank_dropout"} <= ineffective(job).keys()
    assert "ia3.train_on_input" in ineffective(
        build(TrainJob, {"network": {"kind": "ia3"}, "ia3": {"train_on_input": True}})
    )
    assert job.network.summary() == "(IA)^3, U-Net"
    other = build(TrainJob, {"network": {"kind": "ia3", "rank": 4}})
    assert usual_rates(job, "unet") == usual_rates(other, "unet"), "a rank that has no effect decides no rate"


def test_its_metadata_are_lycoris():
    ia3 = kinds()["ia3"]
    both = {"all_layers": True, "train_on_input": True}
    told = [ia3.network_args(build(TrainJob, {"network": {"kind": "ia3"}, "ia3": own})) for own in ({}, both)]
    assert told == [{"algo": "ia3", "preset": "ia3"}, {"algo": "ia3", "train_on_input": "True"}]
    chosen = build(TrainJob, {"network": {"kind": "ia3", "layers": ["attn-mlp"]}})
    assert ia3.network_args(chosen) == {"algo": "ia3", "preset": "attn-mlp"}


def test_its_flags_are_read_in_any_dtype(tmp_path):
    """LyCORIS' writer casts them with the weights."""
    layer = layer_of("linear")
    network = Network.from_tensors(
        {f"{BLOCK}_ff_net_2.weight": torch.ones(12).half(), f"{BLOCK}_ff_net_2.on_input": torch.tensor(1.0).half()},
        [target_of(layer, f"{BLOCK}_ff_net_2")],
    )
    assert network.adapters[f"{BLOCK}_ff_net_2"].on_input
