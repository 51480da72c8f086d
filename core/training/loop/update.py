"""One optimizer step: forward and backward passes of its micro-batches, then the update of the weights."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from math import inf

from core.dataset.buckets.batches import PlannedBatch
from core.diffusion.noise import Address
from core.record.lazy_torch import Tensor, torch
from core.record.problems import ProblemsError
from core.training.loop.loss_readback import StepImage, StepRecord
from core.training.loop.run import Run

WEIGHT_NORM_STEPS = 25  # it changes slowly, and reading all weights takes time


def optimizer_update(run: Run) -> None:
    """Do one optimizer step and record its losses. The reported loss is the mean over all images of the step."""
    passes, processes = run.passes, run.context.processes
    run.stepper.begin()
    epoch, batches = run.plan.step_batches(run.state.step)
    passes.text.need(run.plan.captions(epoch))
    run.rates.set(run.stepper.optimizer, run.state.step - run.stepper.overflow_steps)
    ahead = run.plan.next_batches(run.state.step)
    passes.latents.decode_ahead(epoch, [item for batch in ahead for item in processes.share(batch.items)])
    images = sum(len(batch.items) for batch in batches)
    # Each process fills in the losses of its images, so that one all-reduce carries all of them.
    by_image = torch.zeros(images, device=run.context.device)
    step_images: list[StepImage] = []
    for number, global_batch in enumerate(batches):
        rows = processes.share(range(len(step_images), len(step_images) + len(global_batch.items)))
        draw = passes.objective.draw
        timesteps = [
            draw(run.job.noise, address, global_batch.bucket) for address in _addresses(run, epoch, global_batch)
        ]
        for (placed, _), timestep in zip(global_batch.items, timesteps, strict=True):
            step_images.append(StepImage(placed.key, timestep, placed.loss_weight(run.job.dataset)))
        placeholder_items = run.stepper.placeholder_items
        items = processes.share(global_batch.items) or placeholder_items(global_batch.items)
        batch = PlannedBatch(global_batch.bucket, tuple(items))
        if not batch.items:  # a short batch that left nothing for this process
            continue
        views = [(placed.key, repeat) for placed, repeat in batch.items]
        passes.method.before_micro_batch(run.state.step, number, views)
        local_timesteps = processes.share(timesteps) or placeholder_items(timesteps)
        losses_of = partial(micro_batch, run, epoch, batch, local_timesteps)
        divisor = loss_divisor(run, global_batch, images) if rows else inf
        losses_B = run.stepper.backward(losses_of, divisor, number == len(batches) - 1)
        passes.method.after_micro_batch()  # not before: gradient checkpointing computes forwards once more
        if rows:
            by_image[rows[0] : rows[-1] + 1] = losses_B
    processes.sum_tensors([by_image])
    total = by_image.sum() / images
    norm = run.stepper.step(total)
    numbers = run.stepper.after_update()
    names = [placed.image.relative for batch in batches for placed, _ in batch.items]
    step = run.state.step + 1
    run.reports.losses.put(
        StepRecord(
            step,
            total,
            norm,
            names,
            [each.timestep for each in step_images],
            step_images,
            by_image,
            run.stepper.weight_norm() if step % WEIGHT_NORM_STEPS == 0 or step == 1 else None,
            numbers,
        )
    )


def loss_divisor(run: Run, global_batch: PlannedBatch, images: int) -> int:
    """Return the divisor of a batch's summed losses: `images`, the number of images of the step, so that all images count the same.

    With `model.compatibility`, as in sd-scripts: the batch's images times gradient accumulation steps. Images of a short batch then
    count more, and those of an epoch's last step, which may have fewer batches, less.
    """
    if run.job.noise.compatibility != "none":
        return len(global_batch.items) * run.job.schedule.gradient_accumulation_steps
    return images


def micro_batch(run: Run, epoch: int, planned: PlannedBatch, timesteps: Sequence[float]) -> Tensor:
    """Return the losses [B] of one batch. timesteps: one for each image"""
    captions = [run.plan.caption(placed, epoch, repeat, run.state.step) for placed, repeat in planned.items]
    with naming_step(run.state.step + 1):
        batch = run.passes.latents.batch(epoch, planned.items, _addresses(run, epoch, planned), captions)
    return run.passes.losses(batch, timesteps, with_prior=True)


@contextmanager
def naming_step(step: int) -> Iterator[None]:
    """A context that raises a ProblemsError again with the step added to its messages."""
    try:
        yield
    except ProblemsError as error:
        raise ProblemsError(replace(each, what=f"{each.what} (step {step})") for each in error.problems) from error


def _addresses(run: Run, epoch: int, planned: PlannedBatch) -> list[Address]:
    """Return the addresses of the images' random numbers: (seed, epoch, image key, repeat)."""
    return [(run.plan.seed, epoch, placed.key, repeat) for placed, repeat in planned.items]
