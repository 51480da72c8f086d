"""How much each timestep counts in the loss. All weights: float32 [B], no unit, from snr_B float32 [B]."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .targets import Prediction

if TYPE_CHECKING:
    from torch import Tensor

    from core.settings.noise import NoiseSettings

MOST_SNR = 1000.0  # sd-scripts' cap: below timestep 6 the weights would run away; min-SNR has its own


def min_snr_weight(snr_B: Tensor, gamma: float, prediction: Prediction) -> Tensor:
    """min(SNR, gamma) measured on x0 (Hang et al. 2023, arXiv:2303.09556).

    gamma     above 0; infinity gives 1 everywhere for epsilon
    At SNR 0 (the end of a zero-terminal schedule) it is the limit: 1 for epsilon, 0 for v.
    """
    weight = snr_B.clip(max=gamma) / prediction.per_x0(snr_B)
    return weight.where(snr_B > 0, prediction.min_snr_at_zero)


def like_noise_weight(snr_B: Tensor) -> Tensor:
    """SNR / (SNR + 1): a v loss with it is the loss that predicting the noise would give."""
    capped = snr_B.clip(max=MOST_SNR)
    return capped / (capped + 1.0)


def like_v_weight(snr_B: Tensor, strength: float) -> Tensor:
    """1 + strength * (SNR + 1) / SNR: the noise loss, and that share of the v loss on top. Infinite at SNR 0."""
    capped = snr_B.clip(max=MOST_SNR)
    return 1.0 + strength * (capped + 1.0) / capped


def debiased_weight(snr_B: Tensor, prediction: Prediction) -> Tensor:
    """Debiased estimation (Yu et al. 2023, arXiv:2310.08442): 1 / SNR ** .5 for epsilon, which is infinite at SNR 0;
    1 / (SNR + 1) for v, as sd-scripts has it since 0.9."""
    return prediction.debiased(snr_B.clip(max=MOST_SNR))


def timestep_weight(snr_B: Tensor, settings: NoiseSettings, prediction: Prediction) -> Tensor | float:
    """The product of all weights that are on, in sd-scripts' order; 1.0 when none is."""
    weight: Tensor | float = 1.0
    if settings.min_snr_gamma is not None:
        weight = weight * min_snr_weight(snr_B, settings.min_snr_gamma, prediction)
    if settings.scale_v_pred_loss_like_noise_pred:
        weight = weight * like_noise_weight(snr_B)
    if settings.v_pred_like_loss:
        weight = weight * like_v_weight(snr_B, settings.v_pred_like_loss)
    if settings.debiased_estimation_loss:
        weight = weight * debiased_weight(snr_B, prediction)
    return weight
