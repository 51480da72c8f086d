"""Images to latents and back: resizing, encoding, decoding, pasting into the initial image; also batch sizes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from core.families import family
from core.families.components import Components
from core.families.vae import decode_latents
from core.record.cancel import CancelToken
from core.record.lazy_torch import Tensor, torch
from core.record.problems import Problem, ProblemsError

if TYPE_CHECKING:
    from PIL.Image import Image

    from core.families.base import Family

Box = tuple[int, int, int, int]  # left, top, right, bottom
Size = tuple[int, int]  # width, height
Part = tuple[Size, Box]  # of an image of this size, the generated region
MAX_AT_ONCE = 4
# Memory the U-Net needs per image, in tensors of its first level; 24 to 42 were measured at 512 to 1024 px in fp32.
LIVE_TENSORS = 64
CPU_LATENT_PIXELS = 64 * 64  # a CPU gains no speed from larger batches
Decode = Callable[[Any, Tensor], Tensor]  # (VAE, scaled latents) -> pixels in -1..1, of a family


def fitted(image: Image, size: tuple[int, int], fit: str) -> Image:
    """Resize an image to `size` (width, height). fit: "resize" stretches it, "crop" keeps its aspect ratio and crops the center"""
    from PIL import Image as pillow
    from PIL import ImageOps

    if image.size == size:
        return image
    if fit == "crop":
        return ImageOps.fit(image, size, pillow.Resampling.LANCZOS)
    return image.resize(size, pillow.Resampling.LANCZOS)


def control_image_for(image: Image, fit: str, size: Size, part: Part | None, make: Callable[[Image], Image]) -> Image:
    """Fit an image to `size` (width, height) and run the preprocessor.

    fit    "resize", "crop" (`fitted`) or "fill" (`resized_and_filled`)
    part   ((width, height) of the full image, box in it to use) for inpainting "only masked"; None: the whole image
    make   the preprocessor: image -> control image
    """
    if part is None:
        return resized_and_filled(image, size, make) if fit == "fill" else make(fitted(image, size, fit))
    full_size, box = part
    if fit == "fill":
        return fitted(resized_and_filled(image, full_size, make).crop(box), size, "resize")
    return make(fitted(fitted(image, full_size, fit).crop(box), size, "resize"))


def resized_and_filled(image: Image, size: Size, make: Callable[[Image], Image]) -> Image:
    """Center a control image in `size` (width, height) on the median color of its border (A1111's "resize and fill").
    make: the preprocessor: image -> control image; it runs on the resized image without the added border"""
    import numpy as np
    from PIL.Image import new

    scale = min(target / side for target, side in zip(size, image.size, strict=True))
    inner = make(fitted(image, (max(1, round(image.width * scale)), max(1, round(image.height * scale))), "resize"))
    pixels = np.array(inner)
    border = np.median(np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]]), axis=0)
    result = new("RGB", size, tuple(int(level) for level in border))
    result.paste(inner, ((size[0] - inner.width) // 2, (size[1] - inner.height) // 2))
    return result


def pixels_of(image: Image) -> Tensor:
    """Convert an RGB image to float32 [1, 3, H, W] in -1..1."""
    import numpy as np

    values = torch.from_numpy(np.array(image, dtype=np.float32))
    return (values.permute(2, 0, 1) / 255 * 2 - 1)[None]


def encoded(vae: Any, kind: Family, pixels: Tensor, noise: Tensor) -> Tensor:
    """Encode pixels into latents, a sample of the VAE's posterior in the scale of the model's latents, float32 [1, C, h, w].

    pixels   [1, 3, H, W] in -1..1
    noise    [C, h, w], standard normal
    """
    mean, logvar = kind.encode_image_latents(vae, pixels)
    sample = mean + (logvar / 2).exp() * noise[None].to(mean.device)
    return kind.model_latents(vae.config, sample)


def mask_of(image: Image, shape: tuple[int, int, int], smooth: bool = False) -> Tensor:
    """Resize a mask to latents, float32 [1, 1, h, w] in 0..1, 1 is repainted.

    image    mode "L"
    shape    (C, h, w) of the latents
    smooth   bilinear instead of box resampling, as in sd-scripts' generator
    """
    import numpy as np
    from PIL import Image as pillow

    resampling = pillow.Resampling.BILINEAR if smooth else pillow.Resampling.BOX
    small = image.resize((shape[2], shape[1]), resampling)
    return torch.from_numpy(np.array(small, dtype=np.float32) / 255)[None, None]


@dataclass(frozen=True)
class Canvas:
    """An initial image and mask prepared for a stage.

    visible   the image to encode, at the stage's size
    mask      mode "L" at the same size, white is repainted; None: all
    full      the initial image into which the result is pasted; None: not pasted
    box       area of `full` that the result replaces, for "only masked"; None: all
    overlay   alpha of the result, mode "L", at the size of `full`; None: not pasted
    """

    visible: Image
    mask: Image | None = None
    full: Image | None = None
    box: Box | None = None
    overlay: Image | None = None

    def pasted(self, generated: Image) -> Image:
        """Return the finished image: the generated one pasted into the initial image by `overlay`, if set."""
        if self.full is None or self.overlay is None:
            return generated
        result, box = self.full.copy(), self.box or (0, 0, *self.full.size)
        result.paste(fitted(generated, (box[2] - box[0], box[3] - box[1]), "resize"), box, self.overlay.crop(box))
        return result


def decode(
    vae: Any,
    latents: Tensor,
    decoder: Decode | None = None,
    *,
    cancel: CancelToken | None = None,
    warn: Callable[[Problem], None] = lambda problem: None,
) -> list[Image]:
    """Decode scaled latents [B, C, h, w] into images, one at a time, since the VAE needs more memory than the U-Net.

    decoder   the family's `decode_latents`; None: that of Stable Diffusion
    warn      receives a problem for each image that was decoded again in fp32

    Raises Cancelled, and ProblemsError for NaN values.
    """
    from PIL import Image

    images = []
    for image_latents in latents.split(1):
        if cancel is not None:
            cancel.check()
        pixels = decode_pixels(vae, image_latents, decoder, warn)[0]
        images.append(Image.fromarray((pixels * 255).round().byte().permute(1, 2, 0).cpu().numpy()))
    return images


def decode_pixels(
    vae: Any, latents: Tensor, decoder: Decode | None = None, warn: Callable[[Problem], None] = lambda problem: None
) -> Tensor:
    """Decode scaled latents [B, C, h, w] into pixels [B, 3, H, W] in 0..1, again in fp32 if the VAE returns NaN or inf.

    Raises ProblemsError for NaN values.

    decoder   the family's `decode_latents`; None: that of Stable Diffusion
    warn      receives a problem if the latents were decoded again
    """
    decoder = decoder or decode_latents
    if not is_finite(latents):
        fix = "set mixed precision to bf16 or fp32; if that does not help, the model, its VAE or a LoRA is damaged"
        raise ProblemsError.one("The latents contain NaN values", "memory.mixed_precision", fix, "latents.nan")
    pixels = decoder(vae, latents)
    dtype = next(vae.parameters()).dtype
    if not is_finite(pixels) and dtype != torch.float32:
        name = {torch.float16: "fp16", torch.bfloat16: "bf16"}.get(dtype, str(dtype))
        what = f"The VAE returned NaN values in {name}, so the image was decoded again in fp32"
        warn(Problem(what, "memory.vae_precision", "set it to fp32", "warning", code="image.decoded-again"))
        try:
            pixels = decoder(vae.float(), latents)
        finally:
            vae.to(dtype)
    if not is_finite(pixels):
        fix = "set mixed precision to bf16 or fp32; if that does not help, the model, its VAE or a LoRA is damaged"
        raise ProblemsError.one("The image contains NaN values and would be black", "generation", fix, "image.nan")
    return (pixels / 2 + 0.5).clamp(0, 1)


def is_finite(tensor: Tensor) -> bool:
    """Return whether a tensor contains neither NaN nor inf."""
    return bool(tensor.isfinite().all())


def images_at_once(components: Components, width: int, height: int, most: int = MAX_AT_ONCE) -> int:
    """Return the batch size, 1 to `most`, for images of a width and height in pixels.

    On a CPU while larger batches are faster, on a CUDA GPU the number that fits into half of its free memory, on others 1.
    """
    weight = next(components.denoiser.parameters())
    latent_pixels = width * height // family(components.family).latent_pixels ** 2
    if components.device.startswith("cpu"):
        return max(1, min(most, CPU_LATENT_PIXELS // latent_pixels))
    if not components.device.startswith("cuda"):
        return 1
    free, _ = torch.cuda.mem_get_info(components.device)
    needed = 2 * LIVE_TENSORS * latent_pixels * weight.shape[0] * weight.element_size()  # twice, for guidance
    return max(1, min(most, free // 2 // needed))
