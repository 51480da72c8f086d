"""What setup builds besides a network: trained parts of the model, how their optimizer steps, the untrained model for
prior preservation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from core.families.attention import set_attention
from core.families.compiling import CompiledBlocks, try_compiling
from core.formats.tensor_writer import type_named
from core.methods.full import TEXT_PARTS, trained_parts
from core.settings.optimizers import find
from core.training import prior
from core.training.prior import ModelPrior
from core.training.stepper import Stepper

if TYPE_CHECKING:
    import torch
    from torch import nn
    from torch.optim import Optimizer

    from core.families.components import Components
    from core.optimization.clipping import NonFiniteGuard
    from core.optimization.fused import FusedBackward
    from core.training.setup import Builder
    from core.training.sources import Text

# Libraries whose optimizers keep all state per weight, so that weights may be updated in parts.
BY_WEIGHT = {"torch", "transformers", "bitsandbytes", "lion-pytorch"}


def load_trained(builder: Builder, parts: tuple[str, ...]) -> Any:
    """Parts of the model: the trained ones in their own dtype, the others in the compute dtype."""
    compute, trainable = builder.precision.compute, builder.precision.trainable
    in_parts = builder.job.sharding.shares_weights and builder.job.sharding.zero3_init_flag
    beside = in_parts or builder.narrows_beside

    def load(parts: tuple[str, ...], dtype: torch.dtype) -> Any:
        return builder.family.load(
            builder.model,
            parts=parts,
            dtype=dtype,
            device="cpu" if beside else builder.context.device,
            kohya_projection=builder.job.model.kohya_projection,
        )

    if compute == trainable:
        return load(parts, compute)
    names = builder.family.layout.text_encoders
    # Token embeddings train with encoders in their own dtype, fp32 by default: their gradients are small.
    whole = builder.job.method.whole_model
    found = trained_parts(builder.job, len(names)) if whole else set(names)
    loaded = load(("unet",), trainable if "unet" in found else compute)
    if len(parts) > 1:
        texts = load(parts[1:], trainable if found & set(TEXT_PARTS) else compute)
        loaded.text_encoders, loaded.tokenizers = texts.text_encoders, texts.tokenizers
        for name, encoder in zip(names, loaded.text_encoders, strict=True):
            if name not in found:
                encoder.to(compute)
    return loaded


def prepare_prior(builder: Builder, text: Text) -> ModelPrior | None:
    """Load the untrained model where training needs it; returns the prior term, if any. Call it before the first step."""
    import torch

    job, method = builder.job, builder.method
    placed = builder.plan.placed
    if method.needs_untrained and prior.needs_untrained_model(job, placed):
        builder.context.stage("loading the untrained model")
        compute, device = builder.precision.compute, builder.context.device
        unet = builder.family.load(builder.model, parts=("unet",), dtype=compute, device=device).unet
        method.hold_untrained(unet)
        set_attention(unet, job.memory.attention)
        if device.startswith("cpu"):
            from core.networks.frozen import install

            install(unet)
    captions = prior.captions(job, placed)
    if not captions:
        return None
    with torch.no_grad(), method.untrained():
        return ModelPrior({caption: text.states([caption]) for caption in captions}, method.trains_text)


def make_stepper(
    builder: Builder,
    components: Components,
    parameters: Sequence[nn.Parameter],
    optimizer: Optimizer,
    guard: NonFiniteGuard,
) -> Stepper:
    """The plain stepper, or DeepSpeed's, which puts a full model into the compute dtype."""
    job, precision, processes = builder.job, builder.precision, builder.context.processes
    pauses = job.schedule.compatibility == "kohya"
    if job.sharding.active:
        from core.training.sharding import ShardedStepper

        if job.method.whole_model:
            builder.precision = replace(precision, trainable=precision.compute)
        modules = [components.unet, *components.text_encoders]
        return ShardedStepper(
            job,
            builder.context,
            builder.method,
            modules,
            parameters,
            optimizer,
            guard,
            compute=precision.compute,
            scaled=precision.scaled,
            pauses=pauses,
        )
    from core.optimization.scaling import make_scaler

    trainable = type_named(job.memory.full_precision)
    return Stepper(
        builder.method,
        parameters,
        optimizer,
        guard,
        processes,
        scaler=make_scaler(builder.context.device, trainable) if precision.scaled else None,
        fused=step_within_backward(builder, optimizer, guard),
        max_grad_norm=job.optimizer.max_grad_norm,
        clipped=builder.method.clipped,
        adds_up=builder.method.adds_up,
        pauses=pauses,
    )


def compile_blocks(builder: Builder, unet: nn.Module) -> CompiledBlocks | None:
    """Compile the U-Net's blocks if the settings ask for it. ProblemsError where torch.compile fails."""
    memory, context = builder.job.memory, builder.context
    if not memory.torch_compile:
        return None
    context.stage("trying the compiler")
    try_compiling(memory.dynamo_backend, context.device)
    sizes = {placed.bucket for placed in builder.plan.placed}
    context.say("The model is compiled in the first steps and for each new image size, which takes minutes")

    def say(what: str, fix: str) -> None:
        context.say(what, "warning", fix)

    return CompiledBlocks(unet, memory.dynamo_backend, say, several_sizes=len(sizes) > 1)


def step_within_backward(builder: Builder, optimizer: Optimizer, guard: NonFiniteGuard) -> FusedBackward | None:
    """Update 16-bit weights in fp32, and use the fused backward pass where the settings ask for it."""
    from core.optimization.fused import FusedBackward
    from core.optimization.rounding import widen_steps

    settings = builder.job.memory
    entry = find(builder.job.optimizer.optimizer_type)
    wide = widen_steps(
        optimizer,
        builder.seed,
        stochastic=settings.stochastic_rounding,
        by_parts=entry is not None and entry.package in BY_WEIGHT,
    )
    if not builder.job.method.whole_model or not (settings.fused_backward_pass or settings.fused_optimizer_groups):
        return None
    longest = builder.job.optimizer.max_grad_norm
    return FusedBackward(optimizer, wide, guard, longest, by_tensor=settings.fused_backward_pass)
