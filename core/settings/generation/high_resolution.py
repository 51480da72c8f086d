"""Settings for large images: hires fix, Deep Shrink and Gradual Latent."""

import math
from typing import Literal

from core.settings.base import Settings, kohya_setting, setting

GROWING = ("euler_a",)  # samplers with Gradual Latent


class HiresSettings(Settings):
    """Hires fix: generates a small image first, then upscales it and generates it again at full size."""

    highres_fix_scale: float | None = kohya_setting(
        None,
        within=(0.1, 8),
        title="Hires scale",
        hint="off",
        help="Below 1, the first stage has this share of the size, as in sd-scripts: 0.5 is half. Above 1, the second stage is larger by this factor, as in A1111: 2 is twice. Blank: off.",
    )
    hires_steps: int | None = setting(
        None,
        within=(1, 1000),
        unit="steps",
        hint="as sampling steps",
        source="A1111",
        help="Sampling steps of the second stage. Empty is as many as the sampling steps (0 in A1111). 10 to 20 are usual.",
    )
    highres_fix_steps: int | None = kohya_setting(
        None,
        within=(1, 1000),
        title="Steps of the first stage",
        unit="steps",
        hint="as sampling steps",
        help="sd-scripts' way to give the stages different steps: the second has the sampling steps. Empty is the same for the first; with sd-scripts compatibility, 28, and the second runs the share of the denoising strength.",
    )
    highres_fix_strength: float | None = kohya_setting(
        None,
        within=(0, 1),
        title="First denoising strength",
        hint="same as strength",
        help="Denoising strength of the first stage with an initial image. Empty is the same as the second stage's.",
    )
    highres_fix_upscaler: Literal[
        "lanczos", "nearest", "latent", "latent_antialiased", "latent_bicubic", "latent_nearest_exact"
    ] = setting(
        "lanczos",
        title="Upscaler",
        help="How the first stage is upscaled. Lanczos resizes the image; the latent upscalers resize the latents, which needs a denoising strength of 0.5 or more.",
    )
    highres_fix_upscaler_file: str | None = setting(
        None,
        title="Upscaler file",
        widget="file",
        names="path or name",
        holds="upscaler",
        hint="none",
        replaces="highres_fix_upscaler",
        help="An upscaling model used instead of the upscaler: a file in models/upscalers or a path. ESRGAN, Real-ESRGAN, SwinIR, HAT, DAT, SPAN or another that spandrel reads, or sd-scripts' latent upscaler for SD 1.x and 2.x.",
    )
    highres_fix_latents_upscaling: bool = kohya_setting(
        False,
        title="Upscale latents",
        help="sd-scripts' name for the upscaler Latent (bicubic). It needs a denoising strength of 0.5 or more.",
    )
    highres_fix_save_1st: bool = kohya_setting(
        False, title="Save the first stage", help="Also saves the image of the first stage."
    )
    highres_fix_disable_control_net: bool = kohya_setting(
        False,
        title="ControlNets off in second stage",
        help="ControlNets then act in the first stage only, which sets the layout.",
    )


class DeepShrinkSettings(Settings):
    """Deep Shrink (Kohya Hires fix): downscales hidden states at high noise levels, so that large images do not repeat things."""

    ds_depth_1: int | None = kohya_setting(
        None,
        within=(0, 8),
        title="Depth 1",
        hint="off",
        help="The input block before which hidden states are downscaled: 0 to 3 for SD 1.x and 2.x, 0 to 8 for SDXL; 3 is usual. Blank: off.",
    )
    ds_timesteps_1: int = kohya_setting(
        650, within=(0, 1000), title="Timestep 1", help="Acts at depth 1 down to this timestep."
    )
    ds_depth_2: int | None = kohya_setting(
        None, within=(0, 8), title="Depth 2", hint="off", help="The input block for the timesteps after that."
    )
    ds_timesteps_2: int = kohya_setting(
        650, within=(0, 1000), title="Timestep 2", help="Acts at depth 2 down to this timestep."
    )
    ds_ratio: float = kohya_setting(
        0.5, within=(0.1, 1), title="Ratio", help="Downscaling factor. 0.5 halves the sides."
    )


class GradualLatentSettings(Settings):
    """Gradual Latent: the first steps have small latents, which then grow to the size of the image. For Euler a."""

    gradual_latent_timesteps: int | None = kohya_setting(
        None,
        within=(0, 1000),
        title="Start timestep",
        hint="off",
        help="From this timestep on the latents grow; 750 is usual. Blank: off.",
    )
    gradual_latent_ratio: float = kohya_setting(
        0.5, within=(0.1, 1), title="Initial ratio", help="Initial size of the latents as a share of the full size."
    )
    gradual_latent_ratio_step: float = kohya_setting(
        0.125, within=(0.001, 1), title="Ratio step", help="Increase of the ratio each time."
    )
    gradual_latent_every_n_steps: int = kohya_setting(
        3, within=(1, 1000), title="Grow every n steps", unit="steps", help="Steps between two enlargements."
    )
    gradual_latent_s_noise: float = kohya_setting(
        1.0, within=(0, 10), title="Noise scale", help="Scale of the noise added at steps that enlarge."
    )
    gradual_latent_unsharp_params: str | None = kohya_setting(
        None,
        title="Unsharp mask",
        hint="off",
        help="Kernel size, sigma, strength, and 1 to sharpen the latents after the step or 0 before it: 3,0.5,0.5,1 or 3,1.0,1.0,0. Blank: off.",
    )


def unsharp_of(text: str | None) -> tuple[int, float, float, bool] | None:
    """Parse "kernel size,sigma,strength[,1 or 0]" into (size in pixels, sigma, strength, whether after the step); None for no text.

    The last value is true by default. Raises ValueError unless the size is 0 or odd, sigma above 0 and all numbers finite.
    """
    if not text:
        return None
    size, sigma, strength, *rest = numbers = [float(part) for part in text.split(",")]
    valid_size = size == 0 or (size > 0 and size % 2 == 1)
    if not (all(map(math.isfinite, numbers)) and valid_size and sigma > 0 and len(rest) <= 1):
        raise ValueError(text)
    return int(size), sigma, strength, bool(rest[0]) if rest else True
