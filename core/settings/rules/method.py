"""Whole models: what DreamBooth and fine-tune ask of the other groups, and what they leave without effect."""

from __future__ import annotations

from collections.abc import Iterator

from core.record.problems import Problem
from core.settings.base import declared
from core.settings.blocks import COUNTS, numbers
from core.settings.job import TrainJob
from core.settings.optimizers import ADAFACTOR, adapts, averages, find, relative_steps
from core.settings.rates import own_rates

FUSED = "memory.fused_backward_pass"
GROUPS = "memory.fused_optimizer_groups"
HIGHEST_USUAL = 2e-5
OF_WHOLE_MODELS = ("train_text_encoder", "stop_text_encoder_training", "block_lr", "ema")
OF_THE_AVERAGE = ("ema_decay", "ema_warmup", "ema_update_every", "ema_device", "ema_use")


def problems(job: TrainJob) -> Iterator[Problem]:
    if job.method.whole_model:
        yield from _within_backward(job)
        yield from _block_rates(job)
        yield from _rates(job)
        if job.method.ema and averages(job.optimizer.optimizer_type):
            what = "The optimizer is schedule-free and averages the weights itself"
            yield Problem(what, "method.ema", "switch the average off, or choose another optimizer")
        if job.saving.save_model_as == "pt":
            yield Problem(
                "A whole model cannot be saved as .pt", "saving.save_model_as", "use safetensors, ckpt or a folder"
            )
    if job.method.prior == "model" and job.dataset.prior_loss_weight == 0:
        what = "The model is to keep the class, and the prior's weight is 0"
        yield Problem(what, "dataset.prior_loss_weight", "use 1, or set method.prior to images")


def _within_backward(job: TrainJob) -> Iterator[Problem]:
    one, groups = job.memory.fused_backward_pass, job.memory.fused_optimizer_groups
    entry = find(job.optimizer.optimizer_type)
    if one and groups:
        yield Problem(
            "Stepping within the backward pass is set both by tensor and by group", f"{FUSED}, {GROUPS}", "keep one"
        )
    if not (one or groups):
        return
    where = FUSED if one else GROUPS
    if one and (entry is None or entry.path != ADAFACTOR):
        what = f"Stepping within the backward pass works with AdaFactor only, and the optimizer is {job.optimizer.optimizer_type}"
        yield Problem(what, where, "choose AdaFactor, or set memory.fused_optimizer_groups to 4 to 10 instead")
    if groups and adapts(job.optimizer.optimizer_type):
        what = (
            "D-Adaptation and Prodigy find one step size from the gradient of all weights, which never is there at once"
        )
        yield Problem(what, where, "choose another optimizer, or leave it empty")
    if job.schedule.skip_non_finite:
        what = "Weights that move within the backward pass have moved in part when a number turns out not to be one"
        yield Problem(what, "schedule.skip_non_finite", "set it to 0, or switch that off")
    if job.schedule.gradient_accumulation_steps > 1:
        what = "Weights that move within the backward pass cannot gather gradients of several batches"
        yield Problem(what, "schedule.gradient_accumulation_steps", "set it to 1, or switch that off")
    if job.memory.num_processes > 1:
        what = "Weights that move within the backward pass cannot wait for other GPUs"
        yield Problem(what, where, "switch it off, or train on one card")
    if "fp16" in (job.memory.mixed_precision, job.memory.full_precision):
        what = "fp16 scales its losses by the look of the whole gradient, which never is there at once"
        yield Problem(what, f"memory.mixed_precision, {where}", "use bf16 or fp32")


def _rates(job: TrainJob) -> Iterator[Problem]:
    """The rates of LoRAs are what a person has in mind, and they wreck a whole model."""
    if adapts(job.optimizer.optimizer_type) or relative_steps(job.optimizer):
        return
    high = max((abs(rate) for rate in own_rates(job).values()), default=0.0)
    if high > HIGHEST_USUAL:
        what = f"A rate of {high:g} is one for a LoRA: a whole model forgets at it what it can"
        yield Problem(what, "optimizer.learning_rate", "1e-6 to 5e-6 is usual, for SDXL with AdaFactor 4e-7", "advice")


def _block_rates(job: TrainJob) -> Iterator[Problem]:
    text, where = job.method.block_lr, "method.block_lr"
    if not text:
        return
    try:
        found = numbers(text)
    except ValueError:
        yield Problem(f"'{text[:40]}' is no list of numbers", where, "write numbers with commas between them")
        return
    counts = {COUNTS[job.model.family]} if job.model.family != "auto" else set(COUNTS.values())
    if len(found) not in counts:
        words = " or ".join(str(count) for count in sorted(counts))
        yield Problem(
            f"There are {len(found)} rates by block; it takes {words}", where, "23 for SDXL, 25 for SD 1.x and 2.x"
        )
    elif not any(found):
        yield Problem(
            "Every block of the U-Net has a rate of 0", where, "give one a rate, or set optimizer.unet_lr to 0"
        )
    elif any(rate < 0 for rate in found):
        what = "A block's rate is negative: the model unlearns these images there, without an end"
        yield Problem(what, where, "use very small ones, such as -1e-7, and few steps", "advice")


def without_effect(job: TrainJob) -> Iterator[tuple[str, str]]:
    method = job.method
    if method.kind != "lora":
        yield "dataset.network_multiplier", "ignored: there is no network whose strength it could be"
        for name in ("loraplus_lr_ratio", "loraplus_unet_lr_ratio", "loraplus_text_encoder_lr_ratio"):
            yield f"optimizer.{name}", "ignored: LoRA+ is for networks"
    if method.whole_model:
        for entry in declared(TrainJob):
            if entry.group == "network":
                yield entry.path, "ignored: the model itself is trained, without a network"
        for name in ("fp8_base", "fp8_base_unet"):
            if not getattr(job.memory, name):  # else it is refused
                yield f"memory.{name}", "ignored: 8-bit weights cannot train, and the model itself is trained"
    else:
        for name in OF_WHOLE_MODELS:
            yield f"method.{name}", "ignored: only whole models have it"
        for name in ("fused_backward_pass", "fused_optimizer_groups"):
            yield f"memory.{name}", "ignored: the gradients of a network or of new words take little room"
    if not method.ema or not method.whole_model:
        for name in OF_THE_AVERAGE:
            yield f"method.{name}", "ignored: no average is kept"
    if method.prior == "images":
        yield "method.class_caption", "ignored: regularization images keep the class"
    if method.whole_model and not method.trains_text:
        yield "method.stop_text_encoder_training", "ignored: the text encoder is not trained"
    if method.block_lr and method.whole_model:
        yield "optimizer.unet_lr", "ignored: each block has a rate of its own"
