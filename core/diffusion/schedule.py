"""The noise schedule shared by Stable Diffusion 1.x, 2.x and SDXL.

A latent at timestep t is `alpha_bar ** .5 * x0 + (1 - alpha_bar) ** .5 * noise` (Ho et al. 2020,
arXiv:2006.11239, eq. 4).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

TIMESTEPS = 1000
BETA_START = 0.00085
BETA_END = 0.012


def sd_alpha_bar() -> Tensor:
    """Cumulative alpha for every timestep, float32 [1000], falling from 0.99915 to 0.00466.

    "scaled_linear": beta ** .5 is linear. Every step is taken in float32, as sd-scripts and diffusers do,
    so the table equals theirs bit for bit.
    """
    import torch

    beta = torch.linspace(BETA_START**0.5, BETA_END**0.5, TIMESTEPS, dtype=torch.float32) ** 2
    return torch.cumprod(1.0 - beta, dim=0)


def snr(alpha_bar: Tensor) -> Tensor:
    """Signal-to-noise ratio in power, `alpha_bar / (1 - alpha_bar)`; same shape, no unit."""
    return alpha_bar / (1.0 - alpha_bar)


def sigmas(alpha_bar: Tensor) -> Tensor:
    """Noise deviation per unit of signal, `snr ** -0.5`: what k-diffusion samplers call sigma; same shape."""
    return snr(alpha_bar) ** -0.5
