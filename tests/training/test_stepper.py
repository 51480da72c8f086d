"""What an update clips, counts and moves, in closed form; with sd-scripts' choices where they differ."""

import copy
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from core.methods.ema import average_of
from core.optimization.clipping import NonFiniteGuard, make_scaler
from core.record.processes import Processes
from core.settings.method import MethodSettings
from core.training.loop.stepper import Stepper


def weight(*gradient):
    made = nn.Parameter(torch.zeros(len(gradient)))
    made.grad = torch.tensor(gradient)
    return made


def stepper(trainable, *, scaler=None, processes=None, **more):
    method = SimpleNamespace(steady_gradients=True, state_dict=dict, load_state_dict=lambda tensors: None)
    optimizer, guard = torch.optim.SGD(trainable, lr=1.0), NonFiniteGuard("cpu")
    return Stepper(
        method,
        trainable,
        optimizer,
        guard,
        processes or Processes(),
        scaler=scaler,
        fused=None,
        max_grad_norm=1.0,
        **more,
    )


def test_what_does_not_train_can_count_in_the_norm_and_stays_where_it_is():
    trains, rests = weight(3.0), weight(4.0)
    norm = stepper([trains], clipped=[trains, rests]).step(torch.zeros(()))
    assert float(norm) == pytest.approx(5.0)
    assert trains.item() == pytest.approx(-0.6, rel=1e-5) and rests.item() == 0
    assert trains.grad is None and rests.grad is None, "nothing of it is left for the next update"


@pytest.mark.parametrize("dtype", [None, torch.float32])
def test_a_step_whose_layers_were_all_dropped_out_moves_nothing_and_ends_no_run(dtype):
    trained = nn.Parameter(torch.ones(1))
    own = stepper([trained], scaler=make_scaler("cpu", dtype) if dtype else None)
    losses = own.backward(lambda: torch.ones(2), 2, True)
    assert losses.tolist() == [1, 1] and float(own.step(losses.mean())) == 0 and trained.item() == 1
    own.backward(lambda: trained.expand(2), 2, True)
    own.step(losses.mean())
    assert trained.item() < 1


@pytest.mark.parametrize("processes", [1, 2])
def test_gradients_that_nothing_clears_add_up_over_steps_and_a_state(tmp_path, processes):
    """sd-scripts: G(k+1) = c(k) G(k) + g, where c(k) = 1 / (|trains, G(k)| + 1e-6) is what clipping to 1 leaves."""
    group = SimpleNamespace(
        count=processes, sum_gradients=lambda weights, steady: [each.grad.mul_(processes) for each in weights]
    )
    trains, rests = weight(0.0), weight(0.0)
    rests.grad = None
    own = stepper([trains], clipped=[trains, rests], keeps_clipped_gradients=True, processes=group)
    left, moved = 0.0, 0.0
    for step in range(4):
        trains.grad = torch.tensor([3.0 / processes])
        new = torch.tensor([4.0 / processes])
        rests.grad = new if rests.grad is None else rests.grad + new
        norm = own.step(torch.zeros(()))
        left += 4.0
        expected = (9 + left * left) ** 0.5
        assert float(norm) == pytest.approx(expected, rel=1e-5)
        moved -= 3.0 / (expected + 1e-6)
        left /= expected + 1e-6
        assert trains.item() == pytest.approx(moved, rel=1e-5) and rests.item() == 0
        if step == 1:
            content = own.state_dict()
            rests = weight(0.0)
            own = stepper([trains], clipped=[trains, rests], keeps_clipped_gradients=True, processes=group)
            own.load(content, tmp_path)


def test_what_adds_up_begins_at_nothing_after_a_step_that_was_not_finite():
    trains, rests = weight(3.0), weight(float("nan"))
    own = stepper([trains], clipped=[trains, rests], keeps_clipped_gradients=True)
    own.step(torch.zeros(()))
    assert rests.grad.item() == 0 and trains.item() == 0


def test_what_trains_can_be_left_out_of_clipping_but_not_of_the_guard():
    first, second = weight(3.0), weight(0.0, 4.0)
    own = stepper([first, second], clipped=[second])
    assert float(own.step(torch.zeros(()))) == 4.0
    assert first.item() == -3.0 and second[1].item() == pytest.approx(-1.0, rel=1e-5)
    first.grad, second.grad = torch.tensor([float("nan")]), torch.ones(2)
    before = second.detach().clone()
    own.step(torch.zeros(()))
    assert torch.equal(second, before) and own._guard.tripped()


def test_scaled_gradients_are_measured_unscaled_also_of_what_does_not_train():
    trains, rests = weight(0.0), weight(0.0)
    scaler = make_scaler("cpu", torch.float32)
    own = stepper([trains], scaler=scaler, clipped=[trains, rests])
    scaler.scale(torch.zeros(()))
    trains.grad, rests.grad = (torch.tensor([size * scaler.get_scale()]) for size in (3.0, 4.0))
    assert float(own.step(torch.zeros(()))) == pytest.approx(5.0)
    assert trains.item() == pytest.approx(-0.6, rel=1e-5)


@pytest.mark.parametrize("counts_overflows", [True, False])
def test_updates_that_an_overflow_left_out_are_counted_where_the_curve_waits_for_them(tmp_path, counts_overflows):
    trains = weight(1.0)
    scaler = make_scaler("cpu", torch.float32)
    own = stepper([trains], scaler=scaler, counts_overflows=counts_overflows)
    scaler.scale(torch.zeros(()))
    for size in (1.0, float("inf"), 1.0, float("inf")):
        trains.grad = torch.tensor([size])
        own.step(torch.zeros(()))
    assert own.overflow_steps == (2 if counts_overflows else 0)
    again = stepper([trains], scaler=make_scaler("cpu", torch.float32), counts_overflows=counts_overflows)
    again.load(own.state_dict(), tmp_path)
    assert again.overflow_steps == own.overflow_steps


def averaging_stepper(trains, **settings):
    """A stepper of a method with one trained weight, whose own work after each step halves it, as max weight norm may."""

    def load(tensors):
        assert tensors.keys() == {"w"}, "the average is no weight of the method"
        trains.data.copy_(tensors["w"])

    own = stepper([trains])
    own._method = SimpleNamespace(
        steady_gradients=True,
        state_dict=lambda: {"w": trains.detach()},
        load_state_dict=load,
        after_update=lambda: {"halved": trains.data.mul_(0.5)},
    )
    plain = {"ema": True, "ema_decay": 0.5, "ema_warmup": False}
    own.average = average_of(own._method, [trains], MethodSettings(**{**plain, **settings}))
    return own


def updates(own, trains, gradients):
    for gradient in gradients:
        trains.grad = torch.tensor([gradient])
        own.step(torch.zeros(()))
        assert own.after_update().keys() == {"halved"}


@pytest.mark.parametrize("use", ["all", "files", "samples"])
def test_any_method_has_an_average_in_files_samples_and_states_next_to_its_weights(use):
    """Weights -0.5 / 2 and (-0.25 - 0.75) / 2; their average at decay 0.5: -0.125, then -0.3125."""
    trains = nn.Parameter(torch.zeros(1))
    own = averaging_stepper(trains, ema_use=use)
    updates(own, trains, (0.5, 0.75))
    seen = {}
    for each in ("files", "samples"):
        with own.weights_for(each):
            seen[each] = trains.item()
    assert seen == pytest.approx({each: -0.3125 if use in ("all", each) else -0.5 for each in seen})
    assert trains.item() == -0.5, "training goes on with the weights themselves"
    state = copy.deepcopy(own.state_dict())
    assert {name: float(value) for name, value in state["weights"].items()} == {
        "w": -0.5,
        "ema.w": -0.3125,
        "ema.steps": 2,
    }
    other_trains = nn.Parameter(torch.ones(1))
    other = averaging_stepper(other_trains, ema_use=use)
    other.load(state, Path())
    for weight, each in ((trains, own), (other_trains, other)):
        updates(each, weight, (0.25,))
    assert trains.item() == other_trains.item() and torch.equal(own.average.average["w"], other.average.average["w"])

    without = averaging_stepper(nn.Parameter(torch.ones(1)), ema=False)
    assert without.average is None and without.state_dict()["weights"].keys() == {"w"}
    without.load(state, Path())  # of a run with an average
