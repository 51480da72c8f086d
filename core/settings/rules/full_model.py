"""Rules on DreamBooth and fine-tuning: conflicts with settings of other groups, and settings that they do not use."""

from collections.abc import Iterator

from core.record.problems import Problem
from core.settings.blocks import COUNTS, blocks_in_words, numbers
from core.settings.job import TrainJob
from core.settings.needs import ignored, problems_if
from core.settings.optimization.optimizers import ADAFACTOR, adapts, find
from core.settings.optimization.rates import base_rates
from core.settings.optimization.usual_rates import short, unusual_rates, usual_rates

FUSED = "memory.fused_backward_pass"
GROUPS = "memory.fused_optimizer_groups"


def problems(job: TrainJob) -> Iterator[Problem]:
    """Yield errors and advice on the fused backward pass, learning rates and file format of a full-model training."""
    yield from _fused_backward_problems(job)
    yield from _block_rates(job)
    yield from _rates(job)
    has_folders_alone = job.model.traits and not job.model.traits.single_file
    form, where = job.saving.save_model_as, "saving.save_model_as"
    yield from problems_if(
        (has_folders_alone and form in ("safetensors", "ckpt"), "Models of this family are saved as diffusers folders", where,
         "choose diffusers (.safetensors)", "saving.no-single-file"),
        (form == "pt", "A full model cannot be saved as .pt", where, "use safetensors, ckpt or a diffusers folder", "saving.pt-full-model"),
    )  # fmt: skip


def _fused_backward_problems(job: TrainJob) -> Iterator[Problem]:
    """Yield an error for each setting that a fused backward pass (weights updated during the backward pass) does not support."""
    one, groups = job.memory.fused_backward_pass, job.memory.fused_optimizer_groups
    entry = find(job.optimizer.optimizer_type)
    if one and groups:
        what = "The fused backward pass and fused optimizer groups are both on"
        yield Problem(what, f"{FUSED}, {GROUPS}", "keep one", code="memory.fused-twice")
    if not (one or groups):
        return
    where = FUSED if one else GROUPS
    yield from problems_if(
        (one and (entry is None or entry.path != ADAFACTOR),
         f"The fused backward pass supports AdaFactor only, and the optimizer is {job.optimizer.optimizer_type}", where,
         "choose AdaFactor, or set memory.fused_optimizer_groups to 4 to 10 instead", "memory.fused-optimizer"),
        (groups and adapts(job.optimizer.optimizer_type),
         "D-Adaptation and Prodigy need the gradients of all weights at once, which fused groups never have", where,
         "choose another optimizer, or leave it empty", "memory.fused-adaptive"),
        (job.schedule.skip_non_finite, "A fused backward pass cannot skip NaN/inf steps: some weights are already updated",
         "schedule.skip_non_finite", "set it to 0, or turn the fused backward pass off", "memory.fused-skip-non-finite"),
        (job.schedule.gradient_accumulation_steps > 1, "A fused backward pass does not support gradient accumulation",
         "schedule.gradient_accumulation_steps", "set it to 1, or turn the fused backward pass off", "memory.fused-accumulation"),
        (job.memory.num_processes > 1, "A fused backward pass does not support several GPUs", where,
         "turn it off, or train on one GPU", "memory.fused-several-gpus"),
        ("fp16" in (job.memory.mixed_precision, job.memory.full_precision),
         "A fused backward pass does not support fp16, whose loss scaling needs all gradients at once",
         f"memory.mixed_precision, {where}", "use bf16 or fp32", "memory.fused-fp16"),
    )  # fmt: skip


def _rates(job: TrainJob) -> Iterator[Problem]:
    """Yield advice on learning rates above the usual range, unless rules/learning_rate.py already reports them."""
    usual, high = usual_rates(job), max((abs(rate) for rate in base_rates(job).values()), default=0.0)
    if usual is None or high <= usual.high or adapts(job.optimizer.optimizer_type) or unusual_rates(job):
        return
    what = f"A learning rate of {high:g} is for LoRAs and would damage a full model"
    fix = f"use {short(usual.low)} to {short(usual.high)}, and start with {short(usual.start)}"
    yield Problem(what, "optimizer.learning_rate", fix, "advice", code="learning-rate.high-full-model")


def _block_rates(job: TrainJob) -> Iterator[Problem]:
    """Yield errors and advice on the block learning rates `method.block_lr`."""
    text, where = job.method.block_lr, "method.block_lr"
    if not text:
        return
    try:
        rates = numbers(text)
    except ValueError:
        what = f"'{text[:40]}' is not a list of numbers"
        yield Problem(what, where, "write numbers separated by commas", code="settings.not-numbers")
        return
    family = job.model.family
    counts = {COUNTS.get(family, 0)} if family != "auto" else set(COUNTS.values())
    if len(rates) not in counts:
        what = f"The number of block learning rates is {len(rates)} instead of {blocks_in_words(counts)}"
        yield Problem(what, where, "enter one for each block", code="method.block-lr-count")
    elif not any(rates):
        what, fix = "Every U-Net block has a learning rate of 0", "set one above 0, or set optimizer.unet_lr to 0"
        yield Problem(what, where, fix, code="method.block-lr-zero")
    elif any(rate < 0 for rate in rates):
        what = "A block learning rate is negative: the block unlearns these images without limit"
        fix = "use very small rates, such as -1e-7, and few steps"
        yield Problem(what, where, fix, "advice", code="learning-rate.unlearning")


def unused(job: TrainJob) -> Iterator[tuple[str, str]]:
    """Yield (dotted path, reason) for settings that training a full model does not use."""
    fp8 = [name for name in ("fp8_base", "fp8_base_unet") if not getattr(job.memory, name)]  # else it is refused
    yield from ignored(
        (True, f"memory.{' '.join(fp8)}", "the full model is trained, and fp8 is for frozen weights"),
        (job.method.block_lr, "optimizer.unet_lr", "each block has its own learning rate"),
    )
