import torch
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler
from pytest import approx

from core.diffusion.schedule import sd_alpha_bar, sigmas, snr


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
