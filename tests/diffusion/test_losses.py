"""Huber's losses against their closed forms."""

import math

import torch
from pytest import approx, mark

from core.diffusion.objective import element_loss, huber_c
from core.diffusion.schedule import schedule_in_force, sd_alpha_bar
from core.settings.noise import NoiseSettings

ENDS = torch.tensor([0, 999])
MIXED = ("l2", "l1", "log_cosh")


def c_at_ends(alpha_bar=None, **options):
    alpha_bar = sd_alpha_bar() if alpha_bar is None else alpha_bar
    return huber_c(ENDS, alpha_bar[ENDS], NoiseSettings(loss_type="huber", **options)).tolist()


def loss(kind, error, **options):
    error = torch.tensor(error).view(1, 1, 1, -1)
    t = torch.tensor([500])
    options = NoiseSettings(loss_type=kind, huber_schedule="constant", **options)
    return element_loss(error, t, sd_alpha_bar()[t], options).flatten().tolist()


def test_c_falls_from_near_1_to_c_with_the_noise():
    assert c_at_ends() == approx([0.9497, 0.1037], abs=1e-4)  # sigma 0.02917 and 14.615
    assert c_at_ends(schedule_in_force(True))[-1] == approx(0.1, rel=1e-6)  # sigma is infinite there


def test_c_falls_exponentially_from_1_or_stays():
    assert c_at_ends(huber_schedule="exponential") == approx([1.0, 0.1**0.999])
    assert c_at_ends(huber_schedule="constant") == approx([0.1, 0.1])


@mark.parametrize("schedule", ["snr", "exponential", "constant"])
def test_the_scale_multiplies_c_on_every_schedule(schedule):
    plain, scaled = c_at_ends(huber_schedule=schedule), c_at_ends(huber_schedule=schedule, huber_scale=3)
    assert scaled == approx([3 * c for c in plain])


@mark.parametrize("schedule", ["snr", "exponential", "constant"])
def test_sd_scripts_leaves_the_scale_out_of_the_schedule_snr_alone(schedule):
    plain, scaled = (c_at_ends(huber_schedule=schedule, huber_scale=scale, compatibility="kohya") for scale in (1, 3))
    assert (scaled == plain) == (schedule == "snr")


def test_huber_is_square_for_small_errors_and_straight_for_large_ones():
    c = 0.5
    assert loss("huber", [0.01, -0.01], huber_c=c) == approx([1e-4, 1e-4], rel=1e-2)  # error ** 2
    assert loss("huber", [1e4], huber_c=c) == approx([2 * c * 1e4], rel=1e-3)
    assert loss("smooth_l1", [0.01], huber_c=c) == approx([1e-4 / c], rel=1e-2)
    assert loss("smooth_l1", [-1e4], huber_c=c) == approx([2e4], rel=1e-3)


def test_plain_losses_are_the_square_and_the_size():
    assert loss("l2", [-3.0, 0.5]) == approx([9.0, 0.25])
    assert loss("l1", [-3.0, 0.5]) == approx([3.0, 0.5])


def test_log_cosh_is_its_closed_form_also_where_cosh_overflows():
    sizes = [0.0, 0.3, -1.7, 20.0]
    assert loss("log_cosh", sizes) == approx([math.log(math.cosh(size)) for size in sizes], rel=1e-6, abs=2e-7)
    assert loss("log_cosh", [-1e6]) == approx([1e6 - math.log(2)])


def test_a_mixed_loss_is_the_sum_of_its_weighted_parts():
    weights = {"mse_weight": 0.5, "mae_weight": 2.0, "log_cosh_weight": 3.0}
    error = [0.4, -2.0]
    parts = [
        [weight * each for each in loss(kind, error)] for kind, weight in zip(MIXED, weights.values(), strict=True)
    ]
    assert loss("mixed", error, **weights) == approx([sum(each) for each in zip(*parts, strict=True)])
    for kind, name in zip(MIXED, weights, strict=True):
        alone = dict.fromkeys(weights, 0.0) | {name: 1.0}
        assert loss("mixed", error, **alone) == loss(kind, error)


@mark.parametrize("kind", ["huber", "smooth_l1", "log_cosh"])
def test_the_gradient_of_a_perfect_prediction_is_0_and_finite(kind):
    error = torch.zeros(1, 1, 1, 3, requires_grad=True)
    t = torch.tensor([999])
    element_loss(error, t, schedule_in_force(True)[t], NoiseSettings(loss_type=kind)).sum().backward()
    assert torch.equal(error.grad, torch.zeros_like(error))
