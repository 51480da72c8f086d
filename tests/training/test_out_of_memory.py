"""Memory that runs out next to the training, while samples are drawn or held-out images measured: it is given back, said
with what to switch, and nothing that trains is touched."""

from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file

from core.generation.sample import loop
from core.methods.ema import WeightAverage
from core.optimization.averaging import evaluation_weights
from core.settings.method import MethodSettings
from core.training.loop import timetable, validation
from core.training.loop.samples import Samples

SHOWN = {
    "samples": {"sample_prompts": ["a fox", "a bear"], "sample_steps": 2, "sample_every_n_steps": 2},
    "validation": {"validation_split": 0.3, "validate_every_n_steps": 2},
}
FULL = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")


def fails_at(calls, work):
    """`work`, but for these calls of it, counted from 1."""
    made = []

    def once(*args, **named):
        made.append(1)
        if len(made) in calls:
            raise FULL
        return work(*args, **named)

    return once


@pytest.mark.slow
@pytest.mark.parametrize(
    "groups",
    [{}, {"method": {"kind": "fine_tune", "ema": True, "ema_decay": 0.5}, "optimizer": {"learning_rate": 1e-5}}],
    ids=["LoRA", "average"],
)
def test_a_training_goes_on_unharmed_and_later_samples_are_drawn(train, monkeypatch, groups):
    given_back = []
    monkeypatch.setattr(timetable, "free_memory", lambda: given_back.append(1))
    whole, short = train(**groups, **SHOWN), train(**groups, **SHOWN)
    assert whole.start() == "done" and not given_back
    monkeypatch.setattr("core.training.loop.samples.denoise", fails_at({2, 3}, loop.denoise))
    monkeypatch.setattr(validation, "_measure", fails_at({2, 3}, validation._measure))
    assert short.start() == "done" and len(given_back) == 4
    warned = [line for line in short.lines("log") if line["level"] == "warning" and "out of memory" in line["text"]]
    assert [line["text"].split()[0] for line in warned] == ["Validation", "Sampling"] * 2
    assert all("training continues" in line["fix"] for line in warned)
    assert "samples.width" in warned[1]["fix"] and "validation.validate_every_n_epochs" in warned[0]["fix"]
    assert [(line["step"], line["index"]) for line in short.lines("sample")] == [(0, 0), (4, 0), (4, 1)]
    assert [line["step"] for line in short.lines("validated")] == [4]
    assert short.losses() == whole.losses()
    ours, theirs = load_file(short.file()), load_file(whole.file())
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    clock = {"seq": 0, "time": 0, "seconds": 0}
    assert short.lines("sample")[-1] | clock == whole.lines("sample")[-1] | clock


def test_a_vae_that_found_room_for_a_part_only_is_put_back_whole():
    places = []

    class Vae:
        def to(self, place):
            places.append(place)
            if place == "cuda":
                raise FULL
            return self

    passes = SimpleNamespace(
        device="cuda",
        components=SimpleNamespace(vae=Vae()),
        job=SimpleNamespace(memory=SimpleNamespace(lowram=False)),
    )
    with pytest.raises(torch.OutOfMemoryError), Samples([], None, passes, None, None, None, False).vae_on_device():
        pass
    assert places == ["cuda", "cpu"]


def weights(dtype=torch.float32):
    return [torch.nn.Parameter(torch.full((3,), float(number), dtype=dtype)) for number in (1, 2)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_schedule_free_weights_that_were_half_turned_to_their_average_are_turned_back(dtype):
    from schedulefree import AdamWScheduleFree

    trained = weights(dtype)
    optimizer = AdamWScheduleFree([{"params": [weight]} for weight in trained], lr=0.1)
    optimizer.train()
    for weight in trained:
        weight.grad = torch.ones_like(weight)
    optimizer.step()
    for state in optimizer.state.values():
        state["z"] = state["z"].float()  # as the second set of 16-bit weights is kept (core/optimization/rounding.py)
    before = [weight.detach().clone() for weight in trained]
    turn = optimizer.eval

    def half():
        kept, optimizer.param_groups = optimizer.param_groups, optimizer.param_groups[:1]
        turn()
        optimizer.param_groups = kept
        raise FULL

    optimizer.eval = half
    with pytest.raises(torch.OutOfMemoryError), evaluation_weights(optimizer):
        pass
    assert all(torch.equal(weight, old) and weight.dtype == dtype for weight, old in zip(trained, before, strict=True))
    assert [group["train_mode"] for group in optimizer.param_groups] == [True, True]


def test_weights_that_were_half_replaced_by_their_average_are_put_back():
    trained = dict(zip("ab", weights(), strict=True))
    average = WeightAverage(trained, MethodSettings(ema=True))
    average.average["a"].add_(5)
    del average.average["b"]
    with pytest.raises(KeyError), average.in_place():
        pass
    assert [float(weight.detach()[0]) for weight in trained.values()] == [1.0, 2.0]
