"""What the U-Net is asked to predict."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Prediction:
    """What the U-Net predicts. x0, noise: [B, C, H, W]; a = alpha_bar ** .5, s = (1 - alpha_bar) ** .5: [B, 1, 1, 1].

    target     (x0, noise, a, s) -> [B, C, H, W]
    per_x0     snr -> (target error) ** 2 / (x0 error) ** 2, so a weight on x0 becomes one on the target
    min_snr_at_zero   limit of min(snr, gamma) / per_x0(snr) for snr to 0
    debiased          snr -> weight of debiased estimation
    """

    target: Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
    per_x0: Callable[[Tensor], Tensor]
    min_snr_at_zero: float
    debiased: Callable[[Tensor], Tensor]


PREDICTIONS: dict[str, Prediction] = {  # v: Salimans & Ho 2022, arXiv:2202.00512
    "epsilon": Prediction(
        target=lambda x0, noise, a, s: noise,
        per_x0=lambda snr: snr,
        min_snr_at_zero=1.0,
        debiased=lambda snr: snr**-0.5,
    ),
    "v": Prediction(
        target=lambda x0, noise, a, s: a * noise - s * x0,
        per_x0=lambda snr: snr + 1,
        min_snr_at_zero=0.0,
        debiased=lambda snr: 1 / (snr + 1),
    ),
}
