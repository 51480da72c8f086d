"""The loss of one batch: the arithmetic of a training step, without model, optimizer or data.

The order of operations is that of sd-scripts, so each option gives the loss sd-scripts gives (float32, relative 1e-5).
Everything stays on the tensors' device: nothing here waits for it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from core.diffusion.schedule import snr
from core.diffusion.targets import PREDICTIONS, Prediction
from core.diffusion.weights import min_snr_weight

if TYPE_CHECKING:
    from torch import Tensor

    from core.settings.noise import NoiseSettings


def training_loss(
    predict: Callable[[Tensor, Tensor], Tensor],
    latents: Tensor,
    noise: Tensor,
    timesteps: Tensor,
    settings: NoiseSettings,
    *,
    alpha_bar: Tensor,
    prediction: str = "epsilon",
    sample_weights: Tensor | None = None,
    masks: Tensor | None = None,
    offset_noise: Tensor | None = None,
    perturbation_noise: Tensor | None = None,
    base_predict: Callable[[Tensor, Tensor], Tensor] | None = None,
    preserved: Tensor | None = None,
) -> Tensor:
    """Loss per picture, float32 [B]; the run's loss is their mean.

    predict               (noisy_latents [B, C, H, W] float32, timesteps [B]) -> the U-Net's output, [B, C, H, W]
    latents, noise        x0 (scaled by the VAE's factor) and epsilon, [B, C, H, W]
    timesteps             integers [B], 0 to 999
    alpha_bar             [1000], on the device of the timesteps
    prediction            "epsilon" or "v"
    sample_weights        [B]: 1, or the weight of regularisation pictures
    masks                 [B, 1, h, w] in 0..1, what counts of each picture; another size is averaged to the latents'
    offset_noise          standard normal [B, C, 1, 1], scaled by `settings.noise_offset`; None: noise holds it already
    perturbation_noise    standard normal [B, C, H, W], scaled by `settings.ip_noise_gamma`
    base_predict          as `predict`, by the model without what learns; asked without gradients
    preserved             bool [B]: pictures whose target is what `base_predict` gives (differential output preservation)
    """
    x0, noise = latents.float(), noise.float()
    alpha_bar_B = alpha_bar[timesteps].float()
    a = alpha_bar_B.sqrt().view(-1, 1, 1, 1)
    s = (1.0 - alpha_bar_B).sqrt().view(-1, 1, 1, 1)
    kind = PREDICTIONS[prediction]

    if offset_noise is not None and settings.noise_offset is not None:
        noise = noise + settings.noise_offset * offset_noise.float()
    seen_noise = noise
    if perturbation_noise is not None and settings.ip_noise_gamma is not None:
        seen_noise = (
            noise + settings.ip_noise_gamma * perturbation_noise.float()
        )  # the target keeps the unperturbed noise

    noisy_latents = a * x0 + s * seen_noise
    target = kind.target(x0, noise, a, s)
    if base_predict is not None and preserved is not None:
        target = _keep_as_it_is(target, base_predict, noisy_latents, timesteps, preserved)
    predicted = predict(noisy_latents, timesteps).float()
    error_BCHW = (predicted - target) ** 2
    loss_B = error_BCHW.mean(dim=(1, 2, 3)) if masks is None else masked_mean(error_BCHW, masks, settings.mask_mean)
    if sample_weights is not None:
        loss_B = loss_B * sample_weights
    return loss_B * timestep_weight(snr(alpha_bar_B), settings, kind)


def _keep_as_it_is(
    target: Tensor, base_predict: Callable[[Tensor, Tensor], Tensor], noisy: Tensor, timesteps: Tensor, kept_B: Tensor
) -> Tensor:
    """The target with what the base model predicts in the rows that are to stay as they are."""
    import torch

    with torch.no_grad():
        base = base_predict(noisy, timesteps).float()
    return torch.where(kept_B.view(-1, 1, 1, 1), base, target)


def timestep_weight(snr_B: Tensor, settings: NoiseSettings, kind: Prediction) -> Tensor | float:
    """The product of the weights that depend on the timestep alone: float32 [B], or 1.0 when none is on."""
    if settings.min_snr_gamma is None:
        return 1.0
    return min_snr_weight(snr_B, settings.min_snr_gamma, kind)


def masked_mean(error_BCHW: Tensor, masks: Tensor, over: str = "area") -> Tensor:
    """Mean over the masked area of each picture, [B]; a picture whose mask is empty gives 0.

    over   "area": dividing by the mask's own area keeps a small mask from meaning a small loss and so a small learning
           rate. "picture": the mean over the whole picture, as in sd-scripts
    """
    from torch.nn.functional import interpolate

    masks = masks.float()
    if masks.shape[-2:] != error_BCHW.shape[-2:]:
        masks = interpolate(masks, size=error_BCHW.shape[-2:], mode="area")
    if over == "picture":
        return (error_BCHW * masks).mean(dim=(1, 2, 3))
    covered_B = masks.expand_as(error_BCHW).sum(dim=(1, 2, 3))
    return (error_BCHW * masks).sum(dim=(1, 2, 3)) / covered_B.clamp_min(1e-6)
