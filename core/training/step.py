"""The loss of one batch: the arithmetic of a training step, without model, optimizer or data.

The order of operations is that of sd-scripts, so each option gives the loss sd-scripts gives (float32, relative 1e-5).
Everything stays on the tensors' device: nothing here waits for it.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import TYPE_CHECKING

from core.diffusion.losses import element_loss
from core.diffusion.masks import masked_mean
from core.diffusion.mixing import compose_noise, perturbed, signal_and_noise
from core.diffusion.schedule import sd_alpha_bar, snr
from core.diffusion.targets import PREDICTIONS
from core.diffusion.weights import timestep_weight

if TYPE_CHECKING:
    import torch
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
    offset_strength: Tensor | float = 1.0,
    perturbation_strength: Tensor | float = 1.0,
    multires_noise: Tensor | None = None,
    snr_alpha_bar: Tensor | None = None,
    base_predict: Callable[[Tensor, Tensor], Tensor] | None = None,
    preserved: Tensor | None = None,
) -> Tensor:
    """Loss per image, float32 [B]; the run's loss is their mean.

    Nothing is drawn here. An option's random part acts when both its setting and its tensor are given; a `noise` that
    holds offset or multi-resolution noise already is passed alone, without `offset_noise` and `multires_noise`.

    predict               (noisy_latents [B, C, H, W] float32, timesteps [B]) -> the U-Net's output, [B, C, H, W]
    latents, noise        x0 (scaled by the VAE's factor) and epsilon, [B, C, H, W]
    timesteps             integers [B], 0 to 999
    alpha_bar             [1000], the schedule in force, on the device of the timesteps: `sd_alpha_bar()`, or with
                          `settings.zero_terminal_snr` `schedule_in_force(True)`; it is not stretched here
    prediction            "epsilon" or "v"
    sample_weights        [B]: 1, or the weight of regularization images
    masks                 [B, 1, h, w], or [B, h, w] as sd-scripts keeps its alpha masks, in 0..1: what counts of each
                          image; another size is averaged to the latents'
                          The mean is over the mask's area; settings.mask_mean "image" or compatibility "kohya" take it
                          over the whole image, as sd-scripts does
    offset_noise          standard normal [B, C, 1, 1], scaled by `settings.noise_offset` and the adaptive scale
    perturbation_noise    standard normal [B, C, H, W], scaled by `settings.ip_noise_gamma`
    offset_strength, perturbation_strength
                          the share of `noise_offset` and `ip_noise_gamma` that counts, one number or [B]: what a random
                          strength drew, in 0..1
    multires_noise        the levels of multi-resolution noise, enlarged, discounted and summed, [B, C, H, W]
                          (`draw_multires`). It is added after the offset; the sum is divided by its deviation, each
                          image's own, or the batch's with `settings.compatibility = "kohya"`
    snr_alpha_bar         [1000], the schedule whose SNR weighs the loss. None: `alpha_bar`, or with zero terminal SNR and
                          `compatibility = "kohya"` the schedule before it was stretched
    base_predict          as `predict`, by the model without what trains; asked without gradients
    preserved             bool [B]: images whose target is what `base_predict` gives (differential output preservation)

    ValueError for tensors of other forms, which torch would stretch to fit without a word.
    """
    _refuse_other_forms(latents, noise, timesteps, prediction, sample_weights, masks)
    kohya = settings.as_kohya
    if not kohya:
        latents, noise = latents.float(), noise.float()
    a, s = signal_and_noise(alpha_bar.to(latents.dtype)[timesteps])
    kind = PREDICTIONS[prediction]

    noise = compose_noise(noise, latents, settings, offset_noise, offset_strength, multires_noise)
    seen_noise = perturbed(noise, settings, perturbation_noise, perturbation_strength)
    noisy_latents = (a * latents + s * seen_noise).float()
    target = kind.target(latents, noise, a, s).float()  # keeps the unperturbed noise
    if base_predict is not None and preserved is not None:
        target = _keep_as_it_is(target, base_predict, noisy_latents, timesteps, preserved)
    predicted = predict(noisy_latents, timesteps).float()

    alpha_bar_B = alpha_bar[timesteps].float()
    loss_BCHW = element_loss(predicted - target, timesteps, alpha_bar_B, settings)
    over = "image" if kohya else settings.mask_mean
    if masks is None:
        loss_B = loss_BCHW.mean(dim=(1, 2, 3))
    else:
        loss_B = masked_mean(loss_BCHW, masks if masks.dim() == 4 else masks.unsqueeze(1), over)
    if sample_weights is not None:
        loss_B = loss_B * sample_weights.float()
    if snr_alpha_bar is None and kohya and settings.zero_terminal_snr:
        snr_alpha_bar = _before_stretching(alpha_bar.device)
    weighing_B = alpha_bar_B if snr_alpha_bar is None else snr_alpha_bar[timesteps].float()
    return loss_B * timestep_weight(snr(weighing_B), settings, kind)


def _refuse_other_forms(
    latents: Tensor,
    noise: Tensor,
    timesteps: Tensor,
    prediction: str,
    sample_weights: Tensor | None,
    masks: Tensor | None,
) -> None:
    """By form and type alone: nothing is read back from the device."""
    count = len(latents)
    if latents.dim() != 4 or noise.shape != latents.shape:
        raise ValueError(f"latents {_form(latents)} and noise {_form(noise)}: both are [B, C, H, W]")
    if timesteps.shape != (count,) or str(timesteps.dtype) not in ("torch.int64", "torch.int32"):
        raise ValueError(f"timesteps {_form(timesteps)} of {timesteps.dtype}: one whole number for each, [{count}]")
    if prediction not in PREDICTIONS:
        raise ValueError(f"prediction is '{prediction}': {' or '.join(PREDICTIONS)}")
    if sample_weights is not None and sample_weights.shape != (count,):
        raise ValueError(f"sample_weights {_form(sample_weights)}: one for each image, [{count}]")
    if masks is not None and tuple(masks.shape[:-2]) not in ((count, 1), (count,)):
        raise ValueError(f"masks {_form(masks)}: [{count}, 1, h, w] or [{count}, h, w]")


def _form(tensor: Tensor) -> str:
    return str(list(tensor.shape))


def _keep_as_it_is(
    target: Tensor, base_predict: Callable[[Tensor, Tensor], Tensor], noisy: Tensor, timesteps: Tensor, kept_B: Tensor
) -> Tensor:
    """The target with what the base model predicts in the rows that are to stay as they are."""
    import torch

    with torch.no_grad():
        base = base_predict(noisy, timesteps).float()
    return torch.where(kept_B.view(-1, 1, 1, 1), base, target)


@cache
def _before_stretching(device: torch.device) -> Tensor:
    """The plain schedule, copied to a device once: a copy in each step would wait for everything queued before it."""
    return sd_alpha_bar().to(device)
