"""Previews during sampling: a linear map of the predicted clean latents to RGB, at latent resolution."""

from __future__ import annotations

import time
from collections.abc import Callable
from io import BytesIO
from typing import Any
from weakref import WeakKeyDictionary

from core.diffusion.samplers import clean_estimate
from core.families.base import Family
from core.generation.plan.hooks import HookInputs
from core.generation.plan.stages import stages_of
from core.generation.sample.guidance import Moment
from core.generation.sample.loop import Hook
from core.record.lazy_torch import Tensor, torch

SECONDS = 0.25  # between two previews
QUALITY = 80
MAX_SIDE = 1024  # pixels, of a side of the JPEG
GRAY = 128  # of empty cells of the sheet
# RGB in -1..1 for each latent channel, and the bias, as published by ComfyUI (comfy/latent_formats.py).
SD = [[0.3512, 0.2297, 0.3227], [0.3250, 0.4974, 0.2350], [-0.2829, 0.1762, 0.2721], [-0.2120, -0.2616, -0.7177]]
SDXL = [[0.3651, 0.4232, 0.4341], [-0.2533, -0.0042, 0.1068], [0.1076, 0.1111, -0.0362], [-0.3165, -0.2492, -0.2188]]
PUBLISHED = {"sd1": [*SD, [0.0] * 3], "sd2": [*SD, [0.0] * 3], "sdxl": [*SDXL, [0.1084, -0.0175, -0.0011]]}
PUBLISHED["sdxl_refiner"] = PUBLISHED["sdxl"]
WIDTHS = [128, 256, 512, 512]  # of the VAEs they are for
FITTED_FACTORS: WeakKeyDictionary[Any, Tensor] = WeakKeyDictionary()  # by VAE


def hook_of(inputs: HookInputs) -> Preview | None:
    """Return the hook that shows a preview every `output.preview_every_n_steps` steps, or None if that is off."""
    every = inputs.job.output.preview_every_n_steps
    if every is None:
        return None
    _, height, width = inputs.family.latent_shape(stages_of(inputs.job)[-1].size)
    return Preview(rgb_factors(inputs.family, inputs.components.vae), every, (width, height), inputs.show)


def rgb_factors(family: Family, vae: Any) -> Tensor:
    """Return the map from latents to RGB, float32 [C + 1, 3]: RGB in -1..1 per latent channel, and the bias in the last row.

    Published factors for the usual VAEs, else fitted to `vae`.
    """
    if family.name in PUBLISHED and list(vae.config.get("block_out_channels", ())) == WIDTHS:
        return torch.tensor(PUBLISHED[family.name])
    if vae not in FITTED_FACTORS:
        FITTED_FACTORS[vae] = fitted_factors(family, vae)
    return FITTED_FACTORS[vae]


def fitted_factors(family: Family, vae: Any) -> Tensor:
    """Fit `rgb_factors` by least squares to smooth random latents that the VAE decodes."""
    from torch.nn.functional import interpolate

    generator = torch.Generator().manual_seed(0)
    coarse = torch.randn(1, family.latent_channels, 6, 6, generator=generator)
    latents = interpolate(coarse, size=(24, 24), mode="bicubic")
    parameter = next(vae.parameters())
    with torch.no_grad():
        pixels = family.decode_latents(vae, latents.to(parameter.device)).float().cpu()
    # A damaged VAE decodes to NaN, for which lstsq fails; the image is refused later, with the reason.
    pixels = interpolate(pixels, size=latents.shape[-2:], mode="area").nan_to_num(0, 0, 0)
    flat = latents[0].flatten(1).T
    with_bias = torch.cat([flat, flat.new_ones(len(flat), 1)], 1)
    return torch.linalg.lstsq(with_bias, pixels[0].flatten(1).T).solution


def approximated(latents: Tensor, factors: Tensor) -> Tensor:
    """Return approximate RGB images, uint8 [B, h, w, 3], of latents [B, C, h, w], on their device. factors: from `rgb_factors`"""
    factors = factors.to(latents.device)
    rgb = latents.float().movedim(1, -1) @ factors[:-1] + factors[-1]
    return ((rgb / 2 + 0.5).clamp(0, 1) * 255).round().byte()


def tiled(images: Tensor) -> Tensor:
    """Arrange a batch of images in a grid: uint8 [B, h, w, 3] -> [rows * h, columns * w, 3]. Empty cells are gray."""
    count, height, width, _ = images.shape
    rows = round(count**0.5)
    columns = -(-count // rows)
    sheet = images.new_full((rows * columns, height, width, 3), GRAY)
    sheet[:count] = images
    sheet = sheet.reshape(rows, columns, height, width, 3).transpose(1, 2)
    return sheet.reshape(rows * height, columns * width, 3)


class Preview(Hook):
    """Passes a JPEG of the batch's images to `show` during sampling.

    every   steps between two previews; at most one per SECONDS
    size    (width, height) in pixels of each image in the JPEG, also in smaller stages
    """

    def __init__(self, factors: Tensor, every: int, size: tuple[int, int], show: Callable[[bytes], None]):
        self.factors, self.every, self.size, self.show = factors, every, size, show
        self._last = 0.0

    def step(self, at: Moment, output: Tensor) -> None:
        """Show a preview of the clean latents predicted by `output`, if one is due at this step."""
        now = time.monotonic()
        if (at.index + 1) % self.every or now - self._last < SECONDS:
            return
        self._last = now
        clean = clean_estimate(at.scheduler, output, at.timestep, at.latents)
        images = approximated(clean, self.factors)
        self.show(self._jpeg(tiled(images), images.shape[2]))

    def _jpeg(self, pixels: Tensor, width: int) -> bytes:
        """Encode a grid of images, uint8 [H, W, 3], as a JPEG scaled to `size` per image, with sides of at most MAX_SIDE pixels.
        width: width of one image in `pixels`"""
        from PIL import Image

        image, scale = Image.fromarray(pixels.cpu().numpy()), self.size[0] / width
        scale = min(scale, MAX_SIDE / max(image.size))
        content = BytesIO()
        size = round(image.width * scale), round(image.height * scale)
        (image if image.size == size else image.resize(size)).save(content, "JPEG", quality=QUALITY)
        return content.getvalue()
