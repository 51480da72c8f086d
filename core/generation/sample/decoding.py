"""Decodes latents, and estimates how many images fit into one batch."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from core.families import family
from core.families.components import Components
from core.record.cancel import CancelToken
from core.record.problems import Problem, ProblemsError

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import Tensor


MAX_AT_ONCE = 4
# Memory the U-Net needs per image, in tensors of its first level; 24 to 42 were measured at 512 to 1024 px in fp32.
LIVE_TENSORS = 64
CPU_LATENT_PIXELS = 64 * 64  # a CPU gains no speed from larger batches

Decode = Callable[[Any, "Tensor"], "Tensor"]  # (VAE, scaled latents) -> pixels in -1..1: a family's


def decode(
    vae: Any,
    latents: Tensor,
    by: Decode | None = None,
    *,
    cancel: CancelToken | None = None,
    warn: Callable[[Problem], None] = lambda problem: None,
) -> list[Image]:
    """Images from scaled latents [B, C, h, w], decoded one at a time: the VAE needs more memory than the U-Net.

    by     the family's `decode_latents`; None: that of Stable Diffusion
    warn   gets a problem for an image that was decoded again in fp32
    """
    from PIL import Image

    images = []
    for one in latents.split(1):
        if cancel is not None:
            cancel.check()
        pixels = decode_pixels(vae, one, by, warn)[0]
        images.append(Image.fromarray((pixels * 255).round().byte().permute(1, 2, 0).cpu().numpy()))
    return images


def decode_pixels(
    vae: Any, latents: Tensor, by: Decode | None = None, warn: Callable[[Problem], None] = lambda problem: None
) -> Tensor:
    """float32 [B, 3, 8h, 8w] in [0, 1] from scaled latents [B, C, h, w]. Decodes again in fp32 if the VAE overflows;
    raises ProblemsError for NaN values."""
    import torch

    from core.families.vae import decode_latents

    by = by or decode_latents
    if not is_finite(latents):
        fix = "set mixed precision to bf16 or fp32; if that does not help, the model or a LoRA is damaged"
        raise ProblemsError.one("The latents contain NaN values", "memory.mixed_precision", fix, "latents.nan")
    pixels = by(vae, latents)
    narrow = next(vae.parameters()).dtype
    if not is_finite(pixels) and narrow != torch.float32:
        name = {torch.float16: "fp16", torch.bfloat16: "bf16"}.get(narrow, str(narrow))
        what = f"The VAE returned NaN values in {name}, so the image was decoded again in fp32"
        warn(Problem(what, "memory.vae_precision", "set it to fp32", "warning", code="image.decoded-again"))
        try:
            pixels = by(vae.float(), latents)
        finally:
            vae.to(narrow)
    if not is_finite(pixels):
        fix = "set mixed precision to bf16 or fp32; if that does not help, the model or a LoRA is damaged"
        raise ProblemsError.one("The image contains NaN values and would be black", "generation", fix, "image.nan")
    return (pixels / 2 + 0.5).clamp(0, 1)


def is_finite(tensor: Tensor) -> bool:
    return bool(tensor.isfinite().all())


def images_at_once(components: Components, width: int, height: int) -> int:
    """Images of this size per batch, 1 to 4: on a CPU as long as speed gains from it, on a GPU what fits into half of its
    free memory."""
    import torch

    weight = next(components.denoiser.parameters())
    latent_pixels = width * height // family(components.family).latent_pixels ** 2
    if components.device.startswith("cpu"):
        return max(1, min(MAX_AT_ONCE, CPU_LATENT_PIXELS // latent_pixels))
    if not components.device.startswith("cuda"):
        return 1
    free, _ = torch.cuda.mem_get_info(components.device)
    needed = 2 * LIVE_TENSORS * latent_pixels * weight.shape[0] * weight.element_size()  # twice, for guidance
    return max(1, min(MAX_AT_ONCE, free // 2 // needed))
