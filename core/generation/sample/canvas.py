"""Images on their way into a model and out of it: resized, encoded, and pasted back where nothing is repainted."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import Tensor

    from core.families.base import Family

Box = tuple[int, int, int, int]  # left, top, right, bottom
Size = tuple[int, int]  # width, height
Part = tuple[Size, Box]  # of an image of this size, what is generated


def fitted(image: Image, size: tuple[int, int], fit: str) -> Image:
    """The image at (width, height). fit: "resize" stretches it, "crop" keeps its aspect ratio and crops the center"""
    from PIL import Image as pillow
    from PIL import ImageOps

    if image.size == size:
        return image
    if fit == "crop":
        return ImageOps.fit(image, size, pillow.Resampling.LANCZOS)
    return image.resize(size, pillow.Resampling.LANCZOS)


def placed(image: Image, fit: str, size: Size, part: Part | None, make: Callable[[Image], Image]) -> Image:
    """The control image at (width, height). make: of what is seen of the image, at the size at which it is seen"""
    if part is None:
        return filled(image, size, make) if fit == "fill" else make(fitted(image, size, fit))
    whole, box = part
    if fit == "fill":
        return fitted(filled(image, whole, make).crop(box), size, "resize")
    return make(fitted(fitted(image, whole, fit).crop(box), size, "resize"))


def filled(image: Image, size: Size, make: Callable[[Image], Image]) -> Image:
    """The control image of the whole image, in the middle of (width, height), on the median color of its border: A1111's
    "resize and fill" (sd-webui-controlnet)."""
    import numpy as np
    from PIL.Image import new

    scale = min(wide / own for wide, own in zip(size, image.size, strict=True))
    inner = make(fitted(image, (max(1, round(image.width * scale)), max(1, round(image.height * scale))), "resize"))
    pixels = np.array(inner)
    border = np.median(np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]]), axis=0)
    result = new("RGB", size, tuple(int(level) for level in border))
    result.paste(inner, ((size[0] - inner.width) // 2, (size[1] - inner.height) // 2))
    return result


def pixels_of(image: Image) -> Tensor:
    """float32 [1, 3, H, W] in -1..1."""
    import numpy as np
    import torch

    values = torch.from_numpy(np.array(image, dtype=np.float32))
    return (values.permute(2, 0, 1) / 255 * 2 - 1)[None]


def encoded(vae: Any, kind: Family, pixels: Tensor, noise: Tensor) -> Tensor:
    """A sample of the VAE's posterior in the scale of the model's latents, float32 [1, C, h, w].

    pixels   [1, 3, H, W] in -1..1      noise   [C, h, w], standard normal
    """
    mean, logvar = kind.encode_image_latents(vae, pixels)
    sample = mean + (logvar / 2).exp() * noise[None].to(mean.device)
    return kind.model_latents(vae.config, sample)


def mask_of(image: Image, shape: tuple[int, int, int], smooth: bool = False) -> Tensor:
    """A mask for latents of this shape: float32 [1, 1, h, w], 1 where they are repainted.

    smooth   bilinear instead of box resampling, as in sd-scripts' generator
    """
    import numpy as np
    import torch
    from PIL import Image as pillow

    way = pillow.Resampling.BILINEAR if smooth else pillow.Resampling.BOX
    small = image.resize((shape[2], shape[1]), way)
    return torch.from_numpy(np.array(small, dtype=np.float32) / 255)[None, None]


@dataclass(frozen=True)
class Canvas:
    """An initial image prepared for a stage.

    shown    the image that is encoded, at the stage's size         mask     at the same size, white is repainted; None: all
    whole    the image that the result is pasted into               box      where, for "only masked"; None: everywhere
    overlay  alpha of the result, at the size of `whole`; None: the result is not pasted
    """

    shown: Image
    mask: Image | None = None
    whole: Image | None = None
    box: Box | None = None
    overlay: Image | None = None

    def pasted(self, made: Image) -> Image:
        """The finished image: outside the mask, the pixels of the initial image."""
        if self.whole is None or self.overlay is None:
            return made
        result, box = self.whole.copy(), self.box or (0, 0, *self.whole.size)
        result.paste(fitted(made, (box[2] - box[0], box[3] - box[1]), "resize"), box, self.overlay.crop(box))
        return result
