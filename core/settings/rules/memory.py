"""Rules on memory and speed: conflicts, and settings without effect."""

from collections.abc import Iterator

from core.record.problems import Problem
from core.settings.job import TrainJob
from core.settings.needs import ignored

FP8 = ("fp8_base", "fp8_base_unet")
TYPES = {"no": "fp32", "bf16": "bf16", "fp16": "fp16"}


def problems(job: TrainJob) -> Iterator[Problem]:
    """Yield errors and advice on precision, fp8 weights, torch.compile and attention."""
    memory = job.memory
    weights, computed = memory.full_precision, memory.mixed_precision
    if weights != "fp32" and computed not in ("auto", weights):
        what = f"Full {weights} training needs mixed precision {weights}, not {TYPES[computed]}"
        fix = f"set memory.mixed_precision to {weights} or auto"
        yield Problem(what, "memory.full_precision, mixed_precision", fix, code="memory.full-precision-mismatch")
    if memory.torch_compile and job.method.traits.uses_network and job.network.has_dropout:
        what = "torch.compile does not support LoRA dropout"
        fix = "turn torch.compile off, or set the dropouts to 0"
        yield Problem(what, "memory.torch_compile, network", fix, code="memory.compile-with-dropout")
    if memory.torch_compile and job.method.traits.uses_network and job.network.traits.by_chance:
        what = f"torch.compile does not support {job.network.label('kind')}, which trains other weights at each step"
        fix = "turn torch.compile off, or choose another network type"
        yield Problem(what, "memory.torch_compile, network.kind", fix, code="memory.compile-with-chance")
    if memory.torch_compile and job.sharding.active:
        what = "torch.compile does not work with DeepSpeed"
        where = "memory.torch_compile, sharding.deepspeed"
        yield Problem(what, where, "turn one of them off", code="memory.compile-with-deepspeed")
    yield from _unet_problems(job)
    for name in FP8:
        if getattr(memory, name) and job.method.traits.base_trains:
            what = "fp8 weights cannot be trained, and this method trains the full model"
            fix = "turn it off; full bf16 or AdaFactor save memory here"
            yield Problem(what, f"memory.{name}", fix, code="memory.fp8-full-model")
    if memory.mixed_precision == "no" and memory.narrow_unet and not job.method.traits.base_trains:
        what = "fp8 weights are cast to fp32 at each use: the memory of fp32 without its accuracy"
        fix = "set it to auto or bf16, as sd-scripts requires"
        yield Problem(what, "memory.mixed_precision", fix, "advice", code="memory.fp8-with-fp32")
    if memory.attention in ("plain", "sliced") and not memory.gradient_checkpointing:
        what = "This attention stores all attention scores for the backward pass, several times the memory of SDPA"
        fix = "use auto, or turn on gradient checkpointing"
        yield Problem(what, "memory.attention", fix, "advice", code="memory.attention-without-checkpointing")


def _unet_problems(job: TrainJob) -> Iterator[Problem]:
    """Yield errors for memory settings that apply to U-Nets only, if the model has none."""
    memory = job.memory
    if job.model.traits is None or job.model.traits.unet:
        return
    if memory.attention in ("plain", "sliced"):
        what = f"The attention '{memory.attention}' is for U-Nets, and models of this family have none"
        yield Problem(what, "memory.attention", "use auto", code="memory.attention-of-unet")
    if memory.gradient_checkpointing and memory.checkpoint_blocks != "all":
        what = "Outer and inner blocks are a U-Net's, and models of this family have none"
        yield Problem(what, "memory.checkpoint_blocks", "use all", code="memory.blocks-of-unet")


def without_effect(job: TrainJob) -> Iterator[tuple[str, str]]:
    """Yield (dotted path, reason) for memory settings without effect at the chosen precision or without samples."""
    memory = job.memory
    samples = job.samples.sample_prompts or job.samples.sample_prompts_file
    narrow = {memory.mixed_precision, memory.vae_precision} <= {"bf16", "fp16"}
    yield from ignored(
        (narrow, "memory.allow_tf32", "the model and the VAE compute in 16 bits"),
        (not memory.narrow_unet and not samples, "memory.lowram", "there are no samples to keep the VAE for"),
    )
