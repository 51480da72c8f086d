import torch
from pytest import approx, mark

from core.diffusion.schedule import sd_alpha_bar, snr
from core.diffusion.targets import PREDICTIONS
from core.diffusion.weights import min_snr_weight


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
