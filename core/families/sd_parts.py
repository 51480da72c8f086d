"""Whether the parts of a Stable Diffusion model, each complete, are of one model."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from core.families.tokenizer import tokenizer_folder
from core.families.vocabulary import read_vocabulary


def sd_misfits(configs: Mapping[str, Mapping[str, Any]], path: Path) -> list[str]:
    """Reasons why parts with these configs do not work together. Raises ProblemsError for a damaged tokenizer.

    path  of the model, whose tokenizer can have added tokens
    """
    words = len(read_vocabulary(tokenizer_folder(path)))
    unet, vae = configs["unet"], configs["vae"]
    texts = [config for name, config in configs.items() if name.startswith("text_encoder")]
    widths = sum(config["hidden_size"] for config in texts)
    channels = [unet.get("in_channels", 4), unet.get("out_channels", 4), vae.get("latent_channels", 4)]
    flaws = {
        f"its U-Net takes text embeddings of width {unet['cross_attention_dim']}, its text encoders output {widths}": (
            unet["cross_attention_dim"] != widths
        ),
        f"its U-Net and VAE have latents of {channels} channels, not 4": (
            channels not in ([4, 4, 4], [9, 4, 4])  # 9: inpainting models, which nothing trains
        ),
        "its VAE does not use 3 channels and a downscaling of 8": (
            (vae.get("in_channels", 3), vae.get("out_channels", 3), len(vae["block_out_channels"])) != (3, 3, 4)
        ),
        f"its tokenizer has {words:,} tokens, more than its text encoder": (
            min(config.get("vocab_size", 49408) for config in texts) < words
        ),
        "its text encoder takes fewer than 77 tokens": (
            min(config.get("max_position_embeddings", 77) for config in texts) < 77
        ),
    }
    return [why for why, is_so in flaws.items() if is_so]
