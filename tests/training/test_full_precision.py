"""What trains in bf16 or fp16: a LoRA and new words; whole models are in test_whole_model."""

import pytest
import torch
from safetensors.torch import load_file

from core.formats.embedding_file import read_embedding
from core.methods.network import NetworkMethod
from core.optimization.averaging import evaluation_weights
from core.optimization.optimizers import build_optimizer
from core.optimization.rounding import widen_steps
from core.record.run_folder import newest_state
from core.settings.check import build
from core.settings.job import TrainJob
from core.training.building.setup import Training
from core.training.memory.plan import MemoryFacts, PartSize, memory_plan

TYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}
METHODS = {
    "lora": {"network": {"rank": 4, "alpha": 4.0, "train_text_encoder": True, "conv_rank": 2}},
    "embedding": {
        "method": {"kind": "embedding"},
        "embedding": {"token_string": "zunkel", "num_vectors_per_token": 2, "init_word": "fox"},
        "optimizer": {"learning_rate": 5e-3},
    },
}


def what_trains(monkeypatch, training):
    """Types of the weights, of their gradients where the step begins, and of the optimizer's own numbers."""
    found = {"weights": set(), "gradients": set(), "state": set()}
    measure, release = torch.nn.utils.get_total_norm, Training.release

    def seen(gradients, *args):
        found["gradients"] |= {gradient.dtype for gradient in gradients}
        return measure(gradients, *args)

    def last(built):
        run = built.run
        found["weights"] |= {weight.dtype for weight in run.stepper._parameters}
        held = [value for state in run.stepper.optimizer.state.values() for value in state.values()]
        found["state"] |= {value.dtype for value in held if isinstance(value, torch.Tensor) and value.ndim}
        found["scaler"] = run.stepper._scaler
        release(built)

    monkeypatch.setattr(torch.nn.utils, "get_total_norm", seen)
    monkeypatch.setattr(Training, "release", last)
    assert training.start() == "done"
    return found


def trained(training, method):
    return load_file(training.file()) if method == "lora" else read_embedding(training.file())


@pytest.mark.slow
@pytest.mark.parametrize("case", [("lora", "bf16"), ("embedding", "fp16")], ids="-".join)
def test_weights_and_gradients_have_the_type_and_steps_are_computed_in_fp32(train, monkeypatch, case):
    method, name = case
    plain, own = train(**METHODS[method]), train(**METHODS[method], memory={"full_precision": name})
    assert plain.start() == "done"
    found = what_trains(monkeypatch, own)
    assert found["weights"] == found["gradients"] == {TYPES[name]} and found["state"] == {torch.float32}
    state = torch.load(newest_state(own.folder.states) / "training.pt", weights_only=True)
    assert (state["scaler"] is not None) == (name == "fp16")
    assert own.losses() == pytest.approx(plain.losses(), rel=0.03), "all is computed in 16 bits"
    ours, exact = trained(own, method), trained(plain, method)
    assert ours.keys() == exact.keys()
    for value in ours.values():
        assert torch.equal(value, value.to(TYPES[name]).to(value.dtype)), "the file holds what was trained"
    ways = [torch.cat([each[key].flatten() for key in sorted(each) if "alpha" not in key]) for each in (ours, exact)]
    assert torch.nn.functional.cosine_similarity(*ways, dim=0) > 0.98


@pytest.mark.slow
def test_rounding_by_chance_is_what_lets_small_steps_count(train):
    """At this rate a step is far below the distance of bf16 numbers near the down matrices, about 2 ** -12."""
    files = {}
    for rate, rounding in ((1e-30, False), (1e-6, True), (1e-6, False)):
        memory = {"full_precision": "bf16", "stochastic_rounding": rounding}
        schedule = {"max_train_steps": 3, "seed": 7}
        training = train(memory=memory, optimizer={"learning_rate": rate}, schedule=schedule)
        assert training.start() == "done"
        files[rate, rounding] = load_file(training.file())
    start = files.pop((1e-30, False))
    downs = [key for key in start if key.endswith("lora_down.weight")]
    moved = [sum(int((after[key] != start[key]).sum()) for key in downs) for after in files.values()]
    assert moved[0] > 3 * moved[1]


@pytest.mark.parametrize("kind", ["AdamWScheduleFree", "SGDScheduleFree"])
def test_schedule_free_optimizers_show_the_average_of_16_bit_weights(kind):
    torch.manual_seed(0)
    weight = torch.nn.Parameter(torch.randn(16, 16).to(torch.bfloat16))
    job = build(TrainJob, {"optimizer": {"optimizer_type": kind, "learning_rate": 1e-1}})
    optimizer = build_optimizer(job.optimizer, [{"params": [weight], "name": "unet", "lr": 1e-1}])
    widen_steps(optimizer, 0, stochastic=True, by_parts=False)
    for _ in range(3):
        weight.grad = torch.randn(16, 16).to(torch.bfloat16)
        optimizer.step()
    trainable = weight.detach().clone()
    with evaluation_weights(optimizer):
        assert weight.dtype == torch.bfloat16 and not torch.equal(weight, trainable)
    assert torch.equal(weight, trainable)


@pytest.mark.slow
def test_a_network_that_starts_from_a_file_is_in_the_type_too(train):
    first = train(schedule={"max_train_steps": 1})
    assert first.start() == "done"
    job = {"network": {"rank": 4, "alpha": 4.0, "network_weights": str(first.file())}}
    again = train(**job, memory={"full_precision": "bf16"}, schedule={"max_train_steps": 1, "seed": 7})
    kept = []
    build_network = NetworkMethod.build
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            NetworkMethod,
            "build",
            lambda self, parts: (build_network(self, parts), kept.append(self.network.state_dict()))[0],
        )
        assert again.start() == "done"
    start = load_file(first.file())
    for key, value in kept[0].items():
        if "alpha" not in key:
            assert value.dtype == torch.bfloat16
    assert start.keys() == kept[0].keys()


@pytest.mark.slow
def test_the_file_says_it(train):
    from safetensors import safe_open

    training = train(memory={"full_precision": "fp16", "lowram": True}, schedule={"max_train_steps": 1, "seed": 7})
    assert training.start() == "done"
    with safe_open(training.file(), "pt") as file:
        said = file.metadata()
    assert (said["ss_full_fp16"], said["ss_mixed_precision"], said["ss_lowram"]) == ("True", "fp16", "True")
    assert said["ss_fp8_base"] == "False"


def test_the_plan_counts_it():
    part = PartSize(1000, 100, 0, 50, {"hidden_size": 768, "num_hidden_layers": 12})
    job = build(TrainJob, {**METHODS["embedding"], "memory": {"full_precision": "fp16"}})
    exact = build(TrainJob, {**METHODS["embedding"], "memory": {"mixed_precision": "fp16"}})
    from tests.models import tiny_configs

    unet = PartSize(1000, 100, 0, 50, tiny_configs("sd1")["unet"])
    facts = MemoryFacts("sd1", "cpu", {"unet": unet, "text_encoder": part}, 2000, (64, 64), 1)
    clipped = build(TrainJob, {**METHODS["embedding"], "model": {"compatibility": "sd-scripts-0.10"}})
    words = memory_plan(clipped, facts).gradients - memory_plan(build(TrainJob, METHODS["embedding"]), facts).gradients
    assert words == 49408 * 768 * 4, "the whole table's"
    own, wide = memory_plan(job, facts), memory_plan(exact, facts)
    assert own.gradients * 2 == wide.gradients and own.weights < wide.weights and own.optimizer == wide.optimizer
