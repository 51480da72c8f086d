"""The memory and speed slider: each level sets values of the memory group."""

from dataclasses import dataclass, field
from typing import Any

from core.settings.base import value_of
from core.settings.job import TrainJob
from core.settings.optimization.optimizers import ADAFACTOR, adapts, find

USUAL = 1
GROUPS = 10  # fused optimizer groups: a tenth of the gradients is held

TITLES = ("fastest", "default", "less memory", "low memory", "lowest memory")
DESCRIPTIONS = (
    "No memory savings; several images are encoded at once.",
    "Balanced.",
    "Gradient checkpointing: a third more time, the same result.",
    "Also stores weights in fewer bits: fp8 where frozen, 16 bits where trained.",
    "Everything that saves memory, including a 16-bit VAE.",
)


@dataclass(frozen=True)
class Level:
    """A level of the memory and speed slider.

    number        0 (fastest) to 4 (lowest memory)
    description   for the page
    values        {dotted path: value} that the level sets in the job
    """

    number: int
    title: str
    description: str
    values: dict[str, Any] = field(default_factory=dict)


def levels(job: TrainJob, device: str = "") -> list[Level]:
    """Return the levels that differ for this job, from the fastest to the one that uses the least memory.
    device: of the job: "mps" gets no fp8"""
    distinct: list[Level] = []
    for number, (title, description) in enumerate(zip(TITLES, DESCRIPTIONS, strict=True)):
        values = _values(job, number, device)
        if not distinct or values != distinct[-1].values:
            distinct.append(Level(number, title, description, values))
    return distinct


def level_of(job: TrainJob, device: str = "") -> int | None:
    """Return the number of the level whose values the job has; None for a custom mix."""
    for level in levels(job, device):
        if all(value_of(job, path) == value for path, value in level.values.items()):
            return level.number
    return None


def _values(job: TrainJob, number: int, device: str) -> dict[str, Any]:
    """Return {dotted path: value} that level `number` (0 to 4) sets in the job."""
    values: dict[str, Any] = {
        "memory.vae_batch_size": 4 if number == 0 else 1,
        "memory.highvram": number == 0,
        "memory.attention": "auto",
        "memory.gradient_checkpointing": number >= 2,
        "memory.checkpoint_blocks": "all",
    }
    whole_model = _whole_model(job, number) if job.method.traits.full_size else {}
    return values | whole_model | _frozen(job, number, device)


def _frozen(job: TrainJob, number: int, device: str) -> dict[str, Any]:
    """Return the memory settings of frozen parts: fp8 weights from level 3, a 16-bit VAE at level 4."""
    can_be_fp8 = not job.method.traits.base_trains and not device.startswith("mps")
    text_fp8 = can_be_fp8 and number >= 4 and job.method.traits.uses_network
    return {
        "memory.fp8_base_unet": can_be_fp8 and number >= 3 and not text_fp8,
        "memory.fp8_base": text_fp8,
        "memory.vae_precision": "bf16" if number >= 4 else "auto",
    }


def _whole_model(job: TrainJob, number: int) -> dict[str, Any]:
    """Return the memory settings of a trained full model: 16-bit weights from level 3; at level 4 a fused backward pass, or fused optimizer
    groups, if the optimizer supports it."""
    computed = job.memory.mixed_precision
    kind = "fp16" if computed == "fp16" else "bf16"
    values: dict[str, Any] = {
        "memory.full_precision": kind if number >= 3 else "fp32",
        "memory.fused_backward_pass": False,
        "memory.fused_optimizer_groups": None,
    }
    if number >= 3 and computed == "no":
        values["memory.mixed_precision"] = "auto"
    entry = find(job.optimizer.optimizer_type)
    alone = job.schedule.gradient_accumulation_steps == 1 and job.memory.num_processes == 1
    if number < 4 or entry is None or not alone or kind == "fp16" or adapts(entry.name):
        return values
    if entry.path == ADAFACTOR:
        return values | {"memory.fused_backward_pass": True}
    return values | {"memory.fused_optimizer_groups": GROUPS}
