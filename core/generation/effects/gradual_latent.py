"""Gradual Latent: starts sampling with small latents and enlarges them over the steps. For the sampler Euler a."""

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from core.generation.plan.hooks import HookInputs
from core.generation.plan.stages import as_sd_scripts
from core.generation.sample.guidance import Moment
from core.generation.sample.guidances.layers import blurred
from core.generation.sample.loop import Hook
from core.settings.generation.high_resolution import GROWING, GradualLatentSettings, unsharp_of

STEP = 8  # sides in latents are multiples of it


def hook_of(inputs: HookInputs) -> Hook | None:
    """Return the hook if a start timestep is set and the sampler supports it, else None."""
    settings = inputs.job.gradual_latent
    if settings.gradual_latent_timesteps is None or inputs.job.generate.sampler not in GROWING:
        return None
    return GradualLatent(settings, as_sd_scripts(inputs.job))


class GradualLatent(Hook):
    """Euler a with steps that enlarge the latents.

    sd_scripts   True, as in sd-scripts' generator: noise continues from the generators' state after all noise of the full size, and
                 latents may end below the full size; False: the last step enlarges them to it
    """

    def __init__(self, settings: GradualLatentSettings, sd_scripts: bool = False):
        self._settings, self._sd_scripts = settings, sd_scripts
        self._ratio, self._steps_since_growth = settings.gradual_latent_ratio, 1000
        self._unsharp = unsharp_of(settings.gradual_latent_unsharp_params)
        self._full = (0, 0)

    def before(self, at: Moment) -> None:
        """Shrink the latents before the first step."""
        if at.index == 0:
            self._full = (at.latents.shape[-2], at.latents.shape[-1])
            # Reflected borders must be inside; .5 against rounding.
            min_side = 1.5 + (self._unsharp[0] // 2 if self._unsharp else 0)
            self._ratio = max(self._ratio, min(min_side / min(self._full), 1.0))
            small = interpolate(at.latents, scale_factor=self._ratio, mode="bicubic")
            at.latents = self._sharpened(small)
            self._generators = [
                noise.generator_after_sampling() if self._sd_scripts else noise.sampler for noise in at.noises
            ]

    def step(self, at: Moment, output: Tensor) -> Tensor | None:
        """Compute an Euler a step, [B, C, h, w], enlarging the latents if this step is due. output: the denoiser's"""
        size = self._next_size(at)
        scheduler = at.scheduler
        if scheduler.step_index is None:
            scheduler._init_step_index(at.timestep)
        sigma, sigma_next = scheduler.sigmas[scheduler.step_index], scheduler.sigmas[scheduler.step_index + 1]
        clean = _clean_latents(scheduler.config.prediction_type, at.latents, output, sigma)
        sigma_up = (sigma_next**2 * (sigma**2 - sigma_next**2) / sigma**2).sqrt()
        sigma_down = (sigma_next**2 - sigma_up**2).sqrt()
        slope = (at.latents - clean) / sigma
        scheduler._step_index += 1
        target_x = self._unsharp is None or self._unsharp[3]
        if size is None or target_x:
            latents = at.latents + slope * (sigma_down - sigma)
            latents = latents if size is None else self._sharpened(interpolate(latents, size=size, mode="bicubic"))
        else:
            enlarged = self._sharpened(interpolate(at.latents, size=size, mode="bicubic"))
            latents = enlarged + interpolate(slope, size=size, mode="bicubic") * (sigma_down - sigma)
        drawn = [torch.randn(latents.shape[1:], generator=rng, device=rng.device) for rng in self._generators]
        noise = torch.stack(drawn).to(latents)
        return latents + noise * sigma_up * (1.0 if size is None else self._settings.gradual_latent_s_noise)

    def _next_size(self, at: Moment) -> tuple[int, int] | None:
        """Return (height, width) to which this step enlarges the latents, or None to keep their size. Advances the schedule."""
        settings, last = self._settings, at.index == at.steps - 1 and not self._sd_scripts
        begun = float(at.timestep) < (settings.gradual_latent_timesteps or 0)
        size = None
        if self._ratio < 1 and (last or (begun and self._steps_since_growth >= settings.gradual_latent_every_n_steps)):
            self._ratio = 1.0 if last else min(self._ratio + settings.gradual_latent_ratio_step, 1.0)
            height, width = (max(int(side * self._ratio) // STEP * STEP, min(STEP, side)) for side in self._full)
            size = self._full if last else (height, width)
            self._steps_since_growth = 0
        self._steps_since_growth += 1
        return size

    def _sharpened(self, latents: Tensor) -> Tensor:
        """Apply the unsharp mask in the settings, if any, to latents."""
        if self._unsharp is None or not self._unsharp[0]:
            return latents
        size, sigma, strength, _ = self._unsharp
        return latents + (latents - blurred(latents, size, sigma)) * strength


def _clean_latents(prediction: str, latents: Tensor, output: Tensor, sigma: Tensor) -> Tensor:
    """Return the predicted clean latents [B, C, h, w] in the sampler's scale (Karras sigmas).

    prediction   "epsilon" or "v_prediction"
    latents      noisy latents, x0 + sigma * noise
    output       the model's output
    """
    if prediction == "v_prediction":
        return output * (-sigma / (sigma**2 + 1).sqrt()) + latents / (sigma**2 + 1)
    return latents - sigma * output
