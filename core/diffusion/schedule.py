"""The noise schedule shared by Stable Diffusion 1.x, 2.x and SDXL.

A latent at timestep t is `alpha_bar ** .5 * x0 + (1 - alpha_bar) ** .5 * noise` (Ho et al. 2020,
arXiv:2006.11239, eq. 4).
"""

from core.record.lazy_torch import Tensor, torch

TIMESTEPS = 1000
BETA_START = 0.00085
BETA_END = 0.012


def sd_alpha_bar() -> Tensor:
    """Return cumulative alpha for every timestep, float32 [1000], falling from 0.99915 to 0.00466.

    "scaled_linear": beta ** .5 is linear. All is computed in float32, as in sd-scripts and diffusers, so the table equals theirs bit
    for bit.
    """
    beta = torch.linspace(BETA_START**0.5, BETA_END**0.5, TIMESTEPS, dtype=torch.float32) ** 2
    return torch.cumprod(1.0 - beta, dim=0)


def zero_terminal(alpha_bar: Tensor) -> Tensor:
    """Rescale a schedule to zero terminal SNR (Lin et al. 2023, arXiv:2305.08891, algorithm 1): the last timestep is pure noise.

    The first value stays and the last becomes 0. The order of operations is that of sd-scripts and diffusers, through alpha and beta
    and back, so that the float32 table equals theirs bit for bit.

    alpha_bar   cumulative alpha, [T], falling; returns the same shape
    """
    a = alpha_bar.sqrt()
    a = (a - a[-1]) * (a[0] / (a[0] - a[-1]))  # the quotient first: another order differs in the last bit
    squared = a**2
    alpha = torch.cat([squared[:1], squared[1:] / squared[:-1]])
    beta = 1.0 - alpha
    return torch.cumprod(1.0 - beta, dim=0)


def schedule_in_force(zero_terminal_snr: bool) -> Tensor:
    """Return cumulative alpha, float32 [1000], of a training with this setting."""
    return zero_terminal(sd_alpha_bar()) if zero_terminal_snr else sd_alpha_bar()


def snr(alpha_bar: Tensor) -> Tensor:
    """Return the signal-to-noise ratio in power, `alpha_bar / (1 - alpha_bar)`; same shape."""
    return alpha_bar / (1.0 - alpha_bar)


def sigmas(alpha_bar: Tensor) -> Tensor:
    """Return the noise levels as in k-diffusion, `snr ** -0.5`: standard deviation of the noise per unit of signal; same shape."""
    return snr(alpha_bar) ** -0.5
