"""Memory and speed: what cannot be together, and what changes nothing now."""

from __future__ import annotations

from collections.abc import Iterator

from core.record.problems import Problem
from core.settings.job import TrainJob

FP8 = ("fp8_base", "fp8_base_unet")


def problems(job: TrainJob) -> Iterator[Problem]:
    memory = job.memory
    for name in FP8:
        if getattr(memory, name) and job.method.whole_model:
            what = "8-bit weights cannot learn, and this trains the model itself"
            yield Problem(what, f"memory.{name}", "switch it off; full bf16 or AdaFactor save memory here")
    if memory.attention in ("plain", "sliced") and not memory.gradient_checkpointing:
        what = "This attention keeps every product for the backward pass, several times the memory of torch's own"
        yield Problem(what, "memory.attention", "use auto, or switch on gradient checkpointing", "advice")


def without_effect(job: TrainJob) -> Iterator[tuple[str, str]]:
    memory = job.memory
    if not memory.gradient_checkpointing:
        yield "memory.checkpoint_blocks", "ignored: gradient checkpointing is off"
    if memory.fp8_base:
        yield "memory.fp8_base_unet", "ignored: the whole base model is in fp8"
    if memory.mixed_precision in ("bf16", "fp16"):
        yield "memory.allow_tf32", "ignored: nothing large is computed in fp32"
    if not job.samples.sample_prompts and not job.samples.sample_prompts_file:
        yield "memory.lowram", "ignored: without samples the VAE waits for nothing"
