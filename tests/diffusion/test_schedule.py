import torch
from diffusers.schedulers.scheduling_ddim import rescale_zero_terminal_snr
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler
from pytest import approx

from core.diffusion.schedule import schedule_in_force, sd_alpha_bar, sigmas, snr, zero_terminal


def test_schedule_gives_the_published_sigmas():  # SD 1.x, 2.x and SDXL share it; samplers quote 0.0292 and 14.6146
    sigma = sigmas(sd_alpha_bar())
    assert (float(sigma[0]), float(sigma[-1])) == approx((0.0292, 14.6146), rel=2e-3)  # 0.0292 is published to 3 digits


def test_schedule_equals_the_table_sd_scripts_trains_with_bit_for_bit():
    reference = DDPMScheduler(
        num_train_timesteps=1000, beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear"
    )
    assert torch.equal(sd_alpha_bar(), reference.alphas_cumprod)
    assert sd_alpha_bar().dtype == torch.float32


def test_signal_to_noise_falls_from_1176_to_0_0047():
    table = snr(sd_alpha_bar())
    assert (float(table[0]), float(table[-1])) == approx((1175.5, 0.004682), rel=1e-3)
    assert bool((table.diff() < 0).all())


def test_the_stretched_schedule_ends_in_pure_noise_and_begins_as_before():
    before, after = sd_alpha_bar(), zero_terminal(sd_alpha_bar())
    assert float(after[-1]) == 0.0 and float(snr(after)[-1]) == 0.0
    assert float(after[0]) == approx(float(before[0]), rel=1e-6)
    assert bool((after.diff() < 0).all()) and bool((after[1:] < before[1:]).all())


def test_the_stretched_schedule_is_diffusers_bit_for_bit():
    reference = DDPMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
    beta = rescale_zero_terminal_snr(reference.betas)
    assert float(beta[-1]) == 1.0
    assert torch.equal(zero_terminal(sd_alpha_bar()), torch.cumprod(1.0 - beta, dim=0))


def test_stretching_is_linear_in_the_root():
    """Lin et al. 2023: the root falls to 0 in proportion. Taken through beta, each step of float32 adds to the error."""
    root, stretched = sd_alpha_bar().double().sqrt(), zero_terminal(sd_alpha_bar()).double()
    expected = ((root - root[-1]) * root[0] / (root[0] - root[-1])) ** 2
    torch.testing.assert_close(stretched, expected, rtol=0, atol=3e-6)


def test_the_schedule_in_force_is_stretched_only_where_asked():
    assert torch.equal(schedule_in_force(False), sd_alpha_bar())
    assert torch.equal(schedule_in_force(True), zero_terminal(sd_alpha_bar()))
