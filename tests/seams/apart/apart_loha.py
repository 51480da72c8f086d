"""A network kind of other programs, registered from outside: its files are read back, inspected, trained on and generated with."""

import json

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from core.formats.detect import identify
from core.networks.adapter_file import load_lora
from core.networks.network import Network
from core.settings.check import build
from core.settings.job import TrainJob
from core.settings.rules import ineffective
from core.tools.inspect import in_words, inspect
from tests.refusals import refused
from tests.training import test_samples_and_generate as again

store = again.store
KIND = {"network": {"kind": "loha", "rank": 3, "alpha": 2.0, "conv_rank": 2}}


def test_what_it_does_not_use_is_said():
    told = ineffective(build(TrainJob, {"network": {"kind": "loha"}})).keys()
    assert {"network.network_dropout", "network.rank_dropout"} <= told
    assert not told & {"network.rank", "network.alpha", "network.module_dropout", "network.scale_weight_norms"}
    assert "network.rank_dropout" not in ineffective(build(TrainJob, {}))


def test_trains_resumes_exactly_is_read_back_and_starts_another_training(train):
    whole, parted = train(**KIND), train(**KIND)
    assert whole.start() == "done"
    assert parted.start(stop_at=2) == "stopped" and parted.again().start() == "done"
    tensors = load_file(whole.file())
    assert all(torch.equal(tensor, tensors[name]) for name, tensor in load_file(parted.file()).items())
    assert {name.partition(".")[2] for name in tensors} == {"hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b", "alpha"}
    with safe_open(whole.file(), "pt") as file:
        metadata = file.metadata()
    assert metadata["ss_network_module"] == "lycoris.kohya"
    assert json.loads(metadata["ss_network_args"])["algo"] == "loha"
    own = {**KIND["network"], "network_weights": str(whole.file())}
    again_ = train(network=own, schedule={"max_train_steps": 1}, optimizer={"learning_rate": 1e-12})
    assert again_.start() == "done"
    for name, tensor in load_file(again_.file()).items():
        torch.testing.assert_close(tensor, tensors[name], rtol=1e-4, atol=1e-6)
    shorter = {"max_train_steps": 1}
    sized = train(
        network=own | {"rank": 16, "alpha": 1.0, "conv_rank": None, "dim_from_weights": True}, schedule=shorter
    )
    assert sized.start() == "done"
    assert {n: t.shape for n, t in load_file(sized.file()).items()} == {n: t.shape for n, t in tensors.items()}


def test_is_identified_and_inspected_as_what_it_is_and_refused_where_it_is_not_whole(train, tmp_path):
    training = train(**KIND, schedule={"max_train_steps": 2})
    assert training.start() == "done"
    found = identify(training.file())
    assert (found.kind, found.variant, found.network) == ("lora", None, "LoHa")
    facts = inspect(training.file())
    assert facts["what"].endswith("LoHa") and facts["lora"]["ranks"].keys() == {2, 3}
    assert facts["lora"]["alphas"].keys() == {2.0} and facts["lora"]["layers"].keys() == {"unet"}
    assert not facts["lora"]["untrained"] and "rank: 2 in" in "\n".join(in_words(facts))
    tensors = load_file(training.file())
    layer = next(iter(tensors)).partition(".")[0]
    key = f"{layer}.hada_w2_a"
    save_file(tensors | {key: torch.zeros_like(tensors[key])}, tmp_path / "idle.safetensors")
    assert inspect(tmp_path / "idle.safetensors")["lora"]["untrained"] == [layer]
    first = next(name for name in tensors if name.endswith("hada_w1_b"))
    save_file({name: tensor for name, tensor in tensors.items() if name != first}, tmp_path / "half.safetensors")
    with refused("lora.incomplete", "hada_w1_b"):
        load_lora(tmp_path / "half.safetensors")
    other = {name.replace("hada_w1_a", "lokr_w1").replace("hada", "lokr"): tensor for name, tensor in tensors.items()}
    save_file(other, tmp_path / "lokr.safetensors")
    with refused("lora.unsupported-variant", "LoKr"):
        load_lora(tmp_path / "lokr.safetensors")


def test_a_sample_of_its_training_is_generated_again_from_its_file(train, store):
    training = again.begin(train, "a (fox:1.3) --d 3 --s 3", **KIND, optimizer={"learning_rate": 0.1})
    again.same_images(training, store, loras=[{"file": str(training.file())}])


@pytest.mark.parametrize("module", [torch.nn.Linear(5, 4), torch.nn.Conv2d(3, 4, 3, stride=2, padding=1)])
def test_merging_it_equals_attaching_it_and_pefts_formula(module):
    from peft.tuners.loha.layer import make_weight

    from core.families.targets import Target

    columns = module.weight[0].numel()
    draw = torch.Generator().manual_seed(0)
    w = {key: torch.randn((4, 2) if key.endswith("a") else (2, columns), generator=draw) for key in WEIGHTS}
    name = "lora_unet_conv_in"
    tensors = {f"{name}.{key}": value for key, value in w.items()} | {f"{name}.alpha": torch.tensor(1.0)}
    network = Network.from_tensors(tensors, [Target(name, "conv_in", module, "", module)])
    x = torch.randn((2, 5) if module.weight.ndim == 2 else (2, 3, 8, 8), generator=draw)
    before = module.weight.detach().clone()
    network.attach()
    changed = module(x)
    network.detach()
    network.merge_to()
    torch.testing.assert_close(module(x), changed, rtol=1e-4, atol=1e-5)
    theirs = make_weight(*w.values(), torch.tensor(0.5)).view(before.shape)
    torch.testing.assert_close(module.weight - before, theirs, rtol=1e-4, atol=1e-5)


WEIGHTS = ("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b")
