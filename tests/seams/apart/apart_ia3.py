"""A network kind without rank that changes few layers and whose files hold flags."""

import torch
from safetensors.torch import load_file, save_file

from core.formats.detect import identify
from core.networks.adapter_file import load_lora
from core.settings.check import build
from core.settings.job import TrainJob
from core.settings.optimization.usual_rates import usual_rates
from core.settings.rules import ineffective
from core.tools.inspect import inspect
from tests.training import test_samples_and_generate as again

store = again.store
KIND = {"network": {"kind": "ia3"}, "optimizer": {"learning_rate": 0.01}}


def test_what_it_does_not_use_is_said():
    job = build(TrainJob, {"network": {"kind": "ia3", "rank": 64, "alpha": 1.0}})
    assert {"network.rank", "network.alpha", "network.rank_dropout"} <= ineffective(job).keys()
    assert job.network.summary() == "(IA)^3, U-Net"
    other = build(TrainJob, {"network": {"kind": "ia3", "rank": 4}})
    assert usual_rates(job, "unet") == usual_rates(other, "unet"), "a rank that has no effect decides no rate"


def test_trains_few_layers_resumes_exactly_and_starts_another_training_from_its_flags(train, tmp_path):
    whole, parted = train(**KIND), train(**KIND)
    assert whole.start() == "done"
    assert parted.start(stop_at=2) == "stopped" and parted.again().start() == "done"
    tensors = load_file(whole.file())
    assert all(torch.equal(tensor, tensors[name]) for name, tensor in load_file(parted.file()).items())
    sides = {name: bool(tensor) for name, tensor in tensors.items() if name.endswith(".on_input")}
    assert all(tensors[name].dtype == torch.bool for name in sides) and set(sides.values()) == {True, False}
    assert all(side == ("_ff_net_2." in name) for name, side in sides.items())
    assert all(any(part in name for part in ("_to_k.", "_to_v.", "_ff_net_2.")) for name in tensors)
    assert any(tensor.any() for name, tensor in tensors.items() if name.endswith(".weight"))
    theirs = tmp_path / "lycoris.safetensors"  # its writer casts the flags too
    save_file({name: tensor.half() for name, tensor in tensors.items()}, theirs)
    for file in (whole.file(), theirs):
        start = {"network": {"kind": "ia3", "network_weights": str(file)}, "optimizer": {"learning_rate": 1e-12}}
        started = train(**start, schedule={"max_train_steps": 1})
        assert started.start() == "done"
        for name, tensor in load_file(started.file()).items():
            torch.testing.assert_close(tensor.float(), tensors[name].float(), rtol=1e-2, atol=1e-5)


def test_is_identified_read_back_and_inspected(train):
    training = train(**KIND, schedule={"max_train_steps": 2})
    assert training.start() == "done"
    found = identify(training.file())
    assert (found.kind, found.network) == ("lora", "(IA)^3")
    facts = inspect(training.file())
    tensors = load_file(training.file())
    assert facts["lora"]["layers"] == {"unet": len(tensors) // 2} and not facts["lora"]["untrained"]
    assert load_lora(training.file())


def test_a_sample_of_its_training_is_generated_again_from_its_file(train, store):
    training = again.begin(train, "a (fox:1.3) --d 3 --s 3", **KIND)
    again.same_images(training, store, loras=[{"file": str(training.file())}])
