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
        help="The type that the model computes in. What learns is kept in fp32, unless its own type says otherwise.",
        costs="bf16 and fp16 halve the memory of the model; fp32 is the most exact.",
    )
    full_precision: Literal["fp32", "bf16", "fp16"] = setting(
        "fp32",
        title="Type of what learns",
        kohya="full_bf16, full_fp16",
        labels={"fp32": "fp32", "bf16": "bf16 (full bf16)", "fp16": "fp16 (full fp16)"},
        help="A whole model in bf16 or fp16 learns in half the memory. Each step is computed in fp32 and rounded back.",
        costs="Weights and gradients take half; the smallest changes are rounded away, or by chance with stochastic rounding.",
    )
    stochastic_rounding: bool = setting(
        True,
        title="Stochastic rounding",
        source="Zamirai et al. 2020, arXiv:2010.06192",
        help="Rounds bf16 weights up or down by chance, in proportion: changes smaller than a bf16 step then count on average. Off rounds to the nearest, where they are lost.",
    )
    fused_backward_pass: bool = setting(
        False,
        title="Step within the backward pass",
        kohya="fused_backward_pass",
        help="AdaFactor moves each tensor as soon as its gradient is there and frees that at once: the gradients of the whole model are never held together. Clipping then counts each tensor by itself.",
        costs="Saves as much memory as the weights take. No gradient accumulation.",
    )
    fused_optimizer_groups: int | None = setting(
        None,
        ge=1,
        le=100,
        unit="groups",
        title="Step in groups within the backward pass",
        kohya="fused_optimizer_groups",
        help="The same for any optimizer that keeps the rate it is given: tensors in so many groups, each moved when all its gradients are there. 4 to 10; more saves more.",
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
