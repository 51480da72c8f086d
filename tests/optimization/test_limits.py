"""Limits and tables of optimizer steps at their edges."""

import random

import numpy
import pytest
import torch
from torch import nn

from core.optimization import rounding, undo
from core.optimization.clipping import HalfWeightScaler, NonFiniteGuard, clip_grad_norm, make_scaler
from core.optimization.fused import FusedBackward, split_groups
from core.optimization.groups import Trainable, parameter_groups
from core.optimization.optimizers import build_optimizer, load_state, step_sizes
from core.optimization.rounding import parts_of, widen_steps
from core.optimization.schedules import LrSchedule, Rates, curve
from core.optimization.seeded import global_state, seed_steps
from core.settings.check import build
from core.settings.job import TrainJob
from core.settings.optimization.optimizer import OptimizerSettings


def weight(*gradient, dtype=torch.float32):
    made = nn.Parameter(torch.zeros(len(gradient), dtype=dtype))
    made.grad = torch.tensor(gradient, dtype=dtype)
    return made


def groups_of(*weights, **more):
    return [{"name": f"part{number}", "params": [each], "lr": 1.0, **more} for number, each in enumerate(weights)]


# ---- clipping


@pytest.mark.parametrize(("limit", "left"), [(5.001, 5.0), (5.0, 5.0), (4.999, 4.999), (1.0, 1.0), (0.0, 5.0)])
def test_gradients_are_clipped_above_the_limit_only_and_0_is_off(limit, left):
    one, other = weight(3.0), weight(0.0, 4.0)
    assert float(clip_grad_norm([one, other], limit)) == pytest.approx(5.0)
    assert float(torch.cat([one.grad, other.grad]).norm()) == pytest.approx(left, rel=1e-6)


@pytest.mark.parametrize(
    ("limit", "moved"), [(0.0, [3.0, 0.5]), (1.0, [1.0, 0.5]), (0.5, [0.5, 0.5]), (4.0, [3.0, 0.5])]
)
def test_within_the_backward_pass_each_tensor_is_clipped_alone(limit, moved):
    weights = [nn.Parameter(torch.zeros(1)) for _ in moved]
    optimizer, guard = torch.optim.SGD(weights, lr=1.0), NonFiniteGuard("cpu")
    wide = widen_steps(optimizer, 0, stochastic=False, by_parts=True)
    fused = FusedBackward(optimizer, wide, guard, limit, by_tensor=True)
    loss = weights[0].sum() * 3.0 + weights[1].sum() * 0.5
    fused.begin(loss.detach())
    loss.backward()
    assert float(fused.end()) == pytest.approx((9 + 0.25) ** 0.5), "the norm is told before clipping"
    fused.release()
    assert [-each.item() for each in weights] == pytest.approx(moved, rel=1e-5)


def test_within_the_backward_pass_a_part_moves_though_one_of_its_weights_has_no_gradient():
    used, unused = (nn.Parameter(torch.zeros(1)) for _ in range(2))
    optimizer, guard = torch.optim.SGD([used, unused], lr=1.0), NonFiniteGuard("cpu")
    wide = widen_steps(optimizer, 0, stochastic=False, by_parts=True)
    fused = FusedBackward(optimizer, wide, guard, 0.0, by_tensor=False)
    loss = used.sum() * 3.0
    fused.begin(loss.detach())
    loss.backward()
    fused.end()
    fused.release()
    assert (used.item(), unused.item(), used.grad) == (-3.0, 0.0, None)


@pytest.mark.parametrize("allowed", [0, 1, 3])
def test_the_guard_lets_so_many_steps_pass_without_a_move_and_from_the_next_on_none_moves(allowed):
    trains = weight(1.0)
    optimizer, guard = torch.optim.SGD([trains], lr=1.0), NonFiniteGuard("cpu", allowed)

    def step(loss):
        before = float(trains)
        trains.grad = torch.ones(1)
        guard.begin()
        guard.watch(torch.tensor(loss))
        guard.step(optimizer)
        return float(trains) != before

    bad, good = float("nan"), 1.0
    assert [step(loss) for loss in [bad] * allowed] == [False] * allowed
    assert step(good) and step(good)
    assert not step(bad) and not step(good) and not step(good), "one too many"


# ---- what is split into parts


@pytest.mark.parametrize(("count", "sizes"), [(1, [4, 1]), (2, [3, 1, 1]), (3, [2, 2, 1]), (5, [1] * 5), (9, [1] * 5)])
def test_groups_within_the_backward_pass_have_an_equal_share_of_the_tensors_and_one_rate(count, sizes):
    tensors = [nn.Parameter(torch.zeros(1)) for _ in range(5)]
    groups = [{"name": "a", "params": tensors[:4], "lr": 1.0}, {"name": "b", "params": tensors[4:], "lr": 2.0}]
    found = split_groups(groups, count)
    assert [len(group["params"]) for group in found] == sizes
    assert [each for group in found for each in group["params"]] == tensors
    assert [group["lr"] for group in found] == [1.0] * (len(sizes) - 1) + [2.0]


@pytest.mark.parametrize(
    ("largest", "sizes"),
    [(3, [[2], [3], [4], [1]]), (4, [[2], [3], [4], [1]]), (5, [[2, 3], [4, 1]]), (10, [[2, 3, 4, 1]])],
)
def test_weights_are_fp32_in_parts_of_so_many_numbers_and_a_larger_one_alone(monkeypatch, largest, sizes):
    monkeypatch.setattr(rounding, "LARGEST", largest)
    group = {"name": "a", "params": [nn.Parameter(torch.zeros(size)) for size in (2, 3, 4, 1)], "lr": 1.0}
    assert [[each.numel() for each in part[0]["params"]] for part in parts_of([group])] == sizes


def test_a_step_is_undone_where_its_copies_fit_into_the_limit_to_the_byte(monkeypatch):
    trains = weight(1.0, 1.0, 1.0)
    optimizer = torch.optim.SGD([trains], lr=1.0, momentum=0.9)
    optimizer.step()
    held = 2 * 3 * 4  # bytes of the weight and its momentum
    for most, can in ((held, True), (held - 1, False)):
        monkeypatch.setattr(undo, "MOST", most)
        assert undo.can_undo(optimizer, torch.device("cpu")) is can


# ---- tables


@pytest.mark.parametrize(
    ("name", "arguments", "fused"),
    [
        ("AdamW", {}, True),
        ("torch.optim.Adam", {}, True),
        ("SGD", {}, True),
        ("AdamW", {"foreach": True}, None),
        ("AdamW", {"fused": False}, False),
        ("torch.optim.RMSprop", {}, None),
    ],
)
def test_the_optimizers_of_torch_that_have_one_kernel_use_it_unless_told_otherwise(name, arguments, fused):
    settings = OptimizerSettings(optimizer_type=name, optimizer_args=arguments)
    assert build_optimizer(settings, groups_of(weight(1.0))).defaults.get("fused") is fused


@pytest.mark.parametrize(
    ("name", "rates"),
    [("piecewise_constant", [1.0, 1.0, 0.5, 0.5, 0.1]), ("adafactor", [1.0] * 5), ("constant", [0, 0.5, 1, 1, 1])],
)
def test_two_schedules_have_no_warmup_and_a_rule_ends_before_its_step(name, rates):
    arguments = {"step_rules": "1:2,0.5:4,0.1"} if name == "piecewise_constant" else {}
    values = {"lr_scheduler": name, "lr_warmup_steps": 2, "lr_scheduler_args": arguments}
    optimizer = {"optimizer_type": "AdaFactor"} if name == "adafactor" else {}
    own = build(TrainJob, {"schedule": values, "optimizer": optimizer}).schedule
    assert [LrSchedule(own, 5).at(step) for step in range(5)] == rates


@pytest.mark.parametrize(
    ("warmup_init", "rates"),
    [(False, {0: 1e-2, 9_999: 1e-2, 39_999: 5e-3}), (True, {0: 1e-6, 99: 1e-4, 9_999: 1e-2, 39_999: 5e-3})],
)
def test_relative_steps_begin_at_a_hundredth_or_rise_by_a_millionth_a_step(warmup_init, rates):
    """Shazeer and Stern 2018, arXiv:1804.04235, algorithm 5: min(1e-2, 1 / sqrt(t)), with warmup min(1e-6 t, 1 / sqrt(t))."""
    optimizer = {"optimizer_type": "AdaFactor", "optimizer_args": {"relative_step": True, "warmup_init": warmup_init}}
    own = Rates(build(TrainJob, {"optimizer": optimizer}), 100_000)
    assert {step: own.at(step, {"unet": 1.0})["unet"] for step in rates} == pytest.approx(rates)


@pytest.mark.parametrize(
    ("total", "points", "steps"), [(4, 5, [0, 1, 2, 3]), (5, 5, [0, 1, 2, 3, 4]), (9, 5, [0, 2, 4, 6, 8])]
)
def test_a_chart_of_the_rate_has_the_first_and_the_last_step(total, points, steps):
    found = curve(build(TrainJob, {"schedule": {"lr_scheduler": "linear"}}), total, points)
    assert [step for step, _ in found] == steps
    assert found[-1][1]["unet"] == pytest.approx(found[0][1]["unet"] / total)


def test_groups_are_in_sd_scripts_order_whatever_order_the_parts_come_in_and_others_follow():
    parts = {name: [weight(1.0)] for name in ("controlnet", "unet", "text_encoder_2", "text_encoder")}
    settings = OptimizerSettings(learning_rate=1e-3)
    names = [group["name"] for group in parameter_groups(settings, parts)]
    assert names == ["text_encoder", "text_encoder_2", "unet", "controlnet"]
    two = [Trainable("unet", [weight(1.0)], name="a"), Trainable("unet", [weight(1.0)], name="a", factor=2.0)]
    with pytest.raises(ValueError):
        parameter_groups(settings, two)
    scaled = parameter_groups(settings, [Trainable("unet", [weight(1.0)], factor=0.5)], scale=4.0)
    assert [group["lr"] for group in scaled] == pytest.approx([2e-3])


# ---- types, states and random numbers


@pytest.mark.parametrize(("dtype", "kind"), [(torch.float16, HalfWeightScaler), (torch.float32, torch.amp.GradScaler)])
def test_gradients_in_fp16_are_unscaled_only_where_the_weights_are_fp16(dtype, kind):
    scaler = make_scaler("cpu:0", dtype)
    assert type(scaler) is kind and scaler._device == "cpu"
    trains = weight(1.0, dtype=torch.float16)
    scaler.scale(torch.zeros(()))
    optimizer = torch.optim.SGD([trains], lr=1.0)
    if kind is HalfWeightScaler:
        scaler.unscale_(optimizer)
        assert float(trains.grad) == pytest.approx(1 / 65536, rel=1e-2)
    else:
        with pytest.raises(ValueError):
            scaler.unscale_(optimizer)


@pytest.mark.parametrize(("saved", "now"), [(torch.bfloat16, torch.float32), (torch.float32, torch.bfloat16)])
def test_a_state_keeps_its_type_whatever_the_weights_are(saved, now):
    trains = weight(1.0, dtype=now)
    optimizer = torch.optim.SGD([trains], lr=1.0, momentum=0.9)
    optimizer.step()
    state = optimizer.state_dict()
    state["state"][0]["momentum_buffer"] = torch.full((1,), 1 / 3, dtype=saved)
    load_state(optimizer, state)
    held = optimizer.state[trains]["momentum_buffer"]
    assert held.dtype == saved and torch.equal(held, torch.full((1,), 1 / 3, dtype=saved))


def test_an_optimizers_draws_leave_every_generator_of_the_process_where_it_was():
    drawn = []

    class Draws(torch.optim.SGD):
        def step(self, closure=None):
            drawn.append((random.random(), float(numpy.random.rand()), float(torch.rand(()))))

    runs = []
    for _ in range(2):
        drawn.clear()
        optimizer = Draws([weight(1.0)], lr=1.0)
        seed_steps(optimizer, 7)
        for _ in range(2):
            before = global_state()
            optimizer.step()
            assert global_state() == before
        runs.append(list(drawn))
        random.random(), numpy.random.rand(), torch.rand(())
    assert runs[0] == runs[1] and all(len({draw[part] for draw in runs[0]}) == 2 for part in range(3))


def test_the_step_size_that_an_optimizer_found_is_told_for_each_group():
    optimizer = torch.optim.SGD(groups_of(weight(1.0), weight(1.0), weight(1.0)))
    for group, d in zip(optimizer.param_groups, (0.5, torch.tensor(2.0), None), strict=True):
        group |= {"lr": 0.25, "d": d}
    assert step_sizes(optimizer) == {"part0": 0.125}, "a tensor would make the host wait"
