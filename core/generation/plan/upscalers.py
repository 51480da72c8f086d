"""Registry of the upscalers between the stages of hires fix. Imports no torch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from core.record.lazy_torch import Tensor
from core.settings.generation.high_resolution import HiresSettings
from core.settings.growth import add_choice
from core.settings.job import GenerateJob

if TYPE_CHECKING:
    from PIL.Image import Image

Size = tuple[int, int]
LANCZOS, BICUBIC = "lanczos", "latent_bicubic"


@dataclass(frozen=True)
class Upscaler:
    """An upscaler for images or for latents.

    images    (image, (width, height)) -> image of this size
    latents   (latents [B, C, h, w], (height, width)) -> latents of this size; if set, `images` is not used
    """

    name: str
    title: str
    images: Callable[[Image, Size], Image] | None = None
    latents: Callable[[Tensor, Size], Tensor] | None = None


UPSCALERS: dict[str, Upscaler] = {}


def register(upscaler: Upscaler) -> None:
    """Register an upscaler and add it to the choices of hires fix."""
    UPSCALERS[upscaler.name] = upscaler
    add_choice(HiresSettings, "highres_fix_upscaler", upscaler.name, upscaler.title)


def upscaler_of(job: GenerateJob) -> Upscaler:
    """Return the upscaler of a job without an upscaler file. sd-scripts' switch for latents means bicubic upscaling of latents."""
    name = job.hires.highres_fix_upscaler
    latents = job.hires.highres_fix_latents_upscaling and name == LANCZOS and not job.hires.highres_fix_upscaler_file
    return UPSCALERS[BICUBIC if latents else name]


def upscales_latents(job: GenerateJob) -> bool:
    """Return whether the second stage starts from upscaled latents of the first, which are not decoded."""
    return not job.hires.highres_fix_upscaler_file and upscaler_of(job).latents is not None


def _resized(resampling: str, image: Image, size: Size) -> Image:
    """Resize an image to (width, height) by a resampling filter of pillow such as "LANCZOS"."""
    from PIL import Image as pillow

    return image.resize(size, pillow.Resampling[resampling])


def _interpolated(mode: str, antialias: bool, latents: Tensor, size: Size) -> Tensor:
    """Resize latents [B, C, h, w] to (height, width) by torch's interpolate with this mode and antialiasing."""
    from torch.nn.functional import interpolate

    return interpolate(latents, size=size, mode=mode, antialias=antialias)


register(Upscaler(LANCZOS, "Lanczos", images=partial(_resized, "LANCZOS")))
register(Upscaler("nearest", "Nearest", images=partial(_resized, "NEAREST")))
# A1111's latent upscalers.
register(Upscaler("latent", "Latent", latents=partial(_interpolated, "bilinear", False)))
register(Upscaler("latent_antialiased", "Latent (antialiased)", latents=partial(_interpolated, "bilinear", True)))
register(Upscaler(BICUBIC, "Latent (bicubic)", latents=partial(_interpolated, "bicubic", False)))
register(
    Upscaler("latent_nearest_exact", "Latent (nearest-exact)", latents=partial(_interpolated, "nearest-exact", False))
)


def enlarged(images: Sequence[Image], job: GenerateJob, size: Size) -> list[Image]:
    """Return the images resized to `size` (width, height) by the job's image upscaler."""
    upscale = upscaler_of(job).images
    assert upscale is not None
    return [image if image.size == size else upscale(image, size) for image in images]
