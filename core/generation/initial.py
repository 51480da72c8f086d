"""Images and masks that a generation begins with: found, brought to size, encoded, and kept where nothing is repainted."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from core.diffusion.samplers import add_noise
from core.generation.hooks import Making
from core.generation.loop import Hook, Moment
from core.generation.stages import FIRST_STEP, as_generator
from core.record.problems import ProblemsError
from core.record.workspace import resolve_path
from core.settings.job import GenerateJob

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import Tensor

    from core.families.base import Family

ENDINGS = (".png", ".jpg", ".jpeg", ".webp")
IMAGE, MASK, MAP = "image_to_image.image_path", "image_to_image.mask_path", "regions.region_map"


def image_files(text: str, where: str) -> list[Path]:
    """The images that a setting names: one file, or those of a folder by name. Raises ProblemsError where there are none."""
    path = resolve_path(text)
    if os.path.isfile(path):
        return [path]
    found = sorted(file for file in path.glob("*") if file.suffix.lower() in ENDINGS) if os.path.isdir(path) else []
    if found:
        return found
    what = f"The folder '{text}' contains no images" if os.path.isdir(path) else f"'{text}' does not exist"
    raise ProblemsError.one(what, where, "choose an image, or a folder of PNG, JPEG or WebP files", "image.missing")


def opened(path: Path, where: str) -> Image:
    """The whole image, upright, as RGB; masks as gray levels. Raises ProblemsError where it cannot be read."""
    from core.dataset.images.opening import BrokenImage, open_image

    try:
        with open_image(path) as image:
            return image.convert("L" if where == MASK else "RGB")
    except BrokenImage as error:
        what = f"The image {path.name} {error}"
        raise ProblemsError.one(what, where, "choose another image file", "image.unreadable") from error


def size_from(job: GenerateJob, image: tuple[int, int], step: int) -> tuple[int, int]:
    """(width, height) of what is made from an image of this size: as set, or its own, or with its ratio where one side is
    set. step: sides are multiples of it"""
    step = FIRST_STEP if as_generator(job) else step
    width, height = job.generate.width, job.generate.height
    if width and not height:
        height = round(image[1] * width / image[0])
    elif height and not width:
        width = round(image[0] * height / image[1])
    own = width or image[0], height or image[1]
    return max(own[0] // step, 1) * step, max(own[1] // step, 1) * step


def fitted(image: Image, size: tuple[int, int], fit: str) -> Image:
    """fit: "resize" to the size whatever the ratio is, "crop" what is too much of the longer sides"""
    from PIL import Image as pillow
    from PIL import ImageOps

    if image.size == size:
        return image
    if fit == "crop":
        return ImageOps.fit(image, size, pillow.Resampling.LANCZOS)
    return image.resize(size, pillow.Resampling.LANCZOS)


def pixels_of(image: Image) -> Tensor:
    """float32 [1, 3, H, W] in -1..1."""
    import numpy as np
    import torch

    values = torch.from_numpy(np.array(image, dtype=np.float32))
    return (values.permute(2, 0, 1) / 255 * 2 - 1)[None]


def encoded(vae: Any, kind: Family, pixels: Tensor, noise: Tensor) -> Tensor:
    """A sample of the VAE's posterior as the model is shown it, float32 [1, C, h, w]. noise: [C, h, w]"""
    mean, logvar = kind.encode_image_latents(vae, pixels)
    sample = mean + (logvar / 2).exp() * noise[None].to(mean.device)
    return kind.model_latents(vae.config, sample)


def mask_of(image: Image, shape: tuple[int, int, int], smooth: bool = False) -> Tensor:
    """A mask for latents of this shape: float32 [1, 1, h, w], 1 where they are repainted.

    smooth   also from the pixels around each latent, as sd-scripts' generator does
    """
    import numpy as np
    import torch
    from PIL import Image as pillow

    way = pillow.Resampling.BILINEAR if smooth else pillow.Resampling.BOX
    small = image.resize((shape[2], shape[1]), way)
    return torch.from_numpy(np.array(small, dtype=np.float32) / 255)[None, None]


def hook_of(making: Making) -> Hook | None:
    """Where the initial image has a mask."""
    import torch

    given, stage, latents = making.job.image_to_image, making.stage, making.latents
    if latents is None or not given.mask_path or stage.begins != "image":
        return None
    image, kohya = fitted(opened(resolve_path(given.mask_path), MASK), stage.size, given.fit), as_generator(making.job)
    mask = mask_of(image, making.family.latent_shape(stage.size), kohya).to(latents.device)
    noise = torch.stack([each.of_image()[0] for each in making.noises]).to(latents.device)
    return Repaint(latents, noise, mask, kohya)


@dataclass
class Repaint(Hook):
    """Brings back, after each step, what a mask keeps of the initial image.

    original, noise   latents [B, C, h, w] and what they were mixed with      mask   [B, 1, h, w], 1 where it is repainted
    late              as noisy as the step was in place of the next one: sd-scripts' generator
    """

    original: Tensor
    noise: Tensor
    mask: Tensor
    late: bool = False

    def after(self, at: Moment) -> None:
        which = at.index - at.steps + (0 if self.late else 1)  # from the end of the schedule
        kept = add_noise(at.sampler, self.original, self.noise, which) if which else self.original
        at.latents = self.mask * at.latents + (1 - self.mask) * kept
