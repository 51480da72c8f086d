"""The timesteps that training draws, against the closed forms of their distributions."""

import math
from statistics import NormalDist

from pytest import approx, mark

from core.diffusion.noise import draw_timestep
from core.diffusion.objective import Diffusion
from core.diffusion.timesteps import DISTRIBUTIONS, density, position
from core.settings.noise import NoiseSettings

FOX, BEAR = ("set", "fox.png"), ("set", "bear.png")
DRAWS = 2500


def logit(x):
    return math.log(x / (1 - x))


def normal(x, mean=0.0, std=1.0):
    return NormalDist(mean, std).cdf(logit(x))


def mode(x, scale):
    """By bisection of SD3's formula, x = 1 - u - s (cos(pi u / 2)^2 - 1 + u), which falls with u."""
    low, high = 0.0, 1.0
    for _ in range(60):
        u = (low + high) / 2
        above = 1 - u - scale * (math.cos(math.pi * u / 2) ** 2 - 1 + u) > x
        low, high = (u, high) if above else (low, u)
    return 1 - low


def ramp(x, weight, middle):
    """The integral of 1 / (1 + exp(-w (x - m))), from 0 to x and as a part of that to 1."""
    low, here, high = (math.log1p(math.exp(weight * (end - middle))) for end in (0, x, 1))
    return (here - low) / (high - low)


def parabola(x, weight, middle):
    """The integral of 2 - w (x - m)^2 where that is above 0."""

    def integral(end):
        reach = (2 / weight) ** 0.5 if weight > 0 else 1.0
        end = min(max(end, middle - reach), middle + reach)
        return 2 * end - weight * (end - middle) ** 3 / 3

    return (integral(x) - integral(0)) / (integral(1) - integral(0))


# (settings, CDF of the position from 0, clean, to 1, noise)
CASES = [
    ({"timestep_shift": 2.5}, lambda x: x / (2.5 - 1.5 * x)),
    ({"timestep_sampling": "logit_normal"}, normal),
    ({"timestep_sampling": "logit_normal", "logit_mean": -0.2, "logit_std": 1.5}, lambda x: normal(x, -0.2, 1.5)),
    # a shift by r is a mean that is moved by ln r
    ({"timestep_sampling": "logit_normal", "timestep_shift": 3}, lambda x: normal(x, math.log(3))),
    ({"timestep_sampling": "mode"}, lambda x: mode(x, 1.29)),
    ({"timestep_sampling": "mode", "mode_scale": -0.8}, lambda x: mode(x, -0.8)),
    # the integral of 2 / (pi - 2 pi x + 2 pi x^2)
    ({"timestep_sampling": "cosmap"}, lambda x: 0.5 + 2 / math.pi * math.atan(2 * x - 1)),
    ({"timestep_sampling": "beta"}, lambda x: x**0.8),
    ({"timestep_sampling": "beta", "timestep_alpha": 1, "timestep_beta": 0.3}, lambda x: 1 - (1 - x) ** 0.3),
    (
        {"timestep_sampling": "beta", "timestep_alpha": 0.5, "timestep_beta": 0.5},
        lambda x: 2 / math.pi * math.asin(x**0.5),
    ),
    ({"timestep_sampling": "beta", "timestep_alpha": 2, "timestep_beta": 3}, lambda x: x * x * (6 - 8 * x + 3 * x * x)),
    ({"timestep_sampling": "high_noise"}, lambda x: 1 - (1 - x) ** (1 / 3)),
    ({"timestep_sampling": "low_noise"}, lambda x: x ** (1 / 3)),
    ({"timestep_sampling": "sigmoid_ramp"}, lambda x: ramp(x, 8, 0.5)),
    ({"timestep_sampling": "sigmoid_ramp", "noising_weight": -5, "noising_bias": 0.3}, lambda x: ramp(x, -5, 0.8)),
    (
        {"timestep_sampling": "sigmoid_ramp", "noising_weight": 5, "timestep_shift": 2},
        lambda x: ramp(x / (2 - x), 5, 0.5),
    ),
    ({"timestep_sampling": "inverted_parabola"}, lambda x: parabola(x, 8, 0.5)),
    # nothing below 0.076 and above 0.524
    (
        {"timestep_sampling": "inverted_parabola", "noising_weight": 40, "noising_bias": -0.2},
        lambda x: parabola(x, 40, 0.3),
    ),
    ({"timestep_sampling": "inverted_parabola", "noising_weight": -6}, lambda x: parabola(x, -6, 0.5)),
    ({"timestep_sampling": "inverted_parabola", "noising_weight": 0}, lambda x: x),
]
EACH = mark.parametrize(("options", "cdf"), CASES, ids=[" ".join(map(str, options.values())) for options, _ in CASES])


def drawn(options, addresses):
    settings = NoiseSettings(**options)
    objective = Diffusion(settings)
    return [objective.draw(settings, address, (512, 512)) for address in addresses]


def epochs(count, seed=3, image=FOX):
    return [(seed, epoch, image, 0) for epoch in range(count)]


def test_every_distribution_has_a_case():
    assert {options.get("timestep_sampling", "uniform") for options, _ in CASES} == set(DISTRIBUTIONS)


@EACH
def test_a_distribution_is_its_closed_form(options, cdf):
    """Nine tenths: within 4.5 standard errors of what they are of 2500 draws, and 2e-4 of the quantiles themselves."""
    settings, timesteps = NoiseSettings(**options), drawn(options, epochs(DRAWS))
    for tenth in range(1, 10):
        wanted = cdf(tenth / 10)
        found = sum(timestep < 100 * tenth for timestep in timesteps) / DRAWS
        assert found == approx(wanted, abs=4.5 * (wanted * (1 - wanted) / DRAWS) ** 0.5)
        if 0 < wanted < 1:
            assert position(settings, wanted) == approx(tenth / 10, abs=2e-4)
    assert sum(density(settings)) / 50 == approx(1)
    assert sum(density(settings)[:25]) / 50 == approx(cdf(0.5), abs=1e-3)


@EACH
def test_a_distribution_keeps_to_the_range_and_reaches_both_ends(options, cdf):
    timesteps = drawn({**options, "min_timestep": 300, "max_timestep": 310}, epochs(600))
    assert min(timesteps) >= 300 and max(timesteps) < 310
    assert {300, 309} <= set(timesteps) or min(cdf(0.1), 1 - cdf(0.9)) < 0.02
    assert set(drawn({**options, "min_timestep": 300, "max_timestep": 300}, epochs(9))) == {300}


def test_uniform_timesteps_are_those_of_before():
    options = {"min_timestep": 20, "max_timestep": 900}
    assert drawn({}, epochs(200)) == [draw_timestep(0, 1000, *address) for address in epochs(200)]
    assert drawn(options, epochs(200)) == [draw_timestep(20, 900, *address) for address in epochs(200)]
    given = (
        "timestep_alpha",
        "timestep_beta",
        "logit_mean",
        "logit_std",
        "mode_scale",
        "noising_weight",
    )  # of other distributions
    assert drawn(dict.fromkeys(given, 1.5), epochs(50)) == drawn({}, epochs(50))


@EACH
def test_stratified_timesteps_have_the_distribution_too(options, cdf):
    """500 of the golden ratio: their CDF is within 1 / 100 everywhere, where independent draws are within 4 / 100."""
    timesteps = drawn({**options, "stratified_timesteps": True}, epochs(500))
    for edge in range(20, 1000, 20):
        found = sum(timestep < edge for timestep in timesteps) / 500
        assert found == approx(cdf(edge / 1000), abs=0.01)


@mark.parametrize("addresses", [epochs(20), [(3, 0, FOX, repeat) for repeat in range(20)]], ids=["epochs", "repeats"])
def test_stratified_timesteps_of_an_image_soon_meet_every_tenth(addresses):
    """20 steps of the golden or silver ratio leave no gap of 0.1; independent draws do for most seeds."""
    for seed in range(20):
        timesteps = drawn({"stratified_timesteps": True}, [(seed, *address[1:]) for address in addresses])
        assert {timestep // 100 for timestep in timesteps} == set(range(10))


def test_stratified_timesteps_are_of_each_image_whatever_came_before():
    options = {"stratified_timesteps": True, "timestep_sampling": "logit_normal", "timestep_shift": 2}
    forward = drawn(options, epochs(30))
    assert drawn(options, epochs(30)[::-1])[::-1] == forward and drawn(options, epochs(30)[17:]) == forward[17:]
    assert drawn(options, epochs(30, image=BEAR)) != forward != drawn(options, epochs(30, seed=4))
    starts = drawn({"stratified_timesteps": True}, [(3, 0, (str(n),), 0) for n in range(DRAWS)])
    assert sum(starts) / DRAWS == approx(500, abs=5 * 289 / DRAWS**0.5)  # 1000 / sqrt 12 is the deviation
