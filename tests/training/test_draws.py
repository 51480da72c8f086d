"""Everything random of a step: whose it is, and what it depends on."""

import torch
from pytest import approx, mark

from core.diffusion.noise import draw_noises
from core.diffusion.objective import Diffusion
from core.settings.noise import NoiseSettings

FOX, BEAR, OWL = ((7, 2, ("set", f"{name}.png"), 0) for name in ("fox", "bear", "owl"))
EVERYTHING = {
    "noise_offset": 0.1,
    "noise_offset_random_strength": True,
    "ip_noise_gamma": 0.1,
    "ip_noise_gamma_random_strength": True,
    "multires_noise_iterations": 6,
}
SHARED = {"offset_strength", "perturbation_strength"}


def draws(*addresses, dtype=torch.float32, **options):
    latents = torch.zeros(len(addresses), 4, 16, 12, dtype=dtype)
    drawn = vars(draw_noises(NoiseSettings(**options), latents, addresses))
    return {name: value for name, value in drawn.items() if isinstance(value, torch.Tensor)}


def test_only_what_the_settings_ask_for_is_drawn():
    assert set(draws(FOX)) == {"noise"}
    assert set(draws(FOX, noise_offset=0.0, ip_noise_gamma=0.0, noise_offset_random_strength=True)) == {"noise"}
    assert set(draws(FOX, noise_offset=0.1)) == {"noise", "offset"}
    assert set(draws(FOX, ip_noise_gamma=0.1)) == {"noise", "perturbation"}
    everything = draws(FOX, BEAR, **EVERYTHING)
    assert {name: tuple(value.shape) for name, value in everything.items()} == {
        "noise": (2, 4, 16, 12),
        "offset": (2, 4, 1, 1),
        "offset_strength": (2,),
        "multires": (2, 4, 16, 12),
        "perturbation": (2, 4, 16, 12),
        "perturbation_strength": (2,),
    }


def test_an_image_draws_the_same_in_any_batch_and_at_any_time():
    alone, first, last = draws(FOX, **EVERYTHING), draws(FOX, BEAR, **EVERYTHING), draws(OWL, BEAR, FOX, **EVERYTHING)
    for name, value in alone.items():
        assert torch.equal(value[0], first[name][0]) and torch.equal(value[0], last[name][2]), name
        assert not torch.equal(first[name][0], first[name][1]), name


def test_as_sd_scripts_a_batch_shares_strengths_and_the_sizes_of_levels():
    options = {**EVERYTHING, "compatibility": "kohya"}
    alone, together = draws(FOX, **options), draws(FOX, BEAR, **options)
    for name, value in together.items():
        assert torch.equal(alone[name][0], value[0]), name
        assert torch.equal(value[0], value[1]) == (name in SHARED), name
    led_by_another = draws(BEAR, FOX, **options)
    assert led_by_another["offset_strength"][1] != alone["offset_strength"][0]
    assert not torch.equal(led_by_another["multires"][1], alone["multires"][0])


def test_another_option_changes_no_draw_of_the_first():
    plain, more = draws(FOX), draws(FOX, **EVERYTHING)
    assert torch.equal(plain["noise"], more["noise"])


@mark.parametrize("compatibility", ["none", "kohya"])
def test_noise_is_rounded_to_half_precision_only_as_sd_scripts(compatibility):
    drawn = draws(FOX, dtype=torch.bfloat16, compatibility=compatibility, **EVERYTHING)
    half = {name for name, value in drawn.items() if value.dtype == torch.bfloat16}
    assert half == ({"noise", "perturbation"} if compatibility == "kohya" else set())


def test_multires_noise_of_a_step_stands_out_in_coarse_means():
    """Means over 4 x 4 have a variance of 1 / 16 without it."""
    addresses = [(7, epoch, ("set", "fox.png"), 0) for epoch in range(100)]
    drawn = draws(*addresses, multires_noise_iterations=6, multires_noise_discount=0.8)

    def coarse(noise):
        return float(torch.nn.functional.avg_pool2d(noise, 4).var() / noise.var())

    assert coarse(drawn["noise"]) == approx(1 / 16, rel=0.15)
    assert coarse(drawn["noise"] + drawn["multires"]) > 0.2


def drawn(settings, addresses):
    objective = Diffusion(settings)
    return [objective.draw(settings, address, (512, 512)) for address in addresses]


def test_timesteps_keep_to_their_range():
    assert drawn(NoiseSettings(min_timestep=400, max_timestep=401), [FOX, BEAR]) == [400, 400]
    assert drawn(NoiseSettings(min_timestep=400, max_timestep=400), [FOX, BEAR]) == [400, 400]
    assert drawn(NoiseSettings(), [FOX, BEAR]) == drawn(NoiseSettings(), [BEAR, FOX])[::-1]
