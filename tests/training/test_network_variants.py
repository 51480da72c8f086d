"""Trainings of networks whose layers, initialization or kind are chosen."""

import json

import pytest
import torch
from pytest import approx, mark
from safetensors.torch import load_file

from core.formats.detect import identify
from core.tools.models.inspect import inspect


def test_a_training_has_these_layers_and_its_file_says_so(at_first_step):
    def look(training):
        return set(training.inputs.method.network.adapters), training.inputs.method.metadata()

    names, metadata = at_first_step(look, network={"layers": ["attn2"], "layer_dims": ["to_k=2"], "rank": 4})
    assert names and all("attn2" in name for name in names)
    assert metadata["ss_network_layers"].startswith(f"{len(names)} of ")
    assert json.loads(metadata["ss_layers"]) == ["attn2"] and json.loads(metadata["ss_layer_dims"]) == ["to_k=2"]


@pytest.mark.slow
def test_a_pissa_training_resumes_exactly_and_its_file_is_made_for_the_unchanged_model(train):
    pissa = {"initialization": "pissa", "rank": 4, "alpha": 4.0, "rs_lora": True, "conv_rank": 2, "conv_alpha": 1.0}
    two = {"schedule": {"max_train_steps": 2, "seed": 7}}
    whole, parted = (train(network=pissa, **two) for _ in range(2))
    assert whole.start() == "done"
    assert parted.start(stop_at=1) == "stopped" and parted.again().start() == "done"
    tensors, others = load_file(whole.file()), load_file(parted.file())
    assert all(torch.equal(tensor, others[name]) for name, tensor in tensors.items())
    wide = {name for name in tensors if tensors[name].shape[2:] == (3, 3)}
    ranks = {name: tensors[name].shape[0] for name in tensors if name.endswith("lora_down.weight")}
    assert {ranks[name] for name in ranks.keys() - wide} == {8} and {ranks[name] for name in wide} == {4}
    metadata = inspect(whole.file())["metadata"]
    assert metadata["ss_network_dim"] == "8" and "unchanged" in metadata["ss_pissa"]
    assert float(metadata["ss_network_alpha"]) == 16.0  # as the tensors: alpha / rank is 4 / sqrt(4)
    args = {
        "initialization": "pissa",
        "rs_lora": "True",
        "conv_dim": "4",
        "conv_alpha": metadata["ss_network_args"]["conv_alpha"],
    }
    assert metadata["ss_network_args"] == args
    alphas = {float(tensors[name.replace("lora_down.weight", "alpha")]) for name in wide}
    assert {float(args["conv_alpha"])} == alphas
    # the first loss is the model's own, as with a LoRA that starts at zero
    plain = train(network={"rank": 4, "alpha": 4.0}, **two)
    assert plain.start() == "done"
    assert whole.losses()[1] == approx(plain.losses()[1], rel=1e-5)


@pytest.mark.slow
@mark.parametrize("kind", ["lora_fa", "dylora"])
def test_a_file_says_its_kind_in_its_metadata_alone(train, kind):
    training = train(
        schedule={"max_train_steps": 1},
        network={"kind": kind, "rank": 4},
        **({"dylora": {"unit": 2}} if kind == "dylora" else {}),
    )
    assert training.start() == "done"
    found, title = identify(training.file()), {"lora_fa": "LoRA-FA", "dylora": "DyLoRA"}[kind]
    assert (found.kind, found.network) == ("lora", title)
    assert inspect(training.file())["metadata"]["ss_network_module"] == f"networks.{kind}"
    if kind == "dylora":
        assert inspect(training.file())["metadata"]["ss_network_args"]["unit"] == "2"
