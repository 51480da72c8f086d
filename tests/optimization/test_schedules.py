import itertools
import math

import torch
from pytest import approx, mark, raises

from core.optimization.optimizers import build_optimizer
from core.optimization.schedules import LrSchedule, Rates, curve, schedule_problems
from core.settings.check import build
from core.settings.job import TrainJob
from core.settings.optimization.optimizers import parse_arguments
from core.settings.optimization.rates import effective_rates, scale_factor, scale_sentence
from core.settings.optimization.schedule import FLOORED, ScheduleSettings, read_step_rules, span, steps_of
from tests.recorded_json import recorded_json
from tests.refusals import problems_of, refused

RECORDED = recorded_json("lr_schedules")
EVERY = [name for name in ScheduleSettings.model_fields["lr_scheduler"].annotation.__args__ if name != "adafactor"]


def job_of(case, compatibility="none"):
    """The job that these arguments of sd-scripts stand for."""
    schedule = {"lr_scheduler": case["scheduler"], **case["args"]}
    if isinstance(schedule.get("lr_scheduler_args"), list):
        schedule["lr_scheduler_args"] = parse_arguments(schedule["lr_scheduler_args"])
    unet, text = RECORDED["base_lr"]
    return build(
        TrainJob,
        {
            "model": {"compatibility": compatibility},
            "schedule": schedule,
            "optimizer": {"learning_rate": unet, "text_encoder_lr": text},
            "network": {"train_text_encoder": True},
        },
    )


def settings(compatibility="none", **given):
    return build(TrainJob, {"schedule": given, "model": {"compatibility": compatibility}}).schedule


@mark.parametrize("compatibility", ["none", "sd-scripts-0.10"])
@mark.parametrize(
    "case", RECORDED["cases"], ids=lambda case: f"{case['scheduler']}-{case['max_train_steps']}-{len(case['args'])}"
)
def test_rates_equal_those_sd_scripts_used_at_each_step(case, compatibility):
    total = case["max_train_steps"]
    job = job_of(case, compatibility=compatibility)
    rates = [Rates(job, total).at(step, {"unet": RECORDED["base_lr"][0]})["unet"] for step in range(total)]
    assert len(case["lr"]) == total
    assert rates == approx(case["lr"], rel=1e-9, abs=1e-14)  # recorded to 14 decimals


@mark.parametrize(
    "case", RECORDED["cases"], ids=lambda case: f"{case['scheduler']}-{case['max_train_steps']}-{len(case['args'])}"
)
def test_the_second_group_had_half_the_rate_of_the_first_throughout(case):
    total, rates = case["max_train_steps"], RECORDED["base_lr"]
    job = job_of(case, compatibility="sd-scripts-0.10")
    own = {"unet": rates[0], "text_encoder": rates[1]}
    for step in range(total):
        now = Rates(job, total).at(step, own)
        assert now["text_encoder"] == approx(case["lr_second_group_ratio"] * now["unet"], rel=1e-12)


def test_the_polynomial_ends_at_1e_7_for_every_part_and_with_compatibility_at_its_share_of_that():
    own = {"unet": 1e-4, "text_encoder": 5e-5}
    right, kohya = (
        build(TrainJob, {"schedule": {"lr_scheduler": "polynomial"}, "model": {"compatibility": which}})
        for which in ("none", "sd-scripts-0.10")
    )
    assert Rates(right, 100).at(100, own) == approx({"unet": 1e-7, "text_encoder": 1e-7})
    assert Rates(kohya, 100).at(100, own) == approx({"unet": 1e-7, "text_encoder": 5e-8})
    tiny = {"unet": 1e-8}
    assert Rates(right, 100).at(50, tiny) == tiny, "below the floor there is nothing to fall to"


@mark.parametrize("name", [name for name in EVERY if name not in ("piecewise_constant", "warmup_stable_decay")])
def test_warm_up_starts_at_0_and_ends_at_the_full_rate(name):
    own = settings(lr_scheduler=name, lr_warmup_steps=4, lr_scheduler_min_lr_ratio=0.1)
    assert [LrSchedule(own, 100).at(step) for step in range(5)] == approx([0.0, 0.25, 0.5, 0.75, 1.0])


def test_without_the_zero_the_first_step_has_its_share():
    own = settings(lr_scheduler="constant_with_warmup", lr_warmup_steps=4, lr_warmup_from_zero=False)
    assert [LrSchedule(own, 100).at(step) for step in range(5)] == [0.25, 0.5, 0.75, 1.0, 1.0]


@mark.parametrize(
    ("name", "end"),
    [
        ("constant", 1.0),
        ("cosine", 0.1),
        ("linear", 0.1),
        ("cosine_with_restarts", 0.1),
        ("polynomial", 0.1 + 0.9 * 1e-3),
        ("rex", 0.1),
        ("cosine_with_min_lr", 0.1),
        ("warmup_stable_decay", 0.1),
    ],
)
def test_past_the_end_a_curve_stays_where_it_ended(name, end):
    own = settings(lr_scheduler=name, lr_scheduler_min_lr_ratio=0.1, lr_decay_steps=20)
    assert [LrSchedule(own, 100).at(step, 1e-4) for step in (100, 170)] == approx([end, end], abs=1e-12)


@mark.parametrize(
    ("d", "wanted"),
    [
        (0.5, [1, 0.947, 0.889, 0.824, 0.750, 0.667, 0.571, 0.462, 0.333, 0.182]),
        (0.9, [1, 0.989, 0.976, 0.959, 0.938, 0.909, 0.870, 0.811, 0.714, 0.526]),
        (0.0, [1, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1]),
    ],
)
def test_rex_has_its_published_factors_after_warmup_for_every_group(d, wanted):
    own = settings(lr_scheduler="rex", rex_d=d, lr_warmup_steps=2)
    for rate in (1e-4, 3e-5):
        assert [LrSchedule(own, 12).at(step, rate) for step in range(2, 12)] == approx(wanted, abs=5e-4)
    assert LrSchedule(settings(lr_scheduler="rex"), 10).at(3) == approx(0.823529, abs=1e-6)


@mark.parametrize("name", [name for name in FLOORED if name != "inverse_sqrt"])
def test_a_minimum_is_where_a_fall_ends_and_with_compatibility_is_that_of_sd_scripts_schedulers(name):
    plain, low = settings(lr_scheduler=name), settings(lr_scheduler=name, lr_scheduler_min_lr_ratio=0.2)
    kohya = settings("sd-scripts-0.10", lr_scheduler=name, lr_scheduler_min_lr_ratio=0.2)
    factors = [[LrSchedule(own, 40).at(step) for step in range(41)] for own in (plain, low, kohya)]
    assert factors[1] == approx([0.2 + 0.8 * factor for factor in factors[0]]) and factors[2] == factors[0]
    assert factors[1][0] == approx(1) and factors[1][-1] == approx(0.2, abs=1e-3)


def test_a_warm_up_as_long_as_the_run_only_rises():
    own = settings(lr_scheduler="cosine", lr_warmup_steps=4)
    assert [LrSchedule(own, 4).at(step) for step in range(4)] == [0.0, 0.25, 0.5, 0.75]


@mark.parametrize("name", EVERY)
def test_resuming_needs_nothing_a_step_has_its_rate_whatever_came_before(name):
    arguments = {"step_rules": "1:3,0.5:6,0.1"} if name == "piecewise_constant" else {}
    own = settings(lr_scheduler=name, lr_warmup_steps=2, lr_decay_steps=3, lr_scheduler_args=arguments)
    forward = [LrSchedule(own, 10).at(step) for step in range(10)]
    assert [LrSchedule(own, 10).at(step) for step in reversed(range(10))] == forward[::-1]
    assert all(math.isfinite(factor) and factor >= 0 for factor in forward)


@mark.parametrize(
    ("given", "steps"),
    [
        (100, 100),
        (0.1, 50),
        ("10%", 50),
        (" 12.5 % ", 62),
        ("100", 100),
        ("0.1", 50),
        (100.0, 100),
        (0, 0),
        ("0", 0),
        (0.999, 499),
    ],
)
def test_a_span_is_steps_a_part_or_a_percentage(given, steps):
    assert steps_of(settings(lr_warmup_steps=given).lr_warmup_steps, 500) == steps
    assert steps_of(span(given), 500) == steps


@mark.parametrize("given", [1.5, "1.5", -1, "ten", "110%", True, None, "10 %%", [1]])
def test_a_span_that_could_be_misread_is_refused_with_the_three_ways(given):
    (problem,) = problems_of(TrainJob, {"schedule": {"lr_warmup_steps": given}})
    assert problem.where == "schedule.lr_warmup_steps" and "(10%)" in problem.fix and "(0.1)" in problem.fix


def test_with_several_processes_the_curve_is_that_of_one_and_with_compatibility_the_warm_up_is_shorter():
    """sd-scripts counts total ticks for all processes and the warm-up once: 10 steps last 5 with two processes."""
    right, kohya = (
        settings(lr_scheduler="linear", lr_warmup_steps=10, compatibility=which)
        for which in ("none", "sd-scripts-0.10")
    )
    for step in range(100):
        assert LrSchedule(right, 100, 2).at(step) == LrSchedule(right, 100).at(step)
        tick, n, w = 2 * step, 200, 10
        assert LrSchedule(kohya, 100, 2).at(step) == approx(tick / w if tick < w else (n - tick) / (n - w))


@mark.parametrize("warmup", [0, 3, 10])
@mark.parametrize(
    ("name", "more", "arguments", "theirs"),
    [
        ("cosine", {}, {"num_cycles": 1.5}, "get_cosine_schedule_with_warmup"),
        ("polynomial", {"lr_scheduler_power": 2}, {"lr_end": 2e-5}, "get_polynomial_decay_schedule_with_warmup"),
        ("cosine_with_min_lr", {}, {"min_lr": 3e-5}, "get_cosine_with_min_lr_schedule_with_warmup"),
        ("warmup_stable_decay", {}, {"decay_type": "1-sqrt"}, "get_wsd_schedule"),
        ("warmup_stable_decay", {}, {"decay_type": "linear", "warmup_type": "cosine"}, "get_wsd_schedule"),
        ("warmup_stable_decay", {}, {"warmup_type": "1-sqrt"}, "get_wsd_schedule"),
    ],
)
def test_further_arguments_of_a_curve_are_those_that_transformers_takes(name, more, arguments, theirs, warmup):
    """As sd-scripts hands lr_scheduler_args on to it."""
    from transformers import optimization

    total, decay, rate = 30, 12, 1e-4
    handed = {"num_warmup_steps": warmup, **arguments}
    if name == "warmup_stable_decay":
        more = {"lr_decay_steps": decay, "lr_scheduler_min_lr_ratio": 0.1}
        handed |= {"num_decay_steps": decay, "num_stable_steps": total - warmup - decay, "min_lr_ratio": 0.1}
    else:
        handed |= {"num_training_steps": total} | ({"power": 2} if name == "polynomial" else {})
    own = settings(lr_scheduler=name, lr_warmup_steps=warmup, lr_scheduler_args=arguments, **more)
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=rate)
    schedule = getattr(optimization, theirs)(optimizer, **handed)
    for step in range(total):
        assert rate * LrSchedule(own, total).at(step, rate) == approx(
            optimizer.param_groups[0]["lr"], rel=1e-9, abs=1e-15
        )
        optimizer.step()
        schedule.step()


@mark.parametrize(("warmup", "timescale"), [(0, None), (10, None), (0, 20), (10, 40)])
def test_the_inverse_square_root_falls_by_its_time_scale_as_in_transformers(warmup, timescale):
    from transformers.optimization import get_inverse_sqrt_schedule

    own = settings(lr_scheduler="inverse_sqrt", lr_warmup_steps=warmup, lr_scheduler_timescale=timescale)
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    schedule = get_inverse_sqrt_schedule(optimizer, warmup, timescale)
    for step in range(100):
        assert LrSchedule(own, 100).at(step) == approx(optimizer.param_groups[0]["lr"], rel=1e-9)
        optimizer.step()
        schedule.step()


def test_step_rules_are_read_and_refused_with_what_is_wrong():
    assert read_step_rules("1:10, 0.1:20,0.005") == ([(1.0, 10), (0.1, 20)], 0.005)
    for bad in ("", "1:10", "1:20,0.5:10,0.1", "1-10,0.1", "1:a,1", "1:0.5,1", "nan:5,1", "1:5,inf"):
        with raises(ValueError):
            read_step_rules(bad)


@mark.parametrize(
    ("name", "arguments"),
    [
        ("StepLR", {"step_size": 3, "gamma": 0.5}),
        ("CosineAnnealingLR", {"T_max": 10}),
        ("torch.optim.lr_scheduler.ExponentialLR", {"gamma": 0.9}),
        ("OneCycleLR", {"max_lr": 2e-3, "total_steps": 12}),
        ("CyclicLR", {"base_lr": 1e-4, "max_lr": 1e-3, "step_size_up": 4}),
        ("MultiStepLR", {"milestones": [2, 5]}),
    ],
)
def test_a_schedule_of_torch_gives_the_rates_that_torch_gives(name, arguments):
    own = settings(lr_scheduler_type=name, lr_scheduler_args=arguments)
    weight = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.AdamW([weight], lr=1e-3)
    theirs = getattr(torch.optim.lr_scheduler, name.rsplit(".", 1)[-1])(optimizer, **arguments)
    for step in range(12):
        assert 1e-3 * LrSchedule(own, 12).at(step, 1e-3) == approx(optimizer.param_groups[0]["lr"], rel=1e-9)
        optimizer.step()
        if step < 11:
            theirs.step()
    assert LrSchedule(own, 12).at(40, 1e-3) == LrSchedule(own, 12).at(11, 1e-3)


def test_a_schedule_that_torch_refuses_is_a_problem_with_its_words():
    own = settings(lr_scheduler_type="OneCycleLR", lr_scheduler_args={"max_lr": 1e-3, "total_steps": 5})
    with refused("schedule.refused", "OneCycleLR"):
        LrSchedule(own, 20).at(0, 1e-3)
    job = build(TrainJob, {"schedule": {"lr_scheduler_type": "OneCycleLR", "lr_scheduler_args": {"max_lr": 1e-3}}})
    assert [(each.code, "20 steps" in each.fix) for each in schedule_problems(job, 20)] == [("schedule.refused", True)]
    assert schedule_problems(build(TrainJob, {}), 20) == []


def optimizer_of(job, *rates):
    groups = [
        {"name": f"part{i}", "params": [torch.nn.Parameter(torch.ones(2))], "lr": rate} for i, rate in enumerate(rates)
    ]
    return build_optimizer(job.optimizer, groups)


def test_each_group_follows_the_curve_from_its_own_rate():
    job = build(TrainJob, {"schedule": {"lr_scheduler": "linear"}})
    optimizer = optimizer_of(job, 1e-3, 2e-4)
    assert Rates(job, 10).set(optimizer, 5) == approx({"part0": 5e-4, "part1": 1e-4})
    assert Rates(job, 10).set(optimizer, 9) == approx({"part0": 1e-4, "part1": 2e-5})
    assert [group["lr"] for group in optimizer.param_groups] == approx([1e-4, 2e-5])
    assert Rates(job, 10).for_optimizer(optimizer, 0) == {"part0": 1e-3, "part1": 2e-4}
    assert [group["lr"] for group in optimizer.param_groups] == approx([1e-4, 2e-5]), "a report changes nothing"


@mark.parametrize(
    ("name", "arguments", "moves"),
    [
        ("OneCycleLR", {"max_lr": 2e-3, "total_steps": 12}, True),
        ("OneCycleLR", {"max_lr": 2e-3, "total_steps": 12, "cycle_momentum": False}, False),
        ("CyclicLR", {"base_lr": 1e-4, "max_lr": 1e-3, "step_size_up": 4, "base_momentum": 0.7}, True),
        ("StepLR", {"step_size": 3}, False),
    ],
)
@mark.parametrize(("optimizer_type", "own"), [("AdamW", {}), ("SGD", {"momentum": 0.8})])
def test_a_schedule_of_torch_moves_the_momentum_as_torch_does(name, arguments, moves, optimizer_type, own):
    schedule = {"lr_scheduler_type": name, "lr_scheduler_args": arguments}
    job = build(
        TrainJob,
        {"schedule": schedule, "optimizer": {"optimizer_type": optimizer_type, "optimizer_args": own}},
    )
    optimizer = optimizer_of(job, 1e-3, 5e-4)
    weights = [torch.nn.Parameter(torch.ones(2)) for _ in range(2)]
    theirs = getattr(torch.optim, optimizer_type)(
        [{"params": [weights[0]], "lr": 1e-3}, {"params": [weights[1]], "lr": 5e-4}], **own
    )
    curve_of_torch = getattr(torch.optim.lr_scheduler, name)(theirs, **arguments)
    part, seen = ("betas" if optimizer_type == "AdamW" else "momentum"), set()
    for step in range(12):
        Rates(job, 12).set(optimizer, step)
        assert [group[part] for group in optimizer.param_groups] == [
            approx(group[part], rel=1e-12) for group in theirs.param_groups
        ]
        seen.add(optimizer.param_groups[0][part])
        for weight, group in zip(weights, optimizer.param_groups, strict=True):
            weight.grad = torch.full((2,), 0.1 * (step + 1))
            group["params"][0].grad = weight.grad.clone()
        optimizer.step()
        theirs.step()
        if step < 11:
            curve_of_torch.step()
    assert (len(seen) > 3) is moves
    for weight, group in zip(weights, optimizer.param_groups, strict=True):
        torch.testing.assert_close(group["params"][0], weight, rtol=1e-6, atol=0)


def test_rates_are_scaled_by_the_batch_that_folders_have_of_their_own():
    held_out = {"folder": "c", "role": "validation", "train_batch_size": 9}
    folders = [{"folder": "a", "train_batch_size": 2}, {"folder": "b", "train_batch_size": 4}, held_out]
    job = build(TrainJob, {"optimizer": {"learning_rate": 1e-4, "scale_lr": True}, "dataset": {"sources": folders}})
    assert effective_rates(job) == approx({"unet": 4e-4}) and scale_factor(job, 2) == 8
    assert scale_sentence(job) == "Learning rate 0.0001 x batch size 4 = 0.0004"


def test_a_schedule_free_optimizer_keeps_its_rate_whatever_the_curve_says():
    job = build(
        TrainJob,
        {
            "optimizer": {"optimizer_type": "AdamWScheduleFree"},
            "schedule": {"lr_scheduler": "cosine", "lr_warmup_steps": 5},
        },
    )
    optimizer = optimizer_of(job, 1e-3)
    optimizer.param_groups[0]["lr"] = 1e-2  # of a loaded state
    for step in (0, 3, 9):
        assert Rates(job, 10).set(optimizer, step) == {"part0": 1e-3}
        assert optimizer.param_groups[0]["lr"] == 1e-3


@mark.parametrize("warmup_init", [False, True])
def test_adafactor_with_relative_steps_reports_the_rate_that_the_library_computes(warmup_init):
    arguments = {"scale_parameter": False, "warmup_init": warmup_init}
    job = build(TrainJob, {"optimizer": {"optimizer_type": "AdaFactor", "optimizer_args": arguments}})
    optimizer = optimizer_of(job, 1e-3)
    (group,) = optimizer.param_groups
    for step in range(3):
        rates = Rates(job, 3).set(optimizer, step)
        group["params"][0].grad = torch.ones(2)
        optimizer.step()
        assert group["lr"] is None
        assert rates["part0"] == approx(optimizer._get_lr(group, optimizer.state[group["params"][0]]))


def test_the_drawn_curve_is_the_one_that_trains():
    job = build(
        TrainJob,
        {
            "optimizer": {"learning_rate": 1e-4, "unet_lr": 2e-4, "scale_lr": True},
            "network": {"train_text_encoder": True},
            "dataset": {"train_batch_size": 4},
            "schedule": {"lr_scheduler": "cosine", "lr_warmup_steps": "10%", "gradient_accumulation_steps": 2},
        },
    )
    drawn = curve(job, 1000, points=50, processes=3)
    assert [step for step, _ in drawn][:: len(drawn) - 1] == [0, 999] and len(drawn) == 50
    own = {"unet": 2e-4 * 24, "text_encoder": 1e-4 * 24}
    for step, rates in drawn:
        assert rates == approx({name: rate * LrSchedule(job.schedule, 1000).at(step) for name, rate in own.items()})
    short = curve(job, 7)
    assert [step for step, _ in short] == list(range(7))
    assert all(one != other for one, other in itertools.pairwise(rates["unet"] for _, rates in short))
