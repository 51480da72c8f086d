"""What an update clips, counts and moves, in closed form; with sd-scripts' choices where they differ."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from core.optimization.clipping import NonFiniteGuard
from core.optimization.scaling import make_scaler
from core.record.processes import Processes
from core.training.stepper import Stepper


def weight(*gradient):
    made = nn.Parameter(torch.zeros(len(gradient)))
    made.grad = torch.tensor(gradient)
    return made


def stepper(learning, *, scaler=None, **more):
    method = SimpleNamespace(steady_gradients=True, state_dict=dict, load_state_dict=lambda tensors: None)
    optimizer, guard = torch.optim.SGD(learning, lr=1.0), NonFiniteGuard("cpu")
    return Stepper(
        method, learning, optimizer, guard, Processes(), scaler=scaler, fused=None, max_grad_norm=1.0, **more
    )


def test_what_does_not_learn_can_count_in_the_norm_and_stays_where_it_is():
    learns, rests = weight(3.0), weight(4.0)
    norm = stepper([learns], clipped=[learns, rests]).step(torch.zeros(()))
    assert float(norm) == pytest.approx(5.0)
    assert learns.item() == pytest.approx(-0.6, rel=1e-5) and rests.item() == 0
    assert learns.grad is None and rests.grad is None, "nothing of it is left for the next update"


def test_what_learns_can_be_left_out_of_clipping_but_not_of_the_guard():
    first, second = weight(3.0), weight(0.0, 4.0)
    own = stepper([first, second], clipped=[second])
    assert float(own.step(torch.zeros(()))) == 4.0
    assert first.item() == -3.0 and second[1].item() == pytest.approx(-1.0, rel=1e-5)
    first.grad, second.grad = torch.tensor([float("nan")]), torch.ones(2)
    before = second.detach().clone()
    own.step(torch.zeros(()))
    assert torch.equal(second, before) and own._guard.tripped()


def test_scaled_gradients_are_measured_unscaled_also_of_what_does_not_learn():
    learns, rests = weight(0.0), weight(0.0)
    scaler = make_scaler("cpu", torch.float32)
    own = stepper([learns], scaler=scaler, clipped=[learns, rests])
    scaler.scale(torch.zeros(()))
    learns.grad, rests.grad = (torch.tensor([size * scaler.get_scale()]) for size in (3.0, 4.0))
    assert float(own.step(torch.zeros(()))) == pytest.approx(5.0)
    assert learns.item() == pytest.approx(-0.6, rel=1e-5)


@pytest.mark.parametrize("pauses", [True, False])
def test_updates_that_an_overflow_left_out_are_counted_where_the_curve_waits_for_them(tmp_path, pauses):
    learns = weight(1.0)
    scaler = make_scaler("cpu", torch.float32)
    own = stepper([learns], scaler=scaler, pauses=pauses)
    scaler.scale(torch.zeros(()))
    for size in (1.0, float("inf"), 1.0, float("inf")):
        learns.grad = torch.tensor([size])
        own.step(torch.zeros(()))
    assert own.paused == (2 if pauses else 0)
    again = stepper([learns], scaler=make_scaler("cpu", torch.float32), pauses=pauses)
    again.load(own.state_dict(), tmp_path)
    assert again.paused == own.paused
