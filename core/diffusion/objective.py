"""Training objectives: prediction target, loss and loss weights, chosen once per run, without branches in the step.

The order of operations is that of sd-scripts, so each option gives sd-scripts' loss (float32, relative 1e-5). Everything is computed
on the tensors' device, without a sync.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from core.diffusion.schedule import TIMESTEPS, schedule_in_force, sd_alpha_bar, sigmas, snr
from core.diffusion.timesteps import timestep_of
from core.record.lazy_torch import Tensor, torch

if TYPE_CHECKING:
    from core.diffusion.noise import Address, Noises
    from core.settings.noise import NoiseSettings


class Objective(ABC):
    """The interface of a training objective. Timesteps [B] are on the scale 0 (nearly an image) to 1000 (nearly noise):
    integers, or float32 if the objective draws fractions.

    prediction   prediction type in metadata and samplers: "epsilon", "v" ...
    fractions    whether timesteps are fractional, float32
    mask_mean    "area": the loss of a masked image is the mean over its mask; "image": over the whole image
    """

    prediction: str = "epsilon"
    mask_mean: str = "area"
    fractions: bool = False

    def mixed(self, latents: Tensor, noises: Noises) -> tuple[Tensor, Tensor, Tensor]:
        """Return (x0, noise for the target, noise for the model's input), [B, C, H, W] each, from the latents and all random tensors."""
        noise = noises.noise.float()
        return latents.float(), noise, noise

    def draw(self, settings: NoiseSettings, address: Address, size: tuple[int, int]) -> float:
        """Return an image's timestep by the settings' distribution, from `min_timestep` to below `max_timestep`: an integer, or a float if
        `fractions`.

        address   of the image for random numbers (core/record/draws.py)
        size      of the image, (width, height) in pixels
        """
        return timestep_of(settings, address)

    @abstractmethod
    def noised(self, x0: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """Return the noisy latents for the model's input, [B, C, H, W]."""

    @abstractmethod
    def target(self, x0: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """Return the prediction target, [B, C, H, W]."""

    def form(self, output: Tensor, noisy: Tensor, timesteps: Tensor) -> Tensor:
        """Convert the model's output [B, C, H, W], float32, to the form of the target, such as negated or as the estimated image; unchanged
        by default. For prior preservation the base model's output is converted too."""
        return output

    def loss(self, predicted: Tensor, target: Tensor, timesteps: Tensor) -> Tensor:
        """Return the elementwise loss, float32 [B, C, H, W]."""
        return (predicted - target) ** 2

    def weight(self, timesteps: Tensor) -> Tensor | float:
        """Return the loss weight of each timestep, float32 [B], or one number for all."""
        return 1.0


class Diffusion(Objective):
    """Denoising diffusion (Ho et al. 2020, arXiv:2006.11239) with the options of the noise group, as Stable Diffusion
    1.x, 2.x and SDXL are trained.

    prediction      "epsilon" or "v"
    debiased_as     prediction type whose debiased weight is used; "" uses that of `prediction`
    alpha_bar       cumulative alpha of the noise schedule, [1000]
    snr_alpha_bar   cumulative alpha for the SNR in loss weights, [1000]; with `compatibility` it is not rescaled to zero terminal SNR
    """

    def __init__(
        self,
        settings: NoiseSettings,
        prediction: str = "epsilon",
        device: torch.device | str = "cpu",
        debiased_as: str = "",
    ):
        if prediction not in PREDICTIONS:
            raise ValueError(f"prediction is '{prediction}': {' or '.join(PREDICTIONS)}")
        self.prediction, self.settings = prediction, settings
        self.mask_mean = "image" if settings.compatibility != "none" else settings.mask_mean
        self.alpha_bar = schedule_in_force(settings.zero_terminal_snr).to(device)
        unscaled = settings.compatibility != "none" and settings.zero_terminal_snr
        self.snr_alpha_bar = sd_alpha_bar().to(device) if unscaled else self.alpha_bar
        self._snr, self._as_kohya = snr(self.snr_alpha_bar.float()), settings.compatibility != "none"
        self._kind = replace(PREDICTIONS[prediction], debiased=PREDICTIONS[debiased_as or prediction].debiased)

    def mixed(self, latents: Tensor, noises: Noises) -> tuple[Tensor, Tensor, Tensor]:
        """Return (x0, noise for the target, noise for the model's input), [B, C, H, W] each.

        Offset noise is added first, then multi-resolution noise, whose sum with the noise is divided by its standard deviation; input
        perturbation is only in the input. All is float32; with `compatibility` each tensor keeps its dtype, as in sd-scripts.
        """
        settings, noise = self.settings, noises.noise
        if not self._as_kohya:
            latents, noise = latents.float(), noise.float()
        if noises.offset is not None and settings.noise_offset:
            noise = noise + self._offset_scale(latents, noises.offset_strength) * noises.offset
        if noises.multires is not None and settings.multires_noise_iterations is not None:
            total = noise + noises.multires
            noise = total / (total.std() if self._as_kohya else total.std(dim=(1, 2, 3), keepdim=True))
        perturbed = noise
        if noises.perturbation is not None and settings.ip_noise_gamma:
            perturbed = noise + settings.ip_noise_gamma * _per_image(noises.perturbation_strength) * noises.perturbation
        return latents, noise, perturbed

    def _offset_scale(self, latents: Tensor, strength: Tensor | float) -> Tensor | float:
        """Return the factor of offset noise: a number, [B, 1, 1, 1], or with the adaptive scale [B, C, 1, 1].
        strength: random factor in 0..1 of `noise_offset`: one number or [B]"""
        assert self.settings.noise_offset is not None
        size = self.settings.noise_offset * _per_image(strength)
        if self.settings.adaptive_noise_scale is None:
            return size
        brightness = latents.mean(dim=(2, 3), keepdim=True).abs()
        return (size + self.settings.adaptive_noise_scale * brightness).clamp_min(0.0)

    def noised(self, x0: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """Return alpha_bar ** .5 * x0 + (1 - alpha_bar) ** .5 * noise at the timesteps, float32 [B, C, H, W]."""
        a, s = self._signal_and_noise(x0.dtype, timesteps)
        return (a * x0 + s * noise).float()

    def target(self, x0: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """Return the target of the prediction type, float32 [B, C, H, W]."""
        return self._kind.target(x0, noise, *self._signal_and_noise(x0.dtype, timesteps)).float()

    def _signal_and_noise(self, dtype: torch.dtype, timesteps: Tensor) -> tuple[Tensor, Tensor]:
        """Return (alpha_bar ** .5, (1 - alpha_bar) ** .5) at the timesteps, [B, 1, 1, 1] each; alpha_bar is rounded to `dtype` first."""
        bar_B = self.alpha_bar.to(dtype)[timesteps]
        return bar_B.sqrt().view(-1, 1, 1, 1), (1.0 - bar_B).sqrt().view(-1, 1, 1, 1)

    def loss(self, predicted: Tensor, target: Tensor, timesteps: Tensor) -> Tensor:
        """Return the elementwise loss by `loss_type`, float32 [B, C, H, W]."""
        alpha_bar_B = self.alpha_bar[timesteps].float()
        return element_loss(predicted - target, timesteps, alpha_bar_B, self.settings)

    def weight(self, timesteps: Tensor) -> Tensor | float:
        """Return the product of the enabled loss weights, [B]; 1.0 if none is enabled."""
        return timestep_weight(self._snr[timesteps], self.settings, self._kind)


def _per_image(value: Tensor | float) -> Tensor | float:
    """Return a tensor [B] as [B, 1, 1, 1], and a number or 0-d tensor unchanged."""
    if isinstance(value, (int, float)) or value.dim() == 0:
        return value
    return value.reshape(-1, 1, 1, 1)


# -- predictions


@dataclass(frozen=True)
class Prediction:
    """A prediction type. x0, noise: [B, C, H, W]; a = alpha_bar ** .5, s = (1 - alpha_bar) ** .5: [B, 1, 1, 1].

    target     (x0, noise, a, s) -> [B, C, H, W]
    per_x0     snr -> (target error) ** 2 / (x0 error) ** 2, by which a loss weight on x0 is divided
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


# -- elementwise losses


def _log_cosh(error: Tensor) -> Tensor:
    """Return log(cosh(error)) elementwise, without the overflow of cosh."""
    size = error.abs()
    return size + (-2 * size).exp().log1p() - math.log(2)


PLAIN_LOSSES: dict[str, Callable[[Tensor], Tensor]] = {
    "l2": lambda error: error**2,
    "l1": lambda error: error.abs(),
    "log_cosh": _log_cosh,
}
# Pseudo-Huber forms (Charbonnier et al. 1994): square below c, straight above. The difference of two near numbers costs
# digits of small losses, not of gradients, and is written as sd-scripts writes it, so that losses agree.
HUBER_LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "huber": lambda error, c: 2 * c * ((error**2 + c**2).sqrt() - c),
    "smooth_l1": lambda error, c: 2 * ((error**2 + c**2).sqrt() - c),
}


def element_loss(error_BCHW: Tensor, timesteps: Tensor, alpha_bar_B: Tensor, settings: NoiseSettings) -> Tensor:
    """Return the elementwise loss of the prediction by `loss_type`, float32 [B, C, H, W].

    error_BCHW    prediction minus target
    alpha_bar_B   cumulative alpha at the timesteps, float32 [B]
    """
    if settings.loss_type == "mixed":
        weights = {"l2": settings.mse_weight, "l1": settings.mae_weight, "log_cosh": settings.log_cosh_weight}
        return sum(
            (weight * PLAIN_LOSSES[name](error_BCHW) for name, weight in weights.items()), error_BCHW.new_zeros(())
        )
    plain = PLAIN_LOSSES.get(settings.loss_type)
    if plain is not None:
        return plain(error_BCHW)
    c_B = huber_c(timesteps, alpha_bar_B, settings)
    return HUBER_LOSSES[settings.loss_type](error_BCHW, c_B.view(-1, 1, 1, 1))


def huber_c(timesteps: Tensor, alpha_bar_B: Tensor, settings: NoiseSettings) -> Tensor:
    """Return the Huber threshold c at each timestep, float32 [B] (Khrapov et al. 2024, arXiv:2403.16728).

    With `compatibility` the schedule "snr" ignores `huber_scale`, as sd-scripts does. alpha_bar_B: cumulative alpha at the timesteps
    """
    c_B = HUBER_SCHEDULES[settings.huber_schedule](timesteps, alpha_bar_B, settings.huber_c)
    unscaled = settings.compatibility != "none" and settings.huber_schedule == "snr"
    return c_B if unscaled else c_B * settings.huber_scale


def _constant(timesteps: Tensor, alpha_bar_B: Tensor, c: float) -> Tensor:
    """Return c as the Huber threshold at each timestep, [B]."""
    return torch.full_like(alpha_bar_B, c)


def _exponential(timesteps: Tensor, alpha_bar_B: Tensor, c: float) -> Tensor:
    """Return the Huber threshold, [B], that decays exponentially from 1 at timestep 0 to c at timestep 1000."""
    return (timesteps.to(alpha_bar_B.dtype) * (math.log(c) / TIMESTEPS)).exp()


def _snr(timesteps: Tensor, alpha_bar_B: Tensor, c: float) -> Tensor:
    """Return the Huber threshold, [B], by SNR: near 1 for nearly clean images, c for pure noise."""
    return (1 - c) / (1 + sigmas(alpha_bar_B)) ** 2 + c


HUBER_SCHEDULES: dict[str, Callable[[Tensor, Tensor, float], Tensor]] = {
    "snr": _snr,
    "exponential": _exponential,
    "constant": _constant,
}


# -- loss weights by timestep: float32 [B], from snr_B float32 [B]

MOST_SNR = 1000.0  # sd-scripts' cap: below timestep 6 the weights would diverge; min-SNR has another


def min_snr_weight(snr_B: Tensor, gamma: float, prediction: Prediction) -> Tensor:
    """Return the min-SNR loss weight, [B]: min(SNR, gamma) as a weight on the error of x0 (Hang et al. 2023, arXiv:2303.09556).

    gamma     above 0; infinity gives 1 everywhere for epsilon
    At SNR 0 (the end of a zero-terminal schedule) the weight is its limit: 1 for epsilon, 0 for v.
    """
    weight = snr_B.clip(max=gamma) / prediction.per_x0(snr_B)
    return weight.where(snr_B > 0, prediction.min_snr_at_zero)


def p2_weight(snr_B: Tensor, gamma: float, prediction: Prediction) -> Tensor:
    """Return the P2 loss weight, [B] (Choi et al. 2022, arXiv:2204.00227, k = 1): 1 / (1 + SNR) ** gamma for epsilon, 1 / (2 + SNR) **
    gamma for v, as in OneTrainer."""
    return (1.0 + prediction.per_x0(snr_B)) ** -gamma


def like_noise_weight(snr_B: Tensor) -> Tensor:
    """Return the loss weight SNR / (SNR + 1), [B], which turns a v loss into the loss of predicting the noise."""
    capped = snr_B.clip(max=MOST_SNR)
    return capped / (capped + 1.0)


def like_v_weight(snr_B: Tensor, strength: float) -> Tensor:
    """Return the loss weight 1 + strength * (SNR + 1) / SNR, [B]: the noise loss plus `strength` times the v loss. Infinite at SNR 0."""
    capped = snr_B.clip(max=MOST_SNR)
    return 1.0 + strength * (capped + 1.0) / capped


def debiased_weight(snr_B: Tensor, prediction: Prediction) -> Tensor:
    """Return the loss weight of debiased estimation, [B] (Yu et al. 2023, arXiv:2310.08442): 1 / SNR ** .5 for epsilon, infinite at SNR 0;
    1 / (SNR + 1) for v, as in sd-scripts since 0.9."""
    return prediction.debiased(snr_B.clip(max=MOST_SNR))


def timestep_weight(snr_B: Tensor, settings: NoiseSettings, prediction: Prediction) -> Tensor | float:
    """Return the product of all enabled loss weights, [B], in sd-scripts' order; 1.0 if none is enabled."""
    weight: Tensor | float = 1.0
    if settings.min_snr_gamma is not None:
        weight = weight * min_snr_weight(snr_B, settings.min_snr_gamma, prediction)
    if settings.p2_gamma is not None:
        weight = weight * p2_weight(snr_B, settings.p2_gamma, prediction)
    if settings.scale_v_pred_loss_like_noise_pred:
        weight = weight * like_noise_weight(snr_B)
    if settings.v_pred_like_loss:
        weight = weight * like_v_weight(snr_B, settings.v_pred_like_loss)
    if settings.debiased_estimation_loss:
        weight = weight * debiased_weight(snr_B, prediction)
    return weight
