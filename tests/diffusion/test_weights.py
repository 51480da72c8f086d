import torch
from pytest import approx, mark

from core.diffusion.objective import (
    PREDICTIONS,
    Diffusion,
    debiased_weight,
    like_noise_weight,
    like_v_weight,
    min_snr_weight,
    p2_weight,
    timestep_weight,
)
from core.diffusion.schedule import schedule_in_force, sd_alpha_bar, snr
from core.settings.noise import NoiseSettings


def test_min_snr_5_gives_the_known_weights_at_both_ends():
    table = snr(sd_alpha_bar())
    epsilon = min_snr_weight(table, 5.0, PREDICTIONS["epsilon"])
    assert (float(epsilon[0]), float(epsilon[-1])) == approx((0.004254, 1.0), rel=1e-3)
    assert float(min_snr_weight(table, 5.0, PREDICTIONS["v"])[-1]) == approx(0.00466, rel=1e-3)


@mark.parametrize("name", ["epsilon", "v"])
def test_weight_times_target_error_is_min_snr_gamma_times_x0_error_for_any_guess(name):
    """The definition: the loss of any guess, measured on x0, is weighed by min(SNR, gamma)."""
    draw = torch.Generator().manual_seed(1)
    x0, noise, wrong = (torch.randn(4, 4, 8, 8, generator=draw, dtype=torch.float64) for _ in range(3))
    alpha_bar = torch.tensor([0.999, 0.7, 0.1, 0.005], dtype=torch.float64)
    a, s = (part.sqrt().view(-1, 1, 1, 1) for part in (alpha_bar, 1 - alpha_bar))
    noisy = a * x0 + s * noise
    guess_x0 = x0 + 0.1 * wrong
    guess_noise = (noisy - a * guess_x0) / s  # the guess that belongs to the same noisy latents
    kind = PREDICTIONS[name]
    target_error = (
        (kind.target(guess_x0, guess_noise, a, s) - kind.target(x0, noise, a, s)).square().mean(dim=(1, 2, 3))
    )
    x0_error = (guess_x0 - x0).square().mean(dim=(1, 2, 3))
    ratio = alpha_bar / (1 - alpha_bar)
    torch.testing.assert_close(min_snr_weight(ratio, 5.0, kind) * target_error, ratio.clip(max=5.0) * x0_error)


def test_infinite_gamma_changes_nothing_for_epsilon():
    table = snr(sd_alpha_bar())
    assert torch.equal(min_snr_weight(table, float("inf"), PREDICTIONS["epsilon"]), torch.ones(1000))


def test_at_no_signal_min_snr_is_its_limit():
    table = snr(schedule_in_force(True))
    assert float(min_snr_weight(table, 5.0, PREDICTIONS["epsilon"])[-1]) == 1.0
    assert float(min_snr_weight(table, 5.0, PREDICTIONS["v"])[-1]) == 0.0


@mark.parametrize("name", ["epsilon", "v"])
def test_each_prediction_can_be_weighed_like_the_other(name):
    """For one guess the v error is (SNR + 1) / SNR of the noise error: with the weight, both losses are one."""
    ratio = torch.tensor([900.0, 1.0, 0.005])  # below the cap of 1000
    noise_error = torch.tensor([0.3, 0.2, 0.1])
    v_error = noise_error * PREDICTIONS["v"].per_x0(ratio) / PREDICTIONS["epsilon"].per_x0(ratio)
    if name == "v":
        torch.testing.assert_close(like_noise_weight(ratio) * v_error, noise_error)
    else:
        torch.testing.assert_close(like_v_weight(ratio, 0.7) * noise_error, noise_error + 0.7 * v_error)


def test_p2_weights_are_1_by_1_plus_snr_to_gamma_and_for_v_as_in_onetrainer():
    alpha_bar, every = sd_alpha_bar().double(), torch.arange(1000)
    for gamma in (0.5, 1.0, 5.0):
        weights = {name: Diffusion(NoiseSettings(p2_gamma=gamma), name).weight(every) for name in PREDICTIONS}
        torch.testing.assert_close(weights["epsilon"].double(), (1 - alpha_bar) ** gamma, rtol=1e-4, atol=0)
        v = ((1 - alpha_bar) / (2 - alpha_bar)) ** gamma
        torch.testing.assert_close(weights["v"].double(), v, rtol=1e-4, atol=0)
    at_no_signal = Diffusion(NoiseSettings(p2_gamma=1, zero_terminal_snr=True), "v").weight(every)[-1]
    assert float(at_no_signal) == 0.5


def test_debiased_weights_at_both_ends():
    table = snr(sd_alpha_bar())
    epsilon, v = (debiased_weight(table, PREDICTIONS[name]) for name in ("epsilon", "v"))
    assert (float(epsilon[0]), float(epsilon[-1])) == approx((1000**-0.5, 14.6146), rel=1e-3)  # SNR 1175 counts as 1000
    assert (float(v[0]), float(v[-1])) == approx((1 / 1001, 0.99534), rel=1e-4)


def test_debiased_weights_of_a_v_model_can_be_those_of_noise_prediction_and_nothing_else_is():
    settings, every = NoiseSettings(debiased_estimation_loss=True, min_snr_gamma=5), torch.arange(1000)
    ratio = snr(sd_alpha_bar())
    plain, other = Diffusion(settings, "v"), Diffusion(settings, "v", debiased_as="epsilon")
    by_min_snr = ratio.clip(max=5) / (ratio + 1)
    torch.testing.assert_close(plain.weight(every), by_min_snr / (ratio.clip(max=1000) + 1))
    torch.testing.assert_close(other.weight(every), by_min_snr / ratio.clip(max=1000) ** 0.5)
    x0, noise = torch.randn(2, 2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    assert torch.equal(other.target(x0, noise, every[400:402]), plain.target(x0, noise, every[400:402]))


def test_weights_that_are_on_are_multiplied_and_none_is_1():
    ratio = snr(sd_alpha_bar())[::100]
    settings = NoiseSettings(
        min_snr_gamma=5, p2_gamma=0.5, debiased_estimation_loss=True, scale_v_pred_loss_like_noise_pred=True
    )
    kind = PREDICTIONS["v"]
    product = (
        min_snr_weight(ratio, 5, kind)
        * p2_weight(ratio, 0.5, kind)
        * like_noise_weight(ratio)
        * debiased_weight(ratio, kind)
    )
    torch.testing.assert_close(timestep_weight(ratio, settings, kind), product)
    assert timestep_weight(ratio, NoiseSettings(), kind) == 1.0
