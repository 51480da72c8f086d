"""Options of a LoRA in real trainings on the starter."""

import json

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from core.record.problems import ProblemsError, errors
from core.record.processes import Together
from core.training.building.network_files import network_problems
from tests.refusals import refused

DROPOUTS = {"network_dropout": 0.3, "rank_dropout": 0.2, "module_dropout": 0.2}
EVERYTHING = {
    "network": {
        "rank": 4,
        "alpha": 2.0,
        "conv_rank": 2,
        "train_text_encoder": True,
        "train_norm": True,
        **DROPOUTS,
        "block_dims": "0" + ",4" * 12 + ",2" * 12,
        "down_lr_weight": "linear+0.25",
        "up_lr_weight": "0,0,1,1,1,1,0.5",
        "scale_weight_norms": 0.02,
    },
    "optimizer": {"learning_rate": 1e-2, "text_encoder_lr": 1e-3, "loraplus_lr_ratio": 4.0},
    "schedule": {"max_train_steps": 4, "seed": 7, "gradient_accumulation_steps": 2},
}


def metadata_of(training):
    with safe_open(training.file(), "pt") as file:
        return file.metadata()


def test_a_text_encoder_stops_at_the_first_step_after_its_epochs(at_first_step):
    def look(training):
        inputs = training.inputs
        stop = inputs.method.metadata()["ss_stop_text_encoder_training"]
        return inputs.plan.epochs.first_step(2), int(stop), inputs.job.method.stop_text_encoder_epochs

    groups = {"method": {"stop_text_encoder_epochs": 2}, "network": {"rank": 2, "train_text_encoder": True}}
    step, stop, epochs = at_first_step(look, **groups)
    assert stop == step > 2 and epochs == 2


def assert_same(one, other, **tolerance):
    first, second = load_file(one.file()), load_file(other.file())
    assert first.keys() == second.keys()
    for name in first:
        torch.testing.assert_close(first[name], second[name], **(tolerance or {"rtol": 0, "atol": 0}))


@pytest.mark.slow
def test_every_option_together_acts_and_is_written_down(train, monkeypatch):
    numbers = {}

    class Tracker:
        def add(self, name, value, step):
            numbers.setdefault(name, []).append(value)

        def close(self):
            pass

    monkeypatch.setattr("core.training.building.setup.make_tracker", lambda *args, **more: Tracker())
    whole = train(**EVERYTHING)
    assert whole.start() == "done"
    names = {name for name in numbers if name.startswith("lr/")}
    assert {
        "lr/unet_block1",
        "lr/unet_block1 plus",
        "lr/unet_block24",
        "lr/textencoder",
        "lr/textencoder plus",
    } <= names
    assert not {name for name in names if name.startswith(("lr/unet_block13", "lr/unet_block14"))}, "rate 0: no module"
    rates = {name: values[-1] for name, values in numbers.items() if name in names}
    assert rates["lr/unet_block1"] == pytest.approx(1e-2 * 0.25 + 1e-2 * 1 / 11)
    assert rates["lr/unet_block1 plus"] == pytest.approx(4 * rates["lr/unet_block1"])
    assert rates["lr/unet_block19"] == pytest.approx(0.5e-2) and rates["lr/textencoder"] == pytest.approx(1e-3)
    assert max(numbers["max_norm/max_key_norm"]) == pytest.approx(0.02, rel=1e-5)
    assert max(numbers["max_norm/keys_scaled"]) > 0 and numbers["max_norm/average_key_norm"]

    written = metadata_of(whole)
    assert (written["ss_network_dropout"], written["ss_scale_weight_norms"]) == ("0.3", "0.02")
    arguments = json.loads(written["ss_network_args"])
    expected = {name: EVERYTHING["network"][name] for name in ("block_dims", "down_lr_weight", "up_lr_weight")}
    expected |= {"conv_dim": "2", "conv_alpha": "2", "rank_dropout": "0.2", "module_dropout": "0.2", "dropout": "0.3"}
    assert arguments == expected | {"loraplus_lr_ratio": "4.0", "train_norm": "True"}
    norms = {name: value for name, value in load_file(whole.file()).items() if name.endswith("_norm")}
    assert len(norms) > 20 and all(value.any() for value in norms.values())


@pytest.mark.slow
def test_dropouts_change_the_training_and_checkpointing_does_not_change_the_dropouts(train):
    """By plain descent: Adam divides a gradient by its own size, and of one that is nearly nothing the last digits decide."""
    network = {"rank": 4, "alpha": 4.0, "train_text_encoder": True, **DROPOUTS}
    common = {"schedule": {"max_train_steps": 2}, "optimizer": {"optimizer_type": "SGD", "learning_rate": 0.5}}
    plain = train(network=network | dict.fromkeys(DROPOUTS, 0.0), **common)
    dropped = train(network=network, **common)
    again = train(network=network, **common, memory={"gradient_checkpointing": True})
    for training in (plain, dropped, again):
        assert training.start() == "done"
    assert_same(dropped, again, rtol=1e-3, atol=1e-6)
    assert dropped.losses()[2] == pytest.approx(again.losses()[2], rel=1e-5) != plain.losses()[2]


@pytest.mark.slow
def test_a_training_goes_on_from_another_ones_file(train):
    first = train(network={"train_norm": True}, schedule={"max_train_steps": 2})
    first.start()
    start = {"network_weights": str(first.file())}
    still = {"learning_rate": 1e-12}
    # The file's alpha counts, in training and in the metadata.
    same = train(network={"train_norm": True, "alpha": 2.0, **start}, optimizer=still, schedule={"max_train_steps": 1})
    by_file = train(
        network={"rank": 16, "dim_from_weights": True, **start}, optimizer=still, schedule={"max_train_steps": 1}
    )
    for training in (same, by_file):
        assert training.start() == "done"
        assert_same(first, training, rtol=0, atol=1e-9)
        assert json.loads(metadata_of(training)["ss_network_weights"])["name"] == "t.safetensors"
        assert metadata_of(training)["ss_network_alpha"] == "4.0"
    assert metadata_of(by_file)["ss_network_dim"] == "4"
    other = train(network={"rank": 8, **start}, schedule={"max_train_steps": 1})
    with refused("network.start-rank", "has rank 4", "rank 8"):
        other.start()


@pytest.mark.slow
def test_what_lies_beside_a_lora_and_does_not_train_is_named_before_the_start(train, tmp_path):
    one = {"schedule": {"max_train_steps": 1}}
    first = train(network={"train_norm": True}, **one)
    first.start()
    tensors = load_file(first.file())
    layer, norm = "lora_unet_down_blocks_0_attentions_0_proj_in", "lora_unet_down_blocks_0_attentions_0_norm.w_norm"
    more = {f"{layer}.diff_b": torch.ones_like(tensors[norm]), f"{layer}.bias": torch.ones(3)}
    save_file(tensors | more, tmp_path / "more.safetensors", metadata_of(first))

    def told(**network):
        training = train(network=network, **one)
        found = network_problems(training.job, training.workspace)
        assert all(problem.level == "advice" for problem in found)
        return {problem.code: problem.what for problem in found}

    file = str(tmp_path / "more.safetensors")
    found = told(network_weights=file, train_norm=True)
    assert found.keys() == {"network.start-left-out"} and all(key in found["network.start-left-out"] for key in more)
    found = told(network_weights=file)
    assert found.keys() == {"network.start-left-out", "network.start-unused-layers"}, "norm layers do not train here"
    assert told(network_weights=str(first.file()), train_norm=True) == {}
    found = told(base_weights=[file])["lora.unmatched-layers"]
    assert f"{layer}.bias" in found and f"{layer}.diff_b" not in found and norm not in found, "what is merged is used"


@pytest.mark.slow
@pytest.mark.parametrize("ending", ["safetensors", "pt"])
def test_a_rank_that_does_not_fit_is_told_before_the_run_which_reads_each_weight_once(train, monkeypatch, ending):
    from core.formats.tensors.reading import TensorFile

    one = {"schedule": {"max_train_steps": 1}}
    first = train(network={"train_text_encoder": True, "conv_rank": 2}, saving={"save_model_as": ending}, **one)
    first.start()
    start, read = {"network_weights": str(first.file(f"t.{ending}"))}, []
    plain = TensorFile.read
    monkeypatch.setattr(TensorFile, "read", lambda self, name, *more: (read.append(name), plain(self, name, *more))[1])

    def told(**network):
        training = train(network={**start, **network}, **one)
        return [problem.what for problem in errors(network_problems(training.job, training.workspace))]

    assert told(conv_rank=2) == told(conv_rank=2, train_text_encoder=True) == told(rank=9, dim_from_weights=True) == []
    assert told(block_dims="4,4") == [], "the rules say it, and no rank can be compared"
    found = told(rank=8, conv_rank=4, train_text_encoder=True)
    assert len(found) == 2 and "rank 4 in" in found[0] and "rank 2 in" in found[1]
    assert len(read) == len(set(read)), "for NaN"


@pytest.mark.slow
def test_merged_loras_change_what_is_trained_on_its_texts_too(train):
    first = train(network={"rank": 4, "alpha": 4.0, "train_text_encoder": True}, optimizer={"learning_rate": 2e-2})
    first.start()
    one_step = {"schedule": {"max_train_steps": 1}}
    plain = train(**one_step)
    plain.start()
    losses = [plain.losses()[1]]
    for strength in (1.0, 0.5):
        base = {"base_weights": [str(first.file())], "base_weights_multiplier": str(strength)}
        merged = train(network=base, **one_step)
        merged.start()
        losses.append(merged.losses()[1])
        (written,) = json.loads(metadata_of(merged)["ss_base_weights"])
        assert (written["name"], written["multiplier"], len(written["sha256"])) == ("t.safetensors", strength, 64)
    more = train(network=base, model={"compatibility": "sd-scripts-0.10"}, **one_step)
    more.start()
    own, theirs = (load_file(each.file()).keys() for each in (merged, more))
    assert own < theirs and all("_resnets_" in name and "_conv1" not in name for name in theirs - own)
    # The same LoRA attached, as a starting point, predicts the same before it trains: text encoder and U-Net.
    live = train(
        network={"train_text_encoder": True, "network_weights": str(first.file()), "dim_from_weights": True}, **one_step
    )
    live.start()
    losses.append(live.losses()[1])
    assert losses[1] == pytest.approx(losses[3], rel=1e-4), "cached texts are those of the merged encoder"
    assert len({round(loss, 7) for loss in losses[:3]}) == 3


@pytest.mark.slow
def test_layers_of_a_merged_lora_that_the_model_lacks_are_said_by_the_headers_alone(train, tmp_path):
    one = {"schedule": {"max_train_steps": 1}}
    first = train(network={"rank": 2}, **one)
    first.start()
    own = load_file(first.file())
    layer = "lora_unet_down_blocks_9_attentions_0_proj_in"
    save_file(own, tmp_path / "whole.safetensors")
    more = {f"{layer}.lora_down.weight": torch.ones(2, 8), f"{layer}.lora_up.weight": torch.ones(8, 2)}
    save_file(own | more | {"lora_unet_conv_in.bias": torch.ones(8)}, tmp_path / "more.safetensors")
    whole, other = (
        train(network={"base_weights": [str(tmp_path / f"{name}.safetensors")]}, **one) for name in ("whole", "more")
    )
    assert network_problems(whole.job, whole.workspace) == []
    (problem,) = network_problems(other.job, other.workspace)
    assert (problem.code, problem.level) == ("lora.unmatched-layers", "advice")
    assert layer in problem.what and "lora_unet_conv_in.bias" in problem.what


def test_files_that_do_not_fit_are_told_before_anything_loads(train, tmp_path):
    for setting in ({"network_weights": "gone"}, {"base_weights": ["gone"]}):
        with pytest.raises(ProblemsError) as caught:
            train(network=setting).start()
        (problem,) = [problem for problem in caught.value.problems if problem.level == "error"]
        assert problem.where == f"network.{next(iter(setting))}"
        assert problem.code == "lora.not-found" and "'gone'" in problem.what
    with refused("network.block-count", 25):
        train(network={"block_dims": ",".join(["4"] * 23)}).start()
    with refused("network.no-layers"):
        train(network={"block_dims": "4" + ",0" * 24}).start()


@pytest.mark.parametrize("steady", [True, False])
def test_several_processes_sum_what_trains_at_this_step(steady):  # module dropout leaves weights out of some steps
    process = Together.__new__(Together)
    process.count, process._used = 2, None
    process._all_reduce_on_cpu = lambda have: None  # the other process has nothing
    process._all_reduce = lambda tensor: tensor.mul_(2)
    weights = [torch.nn.Parameter(torch.ones(3)) for _ in range(2)]
    for step, trainable in enumerate(weights):
        for weight in weights:
            weight.grad = torch.ones(3) if weight is trainable else None
        process.sum_gradients(weights, steady=steady)
        summed = trainable.grad.tolist() == [2.0] * 3
        assert summed == (step == 0 or not steady)
