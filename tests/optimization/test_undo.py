"""A step after a number that is none is taken back on the device, and who makes the host wait is known."""

import copy

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from core.optimization import undo
from core.optimization.clipping import NonFiniteGuard, clip_grad_norm, make_scaler
from core.optimization.optimizers import build_optimizer
from core.optimization.rounding import widen_steps
from core.settings.optimization.optimizer import OptimizerSettings

RATES = {"AdaFactor": {"relative_step": False, "scale_parameter": False}}
# Those that need no host, and those that read a number of the device in each step themselves, whatever the guard does.
NO_WAIT = [
    "AdamW",
    "AdamW8bit",
    "Lion",
    "Lion8bit",
    "AdaFactor",
    "AdamWScheduleFree",
    "NAdam",
    "pytorch_optimizer.CAME",
]
OWN_WAIT = ["Prodigy", "DAdaptAdam", "DAdaptLion"]


class Waits(TorchDispatchMode):
    """Counts what would make the host wait for a GPU: .item(), bool(tensor), float(tensor)."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += func is torch.ops.aten._local_scalar_dense.default
        return func(*args, **(kwargs or {}))


def trainable(name, dtype=torch.float32):
    torch.manual_seed(0)
    weights = [nn.Parameter(torch.randn(64, 80).to(dtype)), nn.Parameter(torch.randn(4096).to(dtype))]
    settings = OptimizerSettings(optimizer_type=name, learning_rate=1e-2, optimizer_args=RATES.get(name, {}))
    groups = [{"params": [weight], "name": str(number), "lr": 1e-2} for number, weight in enumerate(weights)]
    return weights, build_optimizer(settings, groups)


def gradients(weights, seed, bad=False):
    for number, weight in enumerate(weights):
        draw = torch.randn(weight.shape, generator=torch.Generator().manual_seed(seed + number))
        weight.grad = draw.to(weight.dtype)
    if bad:
        weights[0].grad[3, 3] = float("nan")


def step(guard, weights, optimizer, seed, bad=False):
    gradients(weights, seed, bad)
    guard.begin()
    guard.watch(clip_grad_norm(weights, 1.0))
    guard.step(optimizer)


def tensors_of(optimizer):
    state = copy.deepcopy(optimizer.state_dict()["state"])
    return {
        (place, key): value
        for place, entry in state.items()
        for key, value in entry.items()
        if isinstance(value, torch.Tensor)
    }


@pytest.mark.parametrize("name", [*NO_WAIT, *OWN_WAIT])
def test_weights_and_state_after_a_bad_step_are_those_before_it(name):
    weights, optimizer = trainable(name)
    guard = NonFiniteGuard("cpu", undo=True)
    for seed in range(3):
        step(guard, weights, optimizer, seed)
    before, state = [weight.detach().clone() for weight in weights], tensors_of(optimizer)
    step(guard, weights, optimizer, 3, bad=True)
    step(guard, weights, optimizer, 4)  # finite again: the flag stays
    assert guard.tripped()
    after = tensors_of(optimizer)
    assert all(torch.equal(weight, old) for weight, old in zip(weights, before, strict=True))
    assert state.keys() == after.keys() and all(torch.equal(after[key], state[key]) for key in state)


@pytest.mark.parametrize("name", NO_WAIT)
def test_good_steps_are_those_without_a_guard(name):
    (weights, optimizer), (plain, free) = trainable(name), trainable(name)
    guard = NonFiniteGuard("cpu", undo=True)
    for seed in range(4):
        step(guard, weights, optimizer, seed)
        gradients(plain, seed)
        clip_grad_norm(plain, 1.0)
        free.step()
    assert all(torch.equal(one, other) for one, other in zip(weights, plain, strict=True))


def waits_of(name):
    weights, optimizer = trainable(name)
    guard = NonFiniteGuard("cpu", undo=True)
    for seed in range(2):
        step(guard, weights, optimizer, seed)
    gradients(weights, 2)
    with Waits() as own:
        optimizer.step()
    gradients(weights, 3)
    guard.begin()
    with Waits() as all_of_it:
        guard.watch(clip_grad_norm(weights, 1.0))
        guard.step(optimizer)
    return own.count, all_of_it.count


@pytest.mark.parametrize("name", NO_WAIT)
def test_the_guard_makes_nobody_wait(name):
    own, all_of_it = waits_of(name)
    assert all_of_it == own


@pytest.mark.parametrize("name", OWN_WAIT)
def test_optimizers_that_find_the_step_size_wait_themselves_and_the_guard_once_more(name):
    own, all_of_it = waits_of(name)
    assert own > 0 and all_of_it == own + 1


def test_without_undoing_the_host_waits_once():
    weights, optimizer = trainable("Lion")
    guard = NonFiniteGuard("cpu", undo=False)
    step(guard, weights, optimizer, 0)
    gradients(weights, 1)
    guard.watch(clip_grad_norm(weights, 1.0))
    with Waits() as waits:
        guard.step(optimizer)
    assert waits.count == 1


def test_what_is_too_large_or_may_be_left_out_is_waited_for(monkeypatch):
    weights, optimizer = trainable("Lion")
    step(NonFiniteGuard("cpu", undo=True), weights, optimizer, 0)
    assert undo.can_undo(optimizer, torch.device("cpu"))
    assert not NonFiniteGuard("cpu", allowed=2, undo=True)._undo
    monkeypatch.setattr(undo, "MOST", 100)
    assert not undo.can_undo(optimizer, torch.device("cpu"))


def test_16_bit_weights_are_put_back_too():
    weights, optimizer = trainable("Lion", torch.bfloat16)
    widen_steps(optimizer, 0, stochastic=True, by_parts=True)
    guard = NonFiniteGuard("cpu", undo=True)
    step(guard, weights, optimizer, 0)
    before, state = [weight.detach().clone() for weight in weights], tensors_of(optimizer)
    step(guard, weights, optimizer, 1, bad=True)
    assert all(torch.equal(weight, old) for weight, old in zip(weights, before, strict=True))
    after = tensors_of(optimizer)
    assert all(torch.equal(after[key], state[key]) for key in state)


@pytest.mark.parametrize("name", ["AdamW", "Lion"])
@pytest.mark.parametrize("bad", ["loss", "gradient", "nothing"])
def test_scaled_losses_step_only_where_all_is_finite(name, bad):
    weights, optimizer = trainable(name)
    guard, scaler = NonFiniteGuard("cpu", undo=True), make_scaler("cpu", torch.float32)
    scaler.scale(torch.zeros(()))
    gradients(weights, 0, bad == "gradient")
    before = [weight.detach().clone() for weight in weights]
    guard.begin()
    guard.watch(torch.tensor(float("nan") if bad == "loss" else 1.0))
    with Waits() as waits:
        guard.scaled_step(scaler, optimizer, weights, 1.0)
    moved = [not torch.equal(weight, old) for weight, old in zip(weights, before, strict=True)]
    assert all(moved) if bad == "nothing" else not any(moved)
    assert (waits.count == 0) == (name == "AdamW")


@pytest.mark.parametrize("name", ["AdamW", "Lion"])
def test_after_a_skipped_step_scaled_losses_go_on(name):
    """torch unscales once between two updates of the scale."""
    weights, optimizer = trainable(name)
    guard, scaler = NonFiniteGuard("cpu", allowed=2), make_scaler("cpu", torch.float32)
    scaler.scale(torch.zeros(()))
    before = [weight.detach().clone() for weight in weights]
    moved = []
    for loss in (float("nan"), 1.0):
        gradients(weights, 0, False)
        guard.begin()
        guard.watch(torch.tensor(loss))
        guard.scaled_step(scaler, optimizer, weights, 1.0)
        moved.append(any(not torch.equal(weight, old) for weight, old in zip(weights, before, strict=True)))
    assert moved == [False, True]


def test_a_weight_with_its_first_gradient_makes_the_host_wait():
    """Its state would begin with the gradient of the step that is undone, NaN perhaps."""
    one, other = (torch.nn.Parameter(torch.ones(3)) for _ in range(2))
    optimizer = torch.optim.AdamW([one, other])
    one.grad = torch.ones(3)
    optimizer.step()
    assert undo.can_undo(optimizer, torch.device("cpu"))  # the other has none, and is left alone
    other.grad = torch.full((3,), torch.nan)
    assert not undo.can_undo(optimizer, torch.device("cpu"))
