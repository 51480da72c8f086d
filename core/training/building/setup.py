"""Builds a training from a job, ready for its first step: caches, model, network, optimizer, checkpoints and samples."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from core.dataset.buckets.batches import Placed
from core.dataset.caches.contents import dataset_fingerprint
from core.families.compiling import CompiledBlocks, try_compiling
from core.families.components import Components
from core.formats.hub.upload import Uploads
from core.formats.tensors.writer import type_named
from core.optimization.clipping import NonFiniteGuard, make_scaler
from core.optimization.fused import FusedBackward
from core.optimization.groups import parameter_groups, weights_of
from core.optimization.schedules import Rates
from core.record import atomic
from core.record.bounded_json import read_json_object
from core.record.context import JobContext
from core.record.lazy_torch import nn, torch
from core.record.problems import ProblemsError
from core.record.secrets import secret
from core.settings.hub import HubSettings
from core.settings.job import TrainJob
from core.settings.optimization.optimizers import find
from core.settings.optimization.rates import scale_factor
from core.training.building.inputs import Inputs, Select, read_inputs
from core.training.building.latents import build_latents
from core.training.building.models import Models
from core.training.building.objective import objective_of
from core.training.building.texts import Texts
from core.training.loop import prior
from core.training.loop.loss_readback import LossBuffer
from core.training.loop.passes import Passes
from core.training.loop.prior import ModelPrior
from core.training.loop.reports import Reports
from core.training.loop.run import Run
from core.training.loop.samples import Samples
from core.training.loop.sources import Text
from core.training.loop.stepper import Stepper
from core.training.loop.timetable import Timetable
from core.training.loop.trackers import Trackers, make_tracker
from core.training.loop.validation import timesteps_of, unaugmented_caption
from core.training.loop.watching import Watch
from core.training.memory.plan import IMAGES
from core.training.saving.checkpoints import Checkpoints
from core.training.saving.facts import FileFacts
from core.training.saving.states import States

if TYPE_CHECKING:
    from torch.optim import Optimizer


@dataclass
class Training:
    """A built training: the run with its inputs, timetable, samples, training states and checkpoints."""

    inputs: Inputs
    run: Run
    timetable: Timetable
    samples: Samples
    states: States
    checkpoints: Checkpoints
    _open: ExitStack

    def release(self) -> None:
        """Free models and tensors, also after an error, so that the next job has all memory."""
        self._open.close()
        for part in (self.run.passes, self.run.reports, self.run.stepper, self.samples, self.states, self.checkpoints):
            vars(part).clear()  # an error's traceback refers to some of these


def build_training(
    job: TrainJob, context: JobContext, select: Select = lambda report: report, *, at_once: bool = False
) -> Training:
    """Build a training up to its first step. The job must have a seed. Raises ProblemsError for all problems that prevent a start.

    select    reduces the dataset report to some of its images
    at_once   encode all images and captions before the first step
    """
    inputs = read_inputs(job, context, select)
    job = inputs.job
    models = Models(inputs)
    processes = context.processes
    if processes.first:
        _write_fingerprint(inputs)
    with ExitStack() as stack:
        stack.callback(vars(models).clear)  # an error's traceback refers to it
        with processes.main_process_first():  # the others then read its entries from disk
            latents = build_latents(inputs, models, at_once=at_once)
        stack.callback(latents.close)
        texts = Texts(inputs, models, None if at_once else [IMAGES] * latents.encodes_later)
        with processes.main_process_first():
            text, prompt_texts = texts.sources()
        components = models.load()
        compiled, optimizer = _attach_weights(inputs, components, stack)
        prior_term = _prepare_prior(inputs, models, text)
        stepper = make_stepper(inputs, components, optimizer)
        stack.callback(stepper.release)
        if job.sharding.active and job.method.traits.full_size:  # DeepSpeed puts it into the compute dtype
            texts.precision = replace(texts.precision, trainable=texts.precision.compute)
        objective, precision = objective_of(job, context, components), texts.precision
        latents.into_model = partial(inputs.family.model_latents, components.vae_config)
        if job.noise.halves_latents(job.method.traits.uses_network):
            latents.rounding_dtype = precision.compute
        passes = Passes(job, context.device, precision, components, inputs.method, latents, text, objective, prior_term)
        tracker = make_tracker(job, context.folder.logs, context.say) if processes.first else Trackers([], context.say)
        stack.callback(tracker.close)
        rates = Rates(job, inputs.plan.total, processes.count)
        reports = Reports(
            job,
            context,
            inputs.plan,
            stepper,
            rates,
            components,
            tracker,
            Watch(inputs.plan.epochs.steps_in(0)),
            LossBuffer(scaled=inputs.precision.scaled, allowed=job.schedule.skip_non_finite),
        )
        run = Run(job, context, inputs.plan, passes, stepper, rates, reports)
        uploads = Uploads(job.hub if processes.first else HubSettings(), secret("huggingface_token"), context.say)
        stack.callback(uploads.close)
        uploads.check_in_background()
        facts = FileFacts(
            job,
            context.folder,
            inputs.plan,
            components,
            inputs.method,
            objective.prediction,
            precision.name,
            len(inputs.report.validation),
            inputs.vae,
            inputs.memo,
        )
        checkpoints = Checkpoints(job.saving, context, inputs.plan, inputs.method, uploads, facts)
        states = States(run, uploads)
        samples = Samples(inputs.prompts, prompt_texts, passes, context, tracker, inputs.vae, compiled is not None)
        timetable = Timetable(run, checkpoints, states, inputs.validation, samples)
        return Training(inputs, run, timetable, samples, states, checkpoints, stack.pop_all())


def _attach_weights(
    inputs: Inputs, components: Components, stack: ExitStack
) -> tuple[CompiledBlocks | None, Optimizer]:
    """Attach the trained weights to the model; return its compiled blocks, if any, and the optimizer.
    stack: receives the functions that undo this; the caller closes it"""
    from core.methods.tokens import embeddings_of
    from core.networks.frozen import install
    from core.optimization.fused import split_groups
    from core.optimization.optimizers import build_optimizer

    job, context = inputs.job, inputs.context
    parts = inputs.method.build(components)
    stack.callback(inputs.method.release)
    for problem in inputs.method.advice:
        context.warn(problem)
    reads = job.method.traits.uses_network and job.network.traits.needs_base_weight
    if context.device.startswith("cpu") and not job.memory.torch_compile and not job.sharding.shares_weights:
        # Frozen convolutions in oneDNN's memory format; the results are the same.
        install(components.denoiser, packs=not reads)
    compiled = compile_blocks(inputs, components.denoiser)
    if compiled is not None:
        stack.callback(compiled.release)
    groups = parameter_groups(job.optimizer, parts, scale_factor(job, context.processes.count))
    if job.method.traits.full_size and job.memory.fused_optimizer_groups:
        groups = split_groups(groups, job.memory.fused_optimizer_groups)
    embeddings = embeddings_of(components.text_encoders)
    return compiled, build_optimizer(job.optimizer, groups, inputs.seed, embeddings)


def _prepare_prior(inputs: Inputs, models: Models, text: Text) -> ModelPrior | None:
    """Load the untrained model if the training needs it; return the prior preservation term, or None if it is off."""
    job, method, placed = inputs.job, inputs.method, inputs.plan.placed
    if method.needs_untrained and prior.needs_untrained_model(job):
        inputs.context.stage("loading the frozen base model")
        method.hold_untrained(models.load_untrained())
    captions = prior.captions(job, placed)
    if not captions:
        return None
    with torch.no_grad(), method.untrained():
        return ModelPrior(job, {caption: text.states([caption]) for caption in captions}, method.trains_text)


def make_stepper(inputs: Inputs, components: Components, optimizer: Optimizer) -> Stepper:
    """Return the object that does backward passes and optimizer steps: DeepSpeed's, which casts a full model to the compute dtype, or the
    plain one."""
    job, precision, context = inputs.job, inputs.precision, inputs.context
    parameters = weights_of(optimizer.param_groups)
    guard = NonFiniteGuard(context.device, job.schedule.skip_non_finite)
    counts_overflows = job.schedule.compatibility == "kohya"
    if job.sharding.active:
        from core.training.sharding.stepper import ShardedStepper

        return ShardedStepper(
            job,
            context,
            inputs.method,
            [components.denoiser, *components.text_encoders],
            parameters,
            optimizer,
            guard,
            compute=precision.compute,
            scaled=precision.scaled,
            counts_overflows=counts_overflows,
        )
    from core.methods.ema import average_of

    trainable = type_named(job.memory.full_precision)
    stepper = Stepper(
        inputs.method,
        parameters,
        optimizer,
        guard,
        context.processes,
        scaler=make_scaler(context.device, trainable) if precision.scaled else None,
        fused=step_within_backward(inputs, optimizer, guard),
        max_grad_norm=job.optimizer.max_grad_norm,
        clipped=inputs.method.clipped,
        keeps_clipped_gradients=inputs.method.keeps_clipped_gradients,
        counts_overflows=counts_overflows,
    )
    stepper.average = average_of(inputs.method, parameters, job.method)
    return stepper


def compile_blocks(inputs: Inputs, unet: nn.Module) -> CompiledBlocks | None:
    """Compile the U-Net's blocks if memory.torch_compile is on, else return None. Raises ProblemsError if compiling fails."""
    memory, context = inputs.job.memory, inputs.context
    if not memory.torch_compile:
        return None
    context.stage("testing torch.compile")
    try_compiling(memory.dynamo_backend, context.device)
    sizes = {placed.bucket for placed in inputs.plan.placed}
    context.say("torch.compile compiles the model in the first steps and for each new image size; this takes minutes")

    def say(what: str, fix: str) -> None:
        context.say(what, "warning", fix)

    return CompiledBlocks(
        unet, memory.dynamo_backend, say, several_sizes=len(sizes) > 1, kinds=inputs.family.layout.blocks
    )


def step_within_backward(inputs: Inputs, optimizer: Optimizer, guard: NonFiniteGuard) -> FusedBackward | None:
    """Make the optimizer update 16-bit weights in fp32; return the fused backward pass if the settings use it, else None."""
    from core.optimization.rounding import widen_steps

    settings = inputs.job.memory
    entry = find(inputs.job.optimizer.optimizer_type)
    wide_step = widen_steps(
        optimizer,
        inputs.seed,
        stochastic=settings.stochastic_rounding,
        kahan=settings.kahan_summation,
        by_parts=entry is not None and entry.by_weight,
    )
    if not inputs.job.method.traits.full_size or not (settings.fused_backward_pass or settings.fused_optimizer_groups):
        return None
    max_grad_norm = inputs.job.optimizer.max_grad_norm
    return FusedBackward(optimizer, wide_step, guard, max_grad_norm, by_tensor=settings.fused_backward_pass)


def _write_fingerprint(inputs: Inputs) -> None:
    """Write dataset.json: `dataset_fingerprint` of the training images, with "validation" {"seed", "timesteps", "images", maybe "pairs"}
    and "measured_with" added. Warns if images or captions changed since the run started."""
    path = inputs.context.folder.dataset_file
    memo, token = inputs.context.workspace.private / "index.sqlite", inputs.context.token
    fingerprint = dataset_fingerprint(inputs.report.placed, memo_path=memo, cancel=token)
    validated = inputs.validation.images
    rows = dataset_fingerprint(validated, memo_path=memo, cancel=token)["images"]
    fingerprint["validation"] = {
        "seed": inputs.job.validation.validation_seed,
        "timesteps": timesteps_of(inputs.job.noise),
        "images": [row | _validation_facts(each) for row, each in zip(rows, validated, strict=True)],
    }
    if inputs.validation.batches and not inputs.validation.holds_out_images:
        fingerprint["validation"]["pairs"] = inputs.validation.pairs
    fingerprint["measured_with"] = "validation seed"  # earlier versions drew latents by the training's
    if path.exists():
        earlier = _earlier_fingerprint(path)
        # Earlier versions wrote no "validation".
        if earlier != {name: fingerprint[name] for name in earlier if name in fingerprint}:
            inputs.context.say(
                "The images or captions changed since this run started; the current ones are used", "warning"
            )
    atomic.write_json(path, fingerprint)


def _earlier_fingerprint(path: Path) -> dict[str, Any]:
    """Return the content of dataset.json as `_write_fingerprint` wrote it; {} if the file is damaged, which counts as unchanged."""
    try:
        return read_json_object(path, max_bytes=256_000_000, max_values=3_000_000)
    except ProblemsError:
        return {}


def _validation_facts(placed: Placed) -> dict[str, Any]:
    """Return {"caption": trained caption without augmentation, "masked": whether a mask weights the loss} of a validation image."""
    images = placed.concept.images
    return {"caption": unaugmented_caption(placed), "masked": images.masked_loss or images.alpha_mask}
