"""How noise levels are drawn, what the noise is made of, and how the loss counts and weighs errors."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import field_validator

from core.settings.base import Settings, setting, zero_is_off


class NoiseSettings(Settings):
    """Noise and loss."""

    min_snr_gamma: float | None = setting(
        None,
        ge=0.1,
        le=20,
        title="Min-SNR gamma",
        level="shown",
        kohya="min_snr_gamma",
        source="Hang et al. 2023, arXiv:2303.09556",
        help="Caps the loss weight of nearly clean timesteps. The paper uses 5; empty or 0 is off.",
    )
    debiased_estimation_loss: bool = setting(
        False,
        title="Debiased estimation",
        kohya="debiased_estimation_loss",
        source="Yu et al. 2023, arXiv:2310.08442",
        help="Weighs noisy timesteps up and nearly clean ones down, more gently than min-SNR. Try it instead of min-SNR when colors or composition are trained too slowly.",
    )
    scale_v_pred_loss_like_noise_pred: bool = setting(
        False,
        title="Weigh the v loss like a noise loss",
        kohya="scale_v_pred_loss_like_noise_pred",
        source="sd-scripts",
        help="For v models: the loss counts each timestep as a noise-predicting model would, with more weight on fine detail.",
    )
    v_pred_like_loss: float | None = setting(
        None,
        ge=0,
        le=100,
        title="Share of a v loss",
        kohya="v_pred_like_loss",
        source="sd-scripts",
        help="For noise-predicting models: adds this much of the loss that a v model would have, which weighs very noisy timesteps up. Empty or 0 is off.",
    )
    loss_type: Literal["l2", "l1", "huber", "smooth_l1"] = setting(
        "l2",
        title="Loss",
        level="shown",
        kohya="loss_type",
        labels={"l2": "squared error (l2)", "l1": "absolute error (l1)", "huber": "Huber", "smooth_l1": "smooth l1"},
        source="Khrapov et al. 2024, arXiv:2403.16728",
        help="The squared error trains most from the largest errors. Huber and smooth l1 count large errors less, which helps when some images are bad.",
    )
    huber_schedule: Literal["snr", "exponential", "constant"] = setting(
        "snr",
        title="Huber: where c falls",
        kohya="huber_schedule",
        labels={"snr": "with the noise (snr)", "exponential": "exponentially", "constant": "nowhere (constant)"},
        help="Errors below c are squared, those above counted straight. 'snr' and 'exponential' start near 1, where an image is nearly clean, and fall to Huber's c.",
    )
    huber_c: float = setting(
        0.1,
        gt=0,
        le=100,
        title="Huber: c",
        kohya="huber_c",
        help="Where squared turns into straight, at the noisiest timestep. Lower it when outliers still show.",
    )
    huber_scale: float = setting(
        1.0,
        gt=0,
        le=100,
        title="Huber: scale of c",
        kohya="huber_scale",
        help="Multiplies c at every timestep.",
    )
    mask_mean: Literal["area", "image"] = setting(
        "area",
        title="Loss under a mask",
        labels={"area": "mean over the mask", "image": "mean over the image"},
        help="Over the mask, a small mask teaches as strongly as a large one. Over the image, as sd-scripts does, it teaches as little as it is small.",
    )
    noise_offset: float | None = setting(
        None,
        ge=0,
        le=1,
        title="Noise offset",
        level="shown",
        kohya="noise_offset",
        source="Guttenberg 2023, 'Diffusion with offset noise'",
        help="Adds noise that shifts a whole channel, so that very dark and very bright images can be trained. About 0.05 to 0.1; empty is off.",
    )
    noise_offset_random_strength: bool = setting(
        False,
        title="Noise offset: random strength",
        kohya="noise_offset_random_strength",
        help="Draws the strength between 0 and the noise offset for each image, so that the model also trains without it.",
    )
    adaptive_noise_scale: float | None = setting(
        None,
        ge=-1,
        le=1,
        title="Noise offset: adaptive scale",
        kohya="adaptive_noise_scale",
        source="sd-scripts",
        help="Adds this times an image's own mean brightness and color to the noise offset; below 0 it takes away. Between the noise offset and a tenth of it; empty is off.",
    )
    multires_noise_iterations: int | None = setting(
        None,
        ge=1,
        le=64,
        unit="levels",
        title="Multi-resolution noise",
        kohya="multires_noise_iterations",
        source="Whitaker 2023, 'Multi-Resolution Noise for Diffusion Model Training'",
        help="Mixes noise of coarser and coarser grain in: light, dark and large shapes vary more. 6 to 10 levels; empty or 0 is off. Use it or the noise offset, seldom both.",
    )
    multires_noise_discount: float = setting(
        0.3,
        ge=0,
        le=1,
        title="Multi-resolution noise: discount",
        kohya="multires_noise_discount",
        help="How strong each coarser level is beside the one before. 0.1 to 0.3 for few images, up to 0.8 for many.",
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
    ip_noise_gamma_random_strength: bool = setting(
        False,
        title="Input perturbation: random strength",
        kohya="ip_noise_gamma_random_strength",
        help="Draws the strength between 0 and the input perturbation for each image.",
    )
    zero_terminal_snr: bool = setting(
        False,
        title="Zero terminal SNR",
        kohya="zero_terminal_snr",
        source="Lin et al. 2023, arXiv:2305.08891",
        help="Stretches the noise schedule so that the last timestep is nothing but noise: a model can then draw images that are all dark or all bright. For v models; whoever draws with the result must set the same.",
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
        help="Timesteps from here up are never drawn. Lower it to train detail and keep composition. The same as the lowest: only this one is drawn.",
    )
    compatibility: Literal["none", "kohya", "kohya_0.9"] = setting(
        "none",
        title="Step exactly as sd-scripts",
        labels={"none": "no", "kohya": "as sd-scripts", "kohya_0.9": "as sd-scripts 0.9"},
        help="Repeats old results where sd-scripts does something questionable: loss weights ignore the stretched schedule of zero terminal SNR, Huber's scale does nothing on the schedule 'snr', masked errors are averaged over the whole image, random strengths and the size of multi-resolution noise are shared by a batch, half-precision latents are mixed in half precision (those of a LoRA in 0.9 alone), and with gradient accumulation each batch counts the same however short it is, those of an epoch's incomplete last update less.",
    )

    @property
    def as_kohya(self) -> bool:
        """Whether the step is that of sd-scripts."""
        return self.compatibility != "none"

    def halves_latents(self, method: str) -> bool:
        """Whether latents take the type that computes, as sd-scripts casts them: 0.9 all, 0.10 all but a LoRA's."""
        return self.as_kohya and (method != "lora" or self.compatibility == "kohya_0.9")

    @field_validator("min_snr_gamma", "multires_noise_iterations", mode="before")
    @classmethod
    def _zero_is_off(cls, value: Any) -> Any:
        return zero_is_off(value)
