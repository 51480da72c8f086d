import json
from pathlib import Path

import torch
from pytest import approx, mark

from core.optimization.schedules import multiplier, set_learning_rates

RECORDED = json.loads((Path(__file__).parents[1] / "vectors" / "lr_schedules.json").read_text())


def warmup_steps(case):
    """sd-scripts: below 1 a ratio of all steps, the product truncated."""
    given = case["args"].get("lr_warmup_steps", 0)
    return int(given * case["max_train_steps"]) if given < 1 else given


@mark.parametrize(
    "case", RECORDED["cases"], ids=lambda case: f"{case['scheduler']}-{case['args'].get('lr_warmup_steps', 0)}"
)
def test_rates_equal_those_sd_scripts_used_at_each_step(case):
    name = case["scheduler"].removesuffix("_with_warmup")
    total = case["max_train_steps"]
    rates = [RECORDED["base_lr"][0] * multiplier(name, step, warmup_steps(case), total) for step in range(total)]
    assert len(case["lr"]) == total
    assert rates == approx(case["lr"], rel=1e-9, abs=1e-14)  # recorded to 14 decimals


@mark.parametrize("name", ["constant", "cosine", "linear"])
def test_warm_up_starts_at_0_and_ends_at_the_full_rate(name):
    assert [multiplier(name, step, 4, 100) for step in range(5)] == [0.0, 0.25, 0.5, 0.75, 1.0]


@mark.parametrize(("name", "end"), [("constant", 1.0), ("cosine", 0.0), ("linear", 0.0)])
def test_past_the_end_a_curve_stays_where_it_ended(name, end):
    assert multiplier(name, 100, 0, 100) == approx(end) and multiplier(name, 170, 0, 100) == approx(end)


def test_a_warm_up_as_long_as_the_run_only_rises():
    assert [multiplier("cosine", step, 4, 4) for step in range(4)] == [0.0, 0.25, 0.5, 0.75]


def test_each_group_follows_the_curve_from_its_own_rate():
    one, other = (torch.nn.Parameter(torch.zeros(1)) for _ in range(2))
    groups = [{"params": [one], "lr": 1e-3, "initial_lr": 1e-3}, {"params": [other], "lr": 2e-4, "initial_lr": 2e-4}]
    optimizer = torch.optim.AdamW(groups)
    assert set_learning_rates(optimizer, 0.5) == [5e-4, 1e-4]
    assert set_learning_rates(optimizer, 0.1) == approx([1e-4, 2e-5])
    assert [group["lr"] for group in optimizer.param_groups] == approx([1e-4, 2e-5])
