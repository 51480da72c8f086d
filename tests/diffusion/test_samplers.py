from types import SimpleNamespace
from typing import get_args

import pytest
import torch
from pytest import approx, mark

from core.diffusion.k_diffusion import lms_coefficient
from core.diffusion.noise_levels import beta_quantiles
from core.diffusion.samplers import (
    SAMPLERS,
    Sampler,
    clean_estimate,
    make_sampler,
    sampler_step,
    schedules_of,
    start_scale,
)
from core.diffusion.schedule import sd_alpha_bar, zero_terminal
from core.generation.sample.loop import Sampling as LoopSampling
from core.generation.sample.loop import Stage, noises_of
from core.settings.samples import SAMPLERS as OFFERED


def generators_of(seeds):
    return [torch.Generator().manual_seed(seed) for seed in seeds]


def start_of(sampler, generators):
    return torch.stack([torch.randn(4, 8, 8, generator=own) for own in generators]) * start_scale(sampler)


def ideal_epsilon(latents, sigma):
    """What a perfect model of x0 ~ N(0, 4) predicts, in the variance-exploding form x = x0 + sigma * noise."""
    return latents * sigma / (4.0 + sigma**2)


def run(name, seeds, steps=20, prediction="epsilon"):
    sampler = make_sampler(name, prediction)
    sampler.set_timesteps(steps)
    generators = generators_of(seeds)
    latents = start_of(sampler, generators)
    table = sd_alpha_bar()
    for t in sampler.timesteps:
        a = (
            table[int(t)].sqrt()
            if float(t) == int(t)
            else torch.lerp(table[int(t)], table[min(999, int(t) + 1)], float(t) % 1).sqrt()
        )
        s = (1 - a**2).sqrt()
        seen = sampler.scale_model_input(latents, t)  # variance-preserving for every sampler: a * x0 + s * noise
        epsilon = ideal_epsilon(seen / a, s / a)
        x0 = (seen - s * epsilon) / a
        output = epsilon if prediction == "epsilon" else a * epsilon - s * x0
        latents = sampler_step(sampler, output, t, latents, generators)
    return latents


def test_the_samplers_offered_are_the_samplers_there_are():
    assert set(get_args(OFFERED)) == set(SAMPLERS)


@mark.parametrize("name", ["ddim", "heun"])
def test_as_in_sd_scripts_what_a_sampler_sees_is_cut_to_plus_and_minus_one(name):
    """One step from pure noise: its x0 is all that is left, 3 everywhere unless it is cut."""
    ends = []
    for program in ("", "trainer"):
        sampler = make_sampler(name, "v", program=program)
        sampler.set_timesteps(1)
        at = sampler.timesteps[0]
        latents = torch.zeros(1, 4, 2, 2)
        s = (1 - sd_alpha_bar()[int(at)]).sqrt()
        ends.append(sampler_step(sampler, (torch.full_like(latents, -3.0) / s), at, latents, generators_of([0])))
    assert float(ends[0].mean()) == approx(3.0, rel=1e-2) and float(ends[1].mean()) == approx(1.0, rel=1e-2)


@mark.parametrize("name", sorted(SAMPLERS))
def test_as_in_sd_scripts_no_sampler_stretches_the_schedule(name):
    theirs, plain = make_sampler(name, "v", zero_terminal_snr=True, program="trainer"), make_sampler(name, "v")
    assert torch.equal(theirs.alphas_cumprod, plain.alphas_cumprod)


def test_as_in_sd_scripts_ddim_has_no_offset():
    ours, theirs = make_sampler("ddim"), make_sampler("ddim", program="trainer")
    for sampler in (ours, theirs):
        sampler.set_timesteps(4)
    assert [ours.timesteps.tolist(), theirs.timesteps.tolist()] == [[751, 501, 251, 1], [750, 500, 250, 0]]


DISTILLED = {"lcm", "tcd"}
FRESH = {*DISTILLED, "euler_a", "euler_a_cfg_pp", "dpm_2_a", "ddpm"} | {
    name for name in SAMPLERS if "sde" in name or "2s_a" in name
}


@mark.parametrize("name", sorted(SAMPLERS))
@mark.parametrize("steps", [4, 20])
def test_every_sampler_ends_at_the_one_image_that_a_model_knows(name, steps):
    """x0 is 1.5 everywhere, and the model knows it at every noise level."""
    sampler = make_sampler(name)
    sampler.set_timesteps(steps)
    generators = generators_of([3])
    latents, table = start_of(sampler, generators), sd_alpha_bar()
    for t in sampler.timesteps:
        low = int(t)
        a = torch.lerp(table[low].sqrt(), table[min(999, low + 1)].sqrt(), float(t) % 1)
        seen = sampler.scale_model_input(latents, t)
        latents = sampler_step(sampler, (seen - a * 1.5) / (1 - a**2).sqrt(), t, latents, generators)
    assert float((latents - 1.5).abs().max()) < 0.2  # those that end at the smallest noise level keep that


def test_the_beta_schedule_has_the_quantiles_of_its_distribution():
    """scipy.stats.beta.ppf at 1, 0.75, 0.5, 0.25 and 0."""
    wanted = [1.0, 0.8243196, 0.5, 0.1756804, 0.0]
    assert beta_quantiles(5) == approx(wanted, abs=1e-5)


# A Brownian path for each of thousands of latents takes half a minute: test_k_diffusion.py holds their numbers, and the
# stretched schedule below their distribution.
BROWNIAN = ("dpmsolver++_sde", "dpmsolver++_2m_sde", "dpmsolver++_3m_sde")
PLAIN = sorted(set(SAMPLERS) - DISTILLED - set(BROWNIAN))


@pytest.mark.slow(
    only=[
        f"{prediction}-{name}"
        for prediction in ("epsilon", "v")
        for name in PLAIN
        if name == "dpm_2_a" or (prediction == "v" and name not in ("ddim", "euler_a", "dpmsolver++"))
    ]
)
@mark.parametrize("name", PLAIN)
@mark.parametrize("prediction", ["epsilon", "v"])
def test_samplers_turn_noise_into_the_distribution_the_model_knows(name, prediction):
    latents = run(name, range(40), steps=200 if name in FRESH else 50, prediction=prediction)
    assert float(latents.std()) == approx(2.0, rel=0.06)  # x0 ~ N(0, 4); 50 steps leave a few percent


@pytest.mark.slow(
    only=(
        "dpm_2",
        "dpm_2_a",
    )
)
@mark.parametrize("name", sorted(SAMPLERS))
def test_a_seed_gives_the_same_image_alone_and_anywhere_in_a_batch(name):
    alone = run(name, [5])
    assert torch.equal(run(name, [5, 6])[0], alone[0])
    assert torch.equal(run(name, [6, 5])[1], alone[0])


@pytest.mark.slow
def test_ancestral_samplers_draw_fresh_noise_and_the_others_do_not():
    def of_same_start(name, second_seed):
        sampler = make_sampler(name)
        sampler.set_timesteps(10)
        latents, generators = torch.ones(1, 4, 8, 8), generators_of([second_seed])
        for t in sampler.timesteps[:2]:  # those with two passes a step draw in the second
            sampler.scale_model_input(latents, t)
            latents = sampler_step(sampler, torch.zeros(1, 4, 8, 8), t, latents, generators)
        return latents

    for name in SAMPLERS:
        assert torch.equal(of_same_start(name, 1), of_same_start(name, 2)) == (name not in FRESH)


def test_lms_begins_in_the_middle_of_a_schedule_as_eulers_method_but_as_sd_scripts_does_to_compare_with_it():
    """It has one derivative there: the higher orders need those of steps that were not run."""
    latents, output = torch.randn(2, 1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    for program in ("", "generator"):
        sampler = make_sampler("lms", program=program)
        sampler.set_timesteps(10)
        sampler.set_begin_index(6)
        sigmas = sampler.sigmas.tolist()
        factor = sigmas[7] - sigmas[6] if not program else lms_coefficient(sigmas[6:2:-1], 0, sigmas[6], sigmas[7])
        sampler.scale_model_input(latents, sampler.timesteps[6])
        after = sampler_step(sampler, output, sampler.timesteps[6], latents, generators_of([0]))
        torch.testing.assert_close(after, latents + factor * output, rtol=0, atol=1e-5)


def test_the_coefficients_of_lms_are_the_integrals_of_its_polynomials():
    sigmas = [3.0, 4.0, 6.0, 9.0]
    for order in (1, 2, 3, 4):
        found = [lms_coefficient(sigmas[:order], which, 3.0, 2.0) for which in range(order)]
        assert sum(found) == approx(-1.0), "polynomials of a Lagrange basis add up to 1"
        for power in range(order):  # and carry every power up to their degree: its integral from 3 to 2
            exact = (2.0 ** (power + 1) - 3.0 ** (power + 1)) / (power + 1)
            assert sum(c * at**power for c, at in zip(found, sigmas, strict=False)) == approx(exact)


def test_ddim_does_not_clip_the_image():
    """diffusers' own default does, which turned every image magenta: latents reach beyond -1..1."""
    sampler = make_sampler("ddim")
    sampler.set_timesteps(1)
    latents = torch.full((1, 4, 8, 8), 50.0)
    assert (
        float(sampler_step(sampler, torch.zeros_like(latents), sampler.timesteps[0], latents, generators_of([0])).min())
        > 1
    )


def test_ddims_last_step_ends_at_alpha_1_or_as_sd_15s_config_has_it_at_the_first_alpha():
    ends = {name: float(make_sampler(name).final_alpha_cumprod) for name in ("ddim", "ddim_first_alpha")}
    assert ends == {"ddim": 1.0, "ddim_first_alpha": approx(float(sd_alpha_bar()[0]), rel=1e-6)}


def test_ddim_takes_the_timesteps_of_stable_diffusion():
    sampler = make_sampler("ddim")
    sampler.set_timesteps(20)
    assert sampler.timesteps.tolist() == [50 * i + 1 for i in reversed(range(20))]


@pytest.mark.slow(only=BROWNIAN)
@mark.parametrize("name", sorted(set(SAMPLERS) - DISTILLED))
def test_a_model_of_the_stretched_schedule_is_sampled_on_it_from_pure_noise(name):
    sampler = make_sampler(name, "v", zero_terminal_snr=True)
    table = zero_terminal(sd_alpha_bar())
    torch.testing.assert_close(sampler.alphas_cumprod[:-1], table[:-1])
    sampler.set_timesteps(200 if name in FRESH else 50)
    assert int(sampler.timesteps[0]) == 999
    generators = generators_of(range(6 if name in BROWNIAN else 40))
    latents = start_of(sampler, generators)
    for t in sampler.timesteps:
        low = int(t)
        a = torch.lerp(table[low].sqrt(), table[min(999, low + 1)].sqrt(), float(t) % 1).clamp_min(1e-6)
        s = (1 - a**2).sqrt()
        seen = sampler.scale_model_input(latents, t)
        epsilon = ideal_epsilon(seen / a, s / a)
        x0 = (seen - s * epsilon) / a
        latents = sampler_step(sampler, a * epsilon - s * x0, t, latents, generators)
    assert float(latents.std()) == approx(2.0, rel=0.06)


@mark.parametrize("name", sorted(set(SAMPLERS)))
def test_noise_prediction_on_the_stretched_schedule_stays_finite(name):
    sampler = make_sampler(name, zero_terminal_snr=True)
    sampler.set_timesteps(4)
    generators = generators_of(range(1))
    latents = start_of(sampler, generators)
    for t in sampler.timesteps:
        latents = sampler_step(sampler, torch.full_like(latents, 0.5), t, latents, generators)
    assert bool(latents.isfinite().all())


class Least:
    """What a package's sampler must have: DDIM without config, alphas_cumprod and start scale."""

    def __init__(self, prediction, zero_terminal_snr):
        self.own = make_sampler("ddim", prediction, zero_terminal_snr)

    def set_timesteps(self, count, device=None):
        self.own.set_timesteps(count, device=device)
        self.timesteps = self.own.timesteps

    def step(self, output, timestep, latents, return_dict=False):
        return (self.own.step(output, timestep, latents).prev_sample,)


@mark.parametrize("prediction", ["epsilon", "v"])
@mark.parametrize("zero_terminal_snr", [False, True])
def test_a_packages_sampler_needs_only_timesteps_and_steps(monkeypatch, prediction, zero_terminal_snr):
    monkeypatch.setitem(SAMPLERS, "least", Sampler(Least, draws=3, all_schedules=False))
    sampler = make_sampler("least", prediction, zero_terminal_snr)
    sampler.set_timesteps(10)
    timestep, (clean, noise) = sampler.timesteps[3], torch.randn(2, 1, 4, 2, 2)
    a = (zero_terminal(sd_alpha_bar()) if zero_terminal_snr else sd_alpha_bar())[timestep]
    noisy, velocity = a**0.5 * clean + (1 - a) ** 0.5 * noise, a**0.5 * noise - (1 - a) ** 0.5 * clean
    output = noise if prediction == "epsilon" else velocity
    torch.testing.assert_close(clean_estimate(sampler, output, timestep, noisy), clean, rtol=1e-3, atol=1e-3)
    assert schedules_of("least") == ["own"]
    assert make_sampler("least", program="generator").config["prediction_type"] == "epsilon"


def test_a_sampler_says_how_many_noises_a_step_draws(monkeypatch):
    """What begins with an image is noised after those of all steps."""
    family = SimpleNamespace(latent_shape=lambda size: (4, 2, 2))
    model, stage = SimpleNamespace(family=family), Stage((16, 16), 5)
    monkeypatch.setitem(SAMPLERS, "least", Sampler(Least, draws=3, all_schedules=False))
    for name, draws in (("least", 3), ("euler_a", 1), ("dpm_2_a", 2)):
        (noise,) = noises_of(model, stage, [7], LoopSampling(sampler=name))
        drawn = torch.Generator().manual_seed(7)
        for _ in range(1 + 5 * draws):
            torch.randn(4, 2, 2, generator=drawn)
        assert torch.equal(noise.image_noise()[0], torch.randn(4, 2, 2, generator=drawn))
