"""Converts images to latents and back with the VAE, whose class all families share."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from core.families.layout import Layout
from core.record import machine
from core.record.lazy_torch import Tensor, torch
from core.record.queued import queued


def overflows(layout: Layout, config: Mapping[str, Any]) -> bool:
    """Return whether a VAE overflows in fp16 and gives black images.

    SDXL's published one does; the config of the fixed one has `force_upcast: false`.
    """
    return layout.vae_overflows and config.get("force_upcast") is not False


def safe_type(overflowing: bool, wanted: torch.dtype, device: str | torch.device) -> torch.dtype:
    """Return the dtype to load a part in: `wanted`, unless it is fp16 and the part overflows in it.

    Then bf16 if it is fast on the device, else fp32.
    """
    if wanted != torch.float16 or not overflowing:
        return wanted
    return torch.bfloat16 if machine.bf16_is_fast(str(device)) else torch.float32


def encode_image_latents(vae: Any, pixels: Tensor) -> tuple[Tensor, Tensor]:
    """Return the VAE's posterior over unscaled latents, from which mean + exp(logvar / 2) * noise is a sample.

    pixels   [B, 3, H, W] in [-1, 1], H and W multiples of 8
    returns  mean, logvar: float32 [B, C, H/8, W/8]
    """
    first = next(vae.parameters())
    with torch.no_grad():
        posterior = vae.encode(queued(pixels, first.device).to(first.dtype)).latent_dist
    return posterior.mean.float(), posterior.logvar.float()


def model_latents(config: Mapping[str, Any], latents: Tensor) -> Tensor:
    """Scale unscaled latents of any shape for the model: (latents - shift) * scale.
    config: of the VAE, with its scaling and shift factor: 0.18215 for SD 1 and 2, 0.13025 for SDXL, without shift"""
    shift = config.get("shift_factor")
    return (latents if shift is None else latents - shift) * config["scaling_factor"]


def decode_latents(vae: Any, latents: Tensor) -> Tensor:
    """Decode scaled latents into images, with gradients.

    latents  [B, C, h, w], scaled (`model_latents`)
    returns  float32 [B, 3, 8h, 8w], about [-1, 1], not clipped
    """
    first = next(vae.parameters())
    unscaled = latents / vae.config.scaling_factor
    if vae.config.get("shift_factor") is not None:
        unscaled = unscaled + vae.config.shift_factor
    return vae.decode(unscaled.to(first.device, first.dtype)).sample.float()
