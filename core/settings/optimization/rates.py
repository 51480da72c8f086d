"""Learning rates of the parts that a job trains."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from core.settings.blocks import numbers
from core.settings.dataset.concepts import concepts_of
from core.settings.methods import spec_of

if TYPE_CHECKING:  # methods register at the end of core.settings.job and import this module
    from core.settings.job import TrainJob


def scale_factor(job: TrainJob, processes: int = 1) -> int:
    """Return the multiplier of every learning rate: the effective batch size (images per step) with scale_lr, else 1."""
    if not job.optimizer.scale_lr:
        return 1
    return math.prod(_images(job, processes))


def _images(job: TrainJob, processes: int) -> tuple[int, int, int]:
    """Return (batch size, the largest of all folders; gradient accumulation steps; processes)."""
    batch_sizes = [folder.images.train_batch_size for folder in concepts_of(job) if folder.role != "validation"]
    batch = max(batch_sizes, default=job.dataset.train_batch_size)
    return batch, job.schedule.gradient_accumulation_steps, processes


def trains_unet(job: TrainJob) -> bool:
    """Return whether the U-Net, or a network in it, is to be trained, whatever its learning rate."""
    return spec_of(job).trains_unet(job)


def trains_text(job: TrainJob) -> bool:
    """Return whether text encoders, or a network in them, are to be trained, whatever their learning rate."""
    return spec_of(job).trains_text(job)


def has_frozen_blocks(job: TrainJob) -> bool:
    """Return whether block_lr freezes U-Net blocks that sd-scripts still includes in the gradient norm for clipping.

    False with a fused backward pass, where sd-scripts steps during the backward pass.
    """
    if not job.method.traits.base_trains or not job.method.block_lr:
        return False
    within = job.memory.fused_backward_pass or job.memory.fused_optimizer_groups
    return not within and 0.0 in _block_rates(job.method.block_lr).values()


def base_rates(job: TrainJob) -> dict[str, float]:
    """Return {part: learning rate} of the trained parts, before scale_lr, without rates of 0.

    Parts are "unet", "text_encoder", "text_encoder_2", "unet_block0" ...; LoRA+'s up matrices are "unet plus" etc.
    """
    optimizer, plus = job.optimizer, job.method.traits.uses_network and job.network.traits.loraplus
    first, second = optimizer.text_rates
    parts: dict[str, float] = {}
    if trains_text(job):
        parts["text_encoder"] = first
        if second != first and (job.model.traits is None or job.model.traits.two_encoders):
            parts["text_encoder_2"] = second
    if job.method.traits.base_trains and job.method.block_lr:
        parts |= _block_rates(job.method.block_lr)
    elif trains_unet(job):
        parts["unet"] = optimizer.unet_rate
    parts |= {part: rate for part, (rate, _) in spec_of(job).rates(job).items()}
    rates: dict[str, float] = {}
    for part, rate in parts.items():
        if rate != 0:
            rates[part] = rate
            if plus and optimizer.plus_ratio(part) != 1:
                rates[f"{part} plus"] = rate * optimizer.plus_ratio(part)
    return rates


def _block_rates(text: str) -> dict[str, float]:
    """Parse `method.block_lr` into {"unet_block0": rate, ...}; {} for an invalid text, which the rules report."""
    try:
        return {f"unet_block{number}": rate for number, rate in enumerate(numbers(text))}
    except ValueError:
        return {}


def effective_rates(job: TrainJob, processes: int = 1) -> dict[str, float]:
    """Return {part: learning rate} including scale_lr: the base values of the scheduler. Parts as in `base_rates`."""
    factor = scale_factor(job, processes)
    return {part: rate * factor for part, rate in base_rates(job).items()}


def scale_sentence(job: TrainJob, processes: int = 1) -> str:
    """Return the product of scale_lr as text, "Learning rate 0.0001 x batch size 4 = 0.0004"; "" if it changes nothing."""
    factor = scale_factor(job, processes)
    if factor == 1:
        return ""
    rate = job.optimizer.learning_rate
    names = ("batch size", "accumulation", "processes")
    named = zip(names, _images(job, processes), strict=True)
    product = " x ".join(f"{name} {count}" for name, count in named if count != 1)
    return f"Learning rate {rate:g} x {product} = {rate * factor:g}"
