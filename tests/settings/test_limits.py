"""Limits, tables and texts of settings, each at its edge."""

import math
from types import SimpleNamespace

import pytest

from core.settings.blocks import COUNTS, SIDES, block_rates, block_sizes, numbers, rate_numbers
from core.settings.check import build
from core.settings.job import TrainJob
from core.settings.names import bad_name
from core.settings.optimization.optimizers import Argument
from core.settings.optimization.usual_rates import _compared


@pytest.mark.parametrize(
    ("text", "count", "rates"),
    [
        ("linear", 3, [0, 0.5, 1]), ("reverse_linear", 3, [1, 0.5, 0]), ("zeros", 3, [0, 0, 0]),
        ("sine", 3, [0, math.sqrt(0.5), 1]), ("cosine", 3, [1, math.sqrt(0.5), 0]), ("linear+0.25", 3, [0.25, 0.75, 1.25]),
        ("sine", 1, [0]), ("linear", 2, [0, 1]), ("0.5", 12, [0.5] * 12), ("0.5", 4, [0.5] * 4), ("0.5", 3, [0.5]),
        ("1, 0.5,,2", 4, [1, 0.5, 0, 2]),
    ],
)  # fmt: skip
def test_rates_of_blocks(text, count, rates):
    assert rate_numbers(text, count) == pytest.approx(rates)


@pytest.mark.parametrize("text", ["inf", "nan", "x", "linear+inf", "1 2", "linear-1"])
def test_what_is_no_rate_of_blocks(text):
    with pytest.raises(ValueError):
        rate_numbers(text, 3)
    assert numbers(" 1 ,") == [1, 0]


def test_the_sides_of_a_unet_are_down_middle_up_with_1_where_a_list_ends():
    network = build(
        TrainJob, {"network": {"down_lr_weight": "0.1, 0.2", "mid_lr_weight": "0.5", "up_lr_weight": "0.3"}}
    ).network
    rates = block_rates(network, 25)
    assert rates == [0.1, 0.2, *[1.0] * 10, 0.5, *[0.3] * 12]
    assert block_rates(network, 23) == [1.0, 0.1, 0.2, *[1.0] * 7, 0.5, 1.0, 1.0, *[0.3] * 9, 1.0]
    assert COUNTS == {"sd1": 25, "sd2": 25, "sdxl": 23}
    assert [sum(sides[n] for sides in SIDES.values()) for n in (0, 1)] == [25, 23 - 2]
    at_the_threshold = network.model_copy(update={"block_lr_zero_threshold": 0.2})
    assert block_rates(at_the_threshold, 25)[:3] == [0.0, 0.0, 1.0]
    assert block_rates(build(TrainJob, {}).network, 25) is None


def test_rank_and_alpha_of_each_block():
    ranks, alphas = ", ".join(map(str, range(1, 26))), ", ".join(["0"] * 12 + ["2"] * 13)
    given = {"block_dims": ranks, "block_alphas": alphas, "conv_rank": 3, "conv_alpha": None, "down_lr_weight": "0"}
    plain, wide = block_sizes(build(TrainJob, {"network": given}).network, 25)
    assert [each.rank for each in plain] == [*[0] * 12, *range(13, 26)], "a rate of 0 leaves no rank"
    assert [each.alpha for each in plain] == [*range(1, 13), *[2] * 13], "an alpha of 0 is the rank"
    assert [(each.rank, each.alpha) for each in wide] == [(0, 3)] * 12 + [(3, 3)] * 13
    with pytest.raises(ValueError):
        block_sizes(build(TrainJob, {}).network.model_copy(update={"block_dims": "1, 2"}), 25)


@pytest.mark.parametrize(
    ("kind", "takes", "refuses"),
    [("bool", [True], [1, "x", None]), ("int", [1, -1], [True, 1.0, None]), ("number", [1, 0.5], [True, "1", None])]
    + [("numbers", [[1, 2.0], (1, None)], [[1], [True, 1], 1, None]), ("text", ["a"], [1, None])]
    + [("choice", ["a", 2], ["b", None]), ("any", [1, "a", None, []], [])],
)
def test_what_each_kind_of_argument_takes(kind, takes, refuses):
    argument = Argument("x", kind, default=[0.9, 0.999] if kind == "numbers" else None, choices=("a", 2))
    assert all(map(argument.takes, takes)) and not any(map(argument.takes, refuses))
    assert Argument("x", kind, optional=True, choices=("a", 2)).takes(None)


@pytest.mark.parametrize(
    ("name", "valid"),
    [
        ("a" * 200, True),
        ("a" * 201, False),
        ("é" * 100, True),
        ("é" * 101, False),
        ("", False),
        (" ", False),
        ("a.", False),
    ]
    + [
        (".a", False),
        ("a b", True),
        ("console", True),
        ("com0", True),
        ("com10", True),
        ("a\x1f", False),
        ("\ud800", False),
    ]
    + [(f"a{sign}b", False) for sign in '<>:"/\\|?*']
    + [(name, False) for name in ("con", "PRN", "aux.txt", "nul", "com1", "COM9", "lpt1", "lpt9.a.b")],
)
def test_names_that_every_system_takes(name, valid):
    assert (bad_name(name) is None) == valid


@pytest.mark.parametrize(
    ("optimizer", "factors"),
    [("AdamW", (1, 1, 1)), ("Lion", (0.1, 0.2, 1 / 3)), ("Tiger", (0.1, 0.2, 1 / 3)), ("SGDNesterov", (100, 100, 1000))]
    + [("AdamWScheduleFree", (1, 3, 10)), ("Adagrad", (1, 10, 1000)), ("Muon", (1, 10, 1000)), ("RMSprop", (1, 1, 1))],
)
def test_usual_rates_of_other_optimizers_compared_with_adamws(optimizer, factors):
    job = build(TrainJob, {"optimizer": {"optimizer_type": optimizer}})
    assert _compared(job) == factors
    assert _compared(SimpleNamespace(optimizer=SimpleNamespace(optimizer_type="x.Unheard"))) == (0.1, 1.0, 10.0)
