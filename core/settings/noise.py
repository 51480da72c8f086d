"""How noise levels are drawn and how the loss weighs them."""

from __future__ import annotations

from typing import Literal

from core.settings.base import Settings, setting


class NoiseSettings(Settings):
    """Noise and loss."""

    min_snr_gamma: float | None = setting(
        None,
        ge=0.1,
        le=20,
        title="Min-SNR gamma",
        kohya="min_snr_gamma",
        source="Hang et al. 2023, arXiv:2303.09556",
        help="Caps the loss weight of nearly clean timesteps. The paper uses 5; empty is off.",
    )
    noise_offset: float | None = setting(
        None,
        ge=0,
        le=1,
        title="Noise offset",
        kohya="noise_offset",
        source="Guttenberg 2023, 'Diffusion with offset noise'",
        help="Adds noise that shifts a whole channel, so that very dark and very bright pictures can be learnt. About 0.05 to 0.1; empty is off.",
    )
    ip_noise_gamma: float | None = setting(
        None,
        ge=0,
        le=1,
        title="Input perturbation",
        kohya="ip_noise_gamma",
        source="Ning et al. 2023, arXiv:2301.11706",
        help="Adds a little more noise to the input than the model is asked to remove. The paper uses 0.1; empty is off.",
    )
    mask_mean: Literal["area", "picture"] = setting(
        "area",
        title="Loss under a mask",
        labels={"area": "mean over the mask", "picture": "mean over the picture, as sd-scripts"},
        help="Over the mask, a small mask teaches as strongly as a large one. Over the picture, it teaches as little as it is small.",
    )
    min_timestep: int = setting(
        0,
        ge=0,
        le=999,
        unit="timesteps",
        title="Lowest timestep",
        kohya="min_timestep",
        help="Timesteps below are never drawn.",
    )
    max_timestep: int = setting(
        1000,
        ge=1,
        le=1000,
        unit="timesteps",
        title="Highest timestep",
        kohya="max_timestep",
        help="Timesteps from here up are never drawn. Lower it to train detail and keep composition.",
    )
