"""Memory and speed: what cannot be together, and what changes nothing now."""

from __future__ import annotations

from collections.abc import Iterator

from core.record.problems import Problem
from core.settings.job import TrainJob

FP8 = ("fp8_base", "fp8_base_unet")
TYPES = {"no": "fp32", "bf16": "bf16", "fp16": "fp16"}


def problems(job: TrainJob) -> Iterator[Problem]:
    memory = job.memory
    own, computed = memory.full_precision, memory.mixed_precision
    if own != "fp32" and computed not in ("auto", own):
        what = f"Weights that train in {own} need {own} for computing too, and that is {TYPES[computed]}"
        yield Problem(what, "memory.full_precision, mixed_precision", f"set memory.mixed_precision to {own} or auto")
    if memory.torch_compile and job.method.kind == "lora" and job.network.dropped_out:
        what = "The dropouts of a LoRA are drawn for each layer and step, and compiled code is the same for all"
        yield Problem(what, "memory.torch_compile, network", "switch compiling off, or set the dropouts to 0")
    if memory.torch_compile and job.sharding.active:
        what = "DeepSpeed puts the weights together and apart again around each layer, which compiled code knows nothing of"
        yield Problem(what, "memory.torch_compile, sharding.deepspeed", "switch one of them off")
    for name in FP8:
        if getattr(memory, name) and job.method.whole_model:
            what = "8-bit weights cannot train, and this trains the model itself"
            yield Problem(what, f"memory.{name}", "switch it off; full bf16 or AdaFactor save memory here")
    if memory.mixed_precision == "no" and memory.narrow_unet and not job.method.whole_model:
        what = "The base model is kept in 8 bits and widened to fp32 at each use: fp32's exactness is lost, and its memory is used"
        yield Problem(what, "memory.mixed_precision", "set it to auto or bf16, as sd-scripts requires", "advice")
    if memory.attention in ("plain", "sliced") and not memory.gradient_checkpointing:
        what = "This attention keeps every product for the backward pass, several times the memory of torch's own"
        yield Problem(what, "memory.attention", "use auto, or switch on gradient checkpointing", "advice")


def without_effect(job: TrainJob) -> Iterator[tuple[str, str]]:
    memory = job.memory
    if memory.full_precision != "bf16":
        yield "memory.stochastic_rounding", "ignored: no weights train in bf16"
    if not memory.torch_compile:
        yield "memory.dynamo_backend", "ignored: nothing is compiled"
    if not memory.gradient_checkpointing:
        yield "memory.checkpoint_blocks", "ignored: gradient checkpointing is off"
    if memory.fp8_base:
        yield "memory.fp8_base_unet", "ignored: the whole base model is in fp8"
    if memory.mixed_precision in ("bf16", "fp16"):
        yield "memory.allow_tf32", "ignored: nothing large is computed in fp32"
    if not memory.narrow_unet and not job.samples.sample_prompts and not job.samples.sample_prompts_file:
        yield "memory.lowram", "ignored: without samples the VAE waits for nothing"
