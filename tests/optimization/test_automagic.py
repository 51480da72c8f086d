"""Automagic's steps equal its formula, computed number by number."""

import numpy
import torch
from pytest import approx, mark, raises

from core.optimization.automagic import Automagic, Automagic3
from core.optimization.optimizers import build_optimizer, find, step_sizes
from core.optimization.rounding import widen_steps
from core.record.problems import ProblemsError
from core.settings.optimization.optimizer import OptimizerSettings

SHAPES = {"matrix": (5, 3), "convolution": (4, 2, 3, 3), "vector": (6,)}


def gradients(shape, count=12):
    """Most signs stay for some steps, a few alternate."""
    draw = numpy.random.default_rng(3)
    base, noise = draw.normal(size=shape), draw.normal(size=(count, *shape))
    alternates = draw.random(shape) < 0.3
    return [numpy.where(alternates, (-1) ** step, 1) * base + 0.2 * noise[step] for step in range(count)]


def moments(seen, beta2=0.999, eps=1e-30):
    """The second moments after these gradients, by the rows and columns of the last two dimensions."""
    found = 0.0
    for each in seen:
        found = beta2 * found + (1 - beta2) * (each**2 + eps)
    if found.ndim == 1:
        return found
    row, column = found.mean(-1, keepdims=True), found.mean(-2, keepdims=True)
    return row / row.mean(-2, keepdims=True) * column


def update(seen):
    found = seen[-1] / moments(seen) ** 0.5
    return found / max(1.0, (found**2).mean() ** 0.5)


def stepped(name, shape, given, rate=1e-4, factors=None, **arguments):
    """(weights, optimizer) after steps with these gradients; factors: the learning rate scheduler's."""
    weight = torch.nn.Parameter(torch.full(shape, 0.5))
    settings = OptimizerSettings(optimizer_type=name, optimizer_args=arguments, learning_rate=rate)
    optimizer = build_optimizer(settings, [{"name": "unet", "params": [weight], "lr": rate}])
    for step, gradient in enumerate(given):
        optimizer.param_groups[0]["lr"] = rate * (factors[step] if factors else 1)
        weight.grad = torch.tensor(gradient, dtype=torch.float32)
        optimizer.step()
    return weight.detach().numpy(), optimizer


@mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_each_element_has_a_rate_that_agreeing_signs_raise(shape):
    given, factors = gradients(shape), [1, 0.5] * 6
    weights, rates, last = numpy.full(shape, 0.5), numpy.full(shape, 1e-4), None
    for step in range(len(given)):
        now = update(given[: step + 1])
        if last is not None:
            rates = numpy.clip(rates + numpy.where((now > 0) == (last > 0), 1, -1) * 3e-5, 2e-5, 3e-4)
        last = now
        weights = weights - factors[step] * rates * (now + 0.1 * weights)
    limits = {"min_lr": 2e-5, "max_lr": 3e-4, "lr_bump": 3e-5}
    found, optimizer = stepped("automagic", shape, given, factors=factors, weight_decay=0.1, **limits)
    assert (rates.min(), rates.max()) == approx((2e-5, 3e-4)), "both limits are reached"
    assert found == approx(weights, abs=1e-6, rel=0), "float32 rounds each of 12 steps by up to 6e-8"
    (state,) = optimizer.state.values()
    assert state["rate"].abs().numpy() == approx(rates, rel=1e-5)
    assert step_sizes(optimizer) == {"unet": approx(rates.mean() * 0.5)}


@mark.parametrize("history", [4, 8, 10])
@mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_each_group_has_a_rate_that_its_elements_vote_for(shape, history):
    given = gradients(shape)
    weights, rate, signs = numpy.full(shape, 0.5), 1e-4, []
    for step in range(len(given)):
        now = numpy.clip(update(given[: step + 1]), -1, 1)
        signs.append(now > 0)
        weights = weights - rate * (now + 0.1 * weights)
        if len(signs) >= history:
            window = numpy.array(signs[-history:])
            up = (window == window[0]).all(0)
            down = (window[1:] != window[:-1]).all(0)
            rate *= numpy.exp((abs(now) * up - abs(now) * down).sum() / abs(now).sum())
    found, optimizer = stepped("Automagic3", shape, given, weight_decay=0.1, polarity_history=history)
    assert rate > 1.05e-4 and down.any()
    assert step_sizes(optimizer) == {"unet": approx(rate, rel=1e-5)}
    assert found == approx(weights, abs=1e-6, rel=0)


def test_a_group_of_automagic3_votes_together():
    rises, falls = torch.nn.Parameter(torch.zeros(4, 4)), torch.nn.Parameter(torch.zeros(4, 4))
    optimizer = Automagic3([{"name": "a", "params": [rises, falls], "lr": 1e-3}], polarity_history=2)
    for step in range(6):
        rises.grad, falls.grad = torch.ones(4, 4), torch.full((4, 4), (-1.0) ** step)
        optimizer.step()
    assert optimizer.average_rates() == {"a": approx(1e-3)}
    assert rises.mean() < 0


def test_weights_in_bf16_move_by_less_than_their_spacing():
    weight = torch.nn.Parameter(torch.ones(64, 64, dtype=torch.bfloat16))
    optimizer = Automagic([{"name": "a", "params": [weight], "lr": 1e-4}])
    widen_steps(optimizer, 1, stochastic=True, by_parts=True)
    for _ in range(20):
        weight.grad = torch.ones_like(weight)
        optimizer.step()
    assert optimizer.state[weight]["rate"].dtype == torch.float32
    moved = sum(1e-4 + step * 1e-6 for step in range(20))
    assert (1 - weight.float()).mean().item() == approx(moved, rel=0.2), "bf16 below 1 has steps of 4e-3"


@mark.parametrize(("name", "arguments"), [("Automagic", {"min_lr": 1.0}), ("Automagic3", {"polarity_history": 40})])
def test_limits_that_cannot_be_are_refused(name, arguments):
    with raises(ProblemsError) as refused:
        stepped(name, (2,), [], **arguments)
    assert [problem.code for problem in refused.value.problems] == ["optimizer.refused"]
    assert find(name).package == "Atelier"
