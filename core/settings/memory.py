"""Precision, memory and speed."""

from __future__ import annotations

from typing import Literal

from core.settings.base import Settings, setting


class MemorySettings(Settings):
    """What the machine is asked for."""

    mixed_precision: Literal["auto", "no", "bf16", "fp16"] = setting(
        "auto",
        title="Precision",
        kohya="mixed_precision",
        labels={"auto": "as the machine allows", "no": "fp32", "bf16": "bf16", "fp16": "fp16"},
        help="The type that the frozen model computes in. What learns is always kept in fp32.",
        costs="bf16 and fp16 halve the memory of the model; fp32 is the most exact.",
    )
    num_processes: int = setting(
        1,
        ge=1,
        le=64,
        title="Graphics cards",
        kohya="num_processes",
        help="How many train together, each on its share of a batch, which grows as many times. Under accelerate launch it follows the number launched.",
        costs="Each card holds the whole model.",
    )
    ddp_timeout: float = setting(
        30.0,
        gt=0,
        le=10080,
        unit="minutes",
        title="Patience with the others",
        kohya="ddp_timeout",
        help="With several graphics cards: how long one of them may take for a step before the run is taken for broken.",
    )
    gradient_checkpointing: bool = setting(
        False,
        title="Gradient checkpointing",
        kohya="gradient_checkpointing",
        help="Computes parts of the model twice rather than remembering them. The result is the same.",
        costs="Far less memory, about a third more time.",
    )
    cache_latents: Literal["auto", "disk", "memory", "device", "off"] = setting(
        "auto",
        title="Latent cache",
        kohya="cache_latents, cache_latents_to_disk",
        labels={
            "auto": "on disk where possible",
            "disk": "on disk",
            "memory": "in memory",
            "device": "on the training device",
            "off": "none",
        },
        help="Pictures are encoded once. On disk they are found again by the next run; in memory or on the device nothing is written. Off encodes at each step, which chance crops and colours need.",
        costs="Off keeps the VAE on the device and makes each step slower.",
    )
    latent_draw: Literal["sample", "mean", "frozen"] = setting(
        "sample",
        title="Draw from the latent",
        labels={"sample": "anew each time", "mean": "its mean", "frozen": "once, as sd-scripts"},
        help="The VAE gives each picture a mean and a spread. Anew is what the model was trained with; frozen repeats one draw for the whole run.",
    )
    npz_caches: bool = setting(
        False,
        title="Use .npz caches of sd-scripts",
        kohya="skip_existing",
        help="Takes latents from .npz files beside the pictures where they fit in size. They do not say which VAE made them or whether the picture changed since; off encodes anew.",
    )
    vae_batch_size: int = setting(
        1,
        ge=1,
        le=64,
        unit="pictures",
        title="Pictures encoded at once",
        kohya="vae_batch_size",
        help="While latents are cached.",
    )
    text_cache_bytes: int = setting(
        1 << 30,
        ge=1 << 20,
        le=1 << 40,
        unit="bytes",
        title="Room for encoded captions",
        help="Encoded captions kept in memory; the least recently used make room.",
    )
