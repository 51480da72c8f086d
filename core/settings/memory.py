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
    gradient_checkpointing: bool = setting(
        False,
        title="Gradient checkpointing",
        kohya="gradient_checkpointing",
        help="Computes parts of the model twice rather than remembering them. The result is the same.",
        costs="Far less memory, about a third more time.",
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
