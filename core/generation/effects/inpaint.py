"""Inpainting: prepares image and mask, feeds inpainting models, and restores the unmasked latents after each step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from core.diffusion.samplers import add_noise
from core.generation.plan.hooks import HookInputs
from core.generation.plan.initial import IMAGE, blur_of, blurred, opened, read_mask
from core.generation.plan.stages import as_sd_scripts
from core.generation.sample.canvas import Box, Canvas, encoded, fitted, mask_of, pixels_of
from core.generation.sample.guidance import Moment
from core.generation.sample.loop import Denoiser, Hook, Stage
from core.generation.sample.noise import ImageNoise, mixed_noise
from core.record.lazy_torch import Tensor, torch
from core.record.workspace import resolve_path
from core.settings.job import GenerateJob

if TYPE_CHECKING:
    from PIL.Image import Image

    from core.diffusion.text_states import Conditioning
    from core.families.components import Components

# (blur radius, repetitions), from far to near: A1111's `masking.fill`
FILL_BLURS = ((256, 1), (64, 1), (16, 2), (4, 4), (2, 2), (0, 1))


def canvas_of(job: GenerateJob, size: tuple[int, int]) -> Canvas:
    """Return the initial image and mask of a job, prepared for a stage of `size` (width, height). Raises ProblemsError for an unreadable
    image or mask."""
    settings = job.image_to_image
    image = opened(resolve_path(settings.image_path or ""), IMAGE)
    if not settings.mask_path:
        return Canvas(fitted(image, size, settings.fit))
    mask = blurred(read_mask(settings, image.size), blur_of(job))
    if settings.inpaint_area == "masked":
        return only_masked(image, mask, settings.mask_padding, size, settings.masked_content == "fill")
    image, mask = fitted(image, size, settings.fit), fitted(mask, size, settings.fit)
    # Doubled: half of the blur is already blended in the latents.
    overlay = None if as_sd_scripts(job) else mask.point(lambda level: min(2 * level, 255))
    visible = filled(image, mask) if settings.masked_content == "fill" else image
    return Canvas(visible, mask, image, None, overlay)


def only_masked(image: Image, mask: Image, padding: int, size: tuple[int, int], fill: bool = False) -> Canvas:
    """Return a canvas of the masked area of an image, enlarged to `size` (width, height).

    padding   pixels around the masked area
    fill      replace the masked content by surrounding colors (`filled`)
    """
    box = box_around(mask.getbbox() or (0, 0, *mask.size), mask.size, padding, size)
    visible, small = fitted(image.crop(box), size, "resize"), fitted(mask.crop(box), size, "resize")
    return Canvas(filled(visible, small) if fill else visible, small, image, box, mask)


def box_around(area: Box, image: tuple[int, int], padding: int, size: tuple[int, int]) -> Box:
    """Return a masked area plus `padding` pixels, extended to the aspect ratio of `size` as far as the image allows.

    area          (left, top, right, bottom) in pixels
    image, size   (width, height)
    """
    left, top, right, bottom = area
    left, top = max(left - padding, 0), max(top - padding, 0)
    right, bottom = min(right + padding, image[0]), min(bottom + padding, image[1])
    ratio = size[0] / size[1]
    if (right - left) / (bottom - top) > ratio:
        top, bottom = _extended_span(top, bottom, int((right - left) / ratio), image[1])
    else:
        left, right = _extended_span(left, right, int((bottom - top) * ratio), image[0])
    return left, top, right, bottom


def _extended_span(start: int, end: int, length: int, limit: int) -> tuple[int, int]:
    """Extend a span to both sides to `length`, then shift it into 0..limit. Returns (start, end)."""
    length = min(max(length, end - start), limit)
    start = min(max(start - (length - (end - start)) // 2, 0), limit - length)
    return start, start + length


def filled(image: Image, mask: Image) -> Image:
    """Return the image with its masked area replaced by the blurred surrounding colors (A1111's masked content "fill")."""
    from PIL import Image as pillow
    from PIL import ImageFilter, ImageOps

    surroundings = pillow.new("RGBa", image.size)
    surroundings.paste(image.convert("RGBA").convert("RGBa"), mask=ImageOps.invert(mask))
    result = pillow.new("RGBA", image.size)
    for radius, times in FILL_BLURS:
        layer = surroundings.filter(ImageFilter.GaussianBlur(radius)).convert("RGBA")
        for _ in range(times):
            result.alpha_composite(layer)
    return result.convert("RGB")


# -- inpainting models


def is_inpainting_model(components: Components) -> bool:
    """Return whether the U-Net is that of an inpainting model, which also reads a mask and masked latents (2 C + 1 channels)."""
    config = getattr(components.denoiser, "config", {})
    return bool(config.get("in_channels") == 2 * config.get("out_channels", 0) + 1)


def with_mask_input(
    model: Denoiser, components: Components, stage: Stage, noises: Sequence[ImageNoise], canvas: Canvas | None
) -> Denoiser:
    """Return an inpainting model's denoiser that adds mask and masked latents [B, 1 + C, h, w] to its input.
    canvas: None or without a mask: the whole image is repainted"""
    from torch.nn.functional import interpolate

    kind, shape = model.family, model.family.latent_shape(stage.size)
    if canvas is None or canvas.mask is None:
        pixels, mask = torch.zeros(1, 3, stage.size[1], stage.size[0]), torch.ones(1, 1, *shape[1:])
    else:
        sharp = canvas.mask.point(lambda level: 255 if level >= 128 else 0)
        unmasked = mask_of(sharp, (1, sharp.height, sharp.width)) < 0.5
        pixels, mask = pixels_of(canvas.visible) * unmasked, (mask_of(sharp, shape) >= 0.5).float()
    masked = torch.cat([encoded(components.vae, kind, pixels, noise.image_noise()[1]) for noise in noises])
    added = torch.cat([mask.expand(len(noises), -1, -1, -1).to(masked.device), masked], dim=1)

    def predict(noisy: Tensor, timesteps: Tensor, conditioning: Conditioning) -> Tensor:
        """Call the denoiser with mask and masked latents concatenated to the noisy latents."""
        rows = added.repeat(len(noisy) // len(added), 1, 1, 1).to(noisy)
        rows = rows if rows.shape[2:] == noisy.shape[2:] else interpolate(rows, noisy.shape[2:])  # Gradual Latent
        return model.predict(torch.cat([noisy, rows], dim=1), timesteps, conditioning)

    return replace(model, predict=predict)


def hook_of(inputs: HookInputs) -> Hook | None:
    """Return the hook for an initial image with a mask, else None.

    Also None for inpainting models, which read the mask, and for sd-scripts' second stage, which repaints everything.
    """
    if is_inpainting_model(inputs.components):
        return None
    latents, kohya = inputs.latents, as_sd_scripts(inputs.job)
    mask = None if inputs.canvas is None else inputs.canvas.mask
    if latents is None or mask is None or (kohya and inputs.stage.begins != "image"):
        return None
    weights = mask_of(mask, inputs.family.latent_shape(inputs.stage.size), kohya).to(latents.device)
    return Repaint(latents, mixed_noise(inputs.noises, latents.device), weights, kohya)


@dataclass
class Repaint(Hook):
    """Restores the unmasked latents of the initial image after each step, at the noise level of the next step.

    original, noise   latents of the initial image and their noise, [B, C, h, w]
    mask              float [B, 1, h, w] or broadcastable, 1 is repainted
    sd_scripts        use the noise level of this step instead, as in sd-scripts' generator
    """

    original: Tensor
    noise: Tensor
    mask: Tensor
    sd_scripts: bool = False

    def after(self, at: Moment) -> None:
        """Blend the unmasked latents of the initial image into the step's result."""
        next_index = at.index - at.steps + (0 if self.sd_scripts else 1)  # from the end of the schedule
        noised = add_noise(at.scheduler, self.original, self.noise, next_index) if next_index else self.original
        at.latents = self.mask * at.latents + (1 - self.mask) * noised
