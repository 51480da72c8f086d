"""Stable Diffusion 1.x: one U-Net, one VAE, one CLIP text encoder; predicts the noise unless a file says otherwise."""

from core.families.sd1.components import PARTS, Components
from core.families.sd1.latents import decode_latents, encode_picture_latents
from core.families.sd1.loading import digest, load, weight_bytes
from core.families.sd1.targets import TEXT_PREFIXES, UNET_PREFIX, Target, lora_targets, module_name
from core.families.sd1.text import count_tokens, encode_text, tokenize
from core.families.sd1.unet import predict

unet_prefix = UNET_PREFIX
text_prefixes = TEXT_PREFIXES

__all__ = [
    "PARTS",
    "TEXT_PREFIXES",
    "UNET_PREFIX",
    "Components",
    "Target",
    "count_tokens",
    "decode_latents",
    "digest",
    "encode_picture_latents",
    "encode_text",
    "load",
    "lora_targets",
    "module_name",
    "predict",
    "text_prefixes",
    "tokenize",
    "unet_prefix",
    "weight_bytes",
]
