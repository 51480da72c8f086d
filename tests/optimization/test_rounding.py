"""Rounding by chance: right on average, addressed, and a step in fp32 for 16-bit weights."""

import pytest
import torch
from torch import nn

from core.optimization import rounding
from core.optimization.optimizers import load_state
from core.optimization.rounding import draws, round_stochastically, widen_steps


def drawn(seed=0):
    return torch.Generator().manual_seed(seed)


def shorts(seed=0):
    return draws(seed, torch.device("cpu"))


def test_rounding_by_chance_is_right_on_average():
    """Of n draws of a number between two neighbors at distance u, the mean is the number, within 4 u / (2 sqrt n)."""
    value, n = 1.0 + 0.3 * 2**-7, 20000  # 2 ** -7: the distance of bf16 numbers above 1
    rounded = round_stochastically(torch.full((n,), value), shorts()).float()
    assert set(rounded.tolist()) == {1.0, 1.0 + 2**-7}
    assert rounded.mean().item() == pytest.approx(value, abs=4 * 2**-7 / (2 * n**0.5))
    negative = round_stochastically(torch.full((n,), -value), shorts(1)).float()
    assert negative.mean().item() == pytest.approx(-value, abs=4 * 2**-7 / (2 * n**0.5))


def test_each_of_many_numbers_has_a_chance_of_its_own():
    values = torch.rand(4001, generator=drawn(2)) + 1
    error = torch.stack([round_stochastically(values, shorts(seed)).float() - values for seed in range(400)])
    assert error.mean(dim=0).abs().max().item() < 5 * 2**-7 / (2 * 400**0.5)
    neighbors = torch.corrcoef(error[:, :8].T)
    assert (neighbors - torch.eye(8)).abs().max().item() < 5 / 400**0.5, "four come from one draw, and are independent"


@pytest.mark.parametrize("value", [0.0, -0.0, 1.5, -3.0, float("inf"), float("-inf"), 2.0**-130])
def test_what_bf16_can_hold_stays_as_it_is(value):
    assert round_stochastically(torch.full((64,), value), shorts()).unique().tolist() == [value]


def test_what_is_no_number_stays_none():
    ones = torch.full((64,), -1, dtype=torch.int32).view(torch.float32)  # a NaN that counts up to 0, as CUDA has them
    for values in (torch.full((64,), float("nan")), ones, (ones.view(torch.int32) ^ -(2**31)).view(torch.float32)):
        assert values.isnan().all() and round_stochastically(values, shorts()).isnan().all()


def test_of_many_numbers_one_that_is_none_is_none_alone():
    values = torch.randn(100, generator=drawn())
    values[7] = torch.full((), 2**31 - 1, dtype=torch.int32).view(torch.float32)  # as CUDA has them
    values[9] = float("inf")
    rounded = round_stochastically(values, shorts())
    assert rounded.isnan().nonzero().tolist() == [[7]] and rounded[9] == float("inf")
    assert torch.equal(rounded.nan_to_num(), rounded.to(torch.bfloat16).float().nan_to_num())


def test_pieces_are_drawn_as_the_whole_is():
    few, many = shorts(3), shorts(3)(4000)
    assert torch.equal(torch.cat([few(8), few(3992)]), many) and many.dtype == torch.int16
    assert abs(many.double().mean()) < 5 * 2**16 / (12 * 4000) ** 0.5


def trainable(kind, **how):
    torch.manual_seed(0)
    weights = [nn.Parameter(torch.randn(30, 20).to(torch.bfloat16)), nn.Parameter(torch.randn(7).to(torch.bfloat16))]
    optimizer = kind([{"params": [weight], "name": str(n)} for n, weight in enumerate(weights)], lr=1e-4)
    widen_steps(optimizer, 7, **{"stochastic": True, "by_parts": True, **how})
    return weights, optimizer


def walk(weights, optimizer, steps):
    for step in range(steps):
        for place, weight in enumerate(weights):
            weight.grad = torch.randn(weight.shape, generator=drawn(step * 10 + place)).to(torch.bfloat16) + 1
        optimizer.step()


def test_kahan_summation_adds_up_what_rounding_left_out_without_chance_and_after_resuming():
    def weight(kahan, start=0.02):
        one = nn.Parameter(torch.full((9,), start, dtype=torch.bfloat16))
        optimizer = torch.optim.SGD([one], lr=1.0)
        widen_steps(optimizer, 7, stochastic=True, by_parts=True, kahan=kahan)
        return one, optimizer

    def walked(one, optimizer, steps):
        for _ in range(steps):
            one.grad = torch.full_like(one, -1e-6)
            optimizer.step()
        return one.detach().float()

    whole, (one, optimizer) = weight(True), weight(True)
    end = walked(*whole, 4000)
    assert end.unique().tolist() == [pytest.approx(0.02 + 4000 * 1e-6, abs=2e-4)]  # 1.2e-4: distance of bf16 numbers
    assert walked(*weight(True), 10).unique().tolist() == [float(torch.tensor(0.02).bfloat16())]
    walked(one, optimizer, 1500)
    again, resumed = weight(True)
    with torch.no_grad():
        again.copy_(one)
    load_state(resumed, optimizer.state_dict())
    assert torch.equal(walked(again, resumed, 2500), end)


@pytest.mark.parametrize("withheld", [0.0, 1.0])
def test_a_withheld_step_changes_nothing_of_a_kahan_summation(withheld):
    one = nn.Parameter(torch.ones(5, dtype=torch.bfloat16))
    optimizer = torch.optim.AdamW([one], lr=1e-4)
    wide = widen_steps(optimizer, 7, stochastic=False, by_parts=True, kahan=True)
    for flag in (0.0, withheld):
        before = one.detach().clone(), optimizer.state[one].get(rounding.LOST, torch.zeros(5)).clone()
        one.grad = torch.ones_like(one)
        wide.step_groups(optimizer.param_groups, torch.tensor(flag))
    after = one.detach(), optimizer.state[one][rounding.LOST]
    assert all(map(torch.equal, before, after)) == bool(withheld)


def test_steps_too_small_for_bf16_count_by_chance_and_are_lost_to_the_nearest():
    by_chance, optimizer = trainable(torch.optim.SGD)
    start = [weight.detach().clone() for weight in by_chance]
    walk(by_chance, optimizer, 100)
    moved = (by_chance[0] - start[0]).float().mean().item()
    assert moved == pytest.approx(-0.01, rel=0.25)  # 100 steps of 1e-4 times a gradient of 1 on average
    nearest, optimizer = trainable(torch.optim.SGD, stochastic=False)
    walk(nearest, optimizer, 100)
    assert abs((nearest[0] - start[0]).float().mean().item()) < 0.005


def test_the_size_of_the_parts_changes_nothing(monkeypatch):
    whole, optimizer = trainable(torch.optim.AdamW)
    walk(whole, optimizer, 3)
    at_once, optimizer = trainable(torch.optim.AdamW, by_parts=False)
    walk(at_once, optimizer, 3)
    monkeypatch.setattr(rounding, "LARGEST", 1)
    single, optimizer = trainable(torch.optim.AdamW)
    walk(single, optimizer, 3)
    for one, other, third in zip(whole, at_once, single, strict=True):
        assert torch.equal(one, other) and torch.equal(one, third)
        assert one.dtype == torch.bfloat16 and one.grad is None


def test_a_step_that_is_withheld_moves_nothing():
    weights, optimizer = trainable(torch.optim.AdamW)
    before = [weight.detach().clone() for weight in weights]
    for weight in weights:
        weight.grad = torch.ones_like(weight)
    optimizer.step.step_groups(optimizer.param_groups, withheld=torch.ones(()))
    assert all(torch.equal(one, other) for one, other in zip(weights, before, strict=True))


def test_the_optimizers_own_numbers_are_fp32():
    weights, optimizer = trainable(torch.optim.AdamW)
    walk(weights, optimizer, 1)
    assert {state["exp_avg"].dtype for state in optimizer.state.values()} == {torch.float32}


@pytest.mark.parametrize("piece", [4, 64, 600])
def test_numbers_are_rounded_the_same_whatever_is_done_at_a_time(monkeypatch, piece):
    whole, optimizer = trainable(torch.optim.AdamW)
    walk(whole, optimizer, 3)
    monkeypatch.setattr(rounding, "PIECE", piece)
    pieces, optimizer = trainable(torch.optim.AdamW)
    walk(pieces, optimizer, 3)
    assert all(torch.equal(one, other) for one, other in zip(whole, pieces, strict=True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_norm_is_wide_whatever_the_numbers_are(dtype):
    for shape in ((0,), (3,), (300, 500), (64, 7, 60, 10)):
        values = torch.randn(shape, generator=drawn()).to(dtype)
        norm = rounding.wide_norm(values)
        assert norm.dtype == torch.float32 and norm.shape == ()
        assert norm.item() == pytest.approx(values.double().norm().item(), rel=1e-5)
        if values.ndim == 4:
            turned = values.to(memory_format=torch.channels_last)
            assert rounding.wide_norm(turned).item() == pytest.approx(norm.item(), rel=1e-5)
