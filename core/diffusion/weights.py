"""How much each timestep counts in the loss."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .targets import Prediction

if TYPE_CHECKING:
    from torch import Tensor


def min_snr_weight(snr_B: Tensor, gamma: float, prediction: Prediction) -> Tensor:
    """Loss weight per sample, min(SNR, gamma) measured on x0 (Hang et al. 2023, arXiv:2303.09556).

    snr_B     float32 [B], no unit, above 0
    gamma     above 0; infinity gives 1 everywhere for epsilon
    returns   float32 [B]
    """
    return snr_B.clip(max=gamma) / prediction.per_x0(snr_B)
