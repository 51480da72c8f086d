"""One optimizer step: its micro-batches and the gradient."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from math import inf
from typing import TYPE_CHECKING

from core.dataset.buckets.batches import Planned
from core.diffusion.noise import Address
from core.record.problems import ProblemsError
from core.training.loop.losses import Seen, StepRecord
from core.training.loop.run import Run

if TYPE_CHECKING:
    from torch import Tensor


WEIGHT_NORM_STEPS = 25  # it changes slowly, and reading all weights takes time


def optimizer_update(run: Run) -> None:
    """Update the weights once. The reported loss is the mean over all images of the step."""
    import torch

    passes, processes = run.passes, run.context.processes
    run.stepper.begin()
    epoch, batches = run.plan.update(run.state.step)
    passes.text.need(run.plan.captions(epoch))
    run.rates.set(run.stepper.optimizer, run.state.step - run.stepper.paused)
    ahead = run.plan.next_batches(run.state.step)
    passes.latents.expect(epoch, [item for batch in ahead for item in processes.share(batch.items)])
    images = sum(len(batch.items) for batch in batches)
    # Each process fills in its own, so that one exchange carries the loss of every image.
    by_image = torch.zeros(images, device=run.context.device)
    seen: list[Seen] = []
    for number, whole in enumerate(batches):
        mine = processes.share(range(len(seen), len(seen) + len(whole.items)))
        draw = passes.objective.draw
        timesteps = [draw(run.job.noise, address, whole.bucket) for address in _addresses(run, epoch, whole)]
        for (placed, _), timestep in zip(whole.items, timesteps, strict=True):
            seen.append(Seen(placed.key, timestep, placed.loss_weight(run.job.dataset)))
        stand_in = run.stepper.stand_in
        batch = Planned(whole.bucket, tuple(processes.share(whole.items) or stand_in(whole.items)))
        if not batch.items:  # a short batch that left nothing for this process
            continue
        shown = [(placed.key, repeat) for placed, repeat in batch.items]
        passes.method.before_micro_batch(run.state.step, number, shown)
        shared = processes.share(timesteps) or stand_in(timesteps)
        losses_of = partial(micro_batch, run, epoch, batch, shared)
        count = counted(run, whole, images) if mine else inf
        losses_B = run.stepper.backward(losses_of, count, number == len(batches) - 1)
        passes.method.after_micro_batch()  # not before: gradient checkpointing computes forwards once more
        if mine:
            by_image[mine[0] : mine[-1] + 1] = losses_B
    processes.sum_up([by_image])
    total = by_image.sum() / images
    norm = run.stepper.step(total)
    numbers = passes.method.after_update()
    names = [placed.image.relative for batch in batches for placed, _ in batch.items]
    step = run.state.step + 1
    run.reports.losses.put(
        StepRecord(
            step,
            total,
            norm,
            names,
            [each.timestep for each in seen],
            seen,
            by_image,
            run.stepper.weight_norm() if step % WEIGHT_NORM_STEPS == 0 or step == 1 else None,
            numbers,
        )
    )


def counted(run: Run, whole: Planned, images: int) -> int:
    """The divisor of a batch's summed losses: the images of the step, so that each counts the same.

    sd-scripts divides by those of the batch, and by the batches of a full step: images of a short batch count more,
    and those of an epoch's last step, which may have fewer batches, less.
    """
    if run.job.noise.compatibility != "none":
        return len(whole.items) * run.job.schedule.gradient_accumulation_steps
    return images


def micro_batch(run: Run, epoch: int, planned: Planned, timesteps: Sequence[float]) -> Tensor:
    """Losses [B] of one batch at these timesteps. Every random number is addressed by (seed, purpose, epoch, image, repeat)."""
    captions = [run.plan.caption(placed, epoch, repeat, run.state.step) for placed, repeat in planned.items]
    with at_step(run.state.step + 1):
        batch = run.passes.latents.batch(epoch, planned.items, _addresses(run, epoch, planned), captions)
    return run.passes.losses(batch, timesteps, with_prior=True)


@contextmanager
def at_step(step: int) -> Iterator[None]:
    """An image that cannot be read any more is named with the step."""
    try:
        yield
    except ProblemsError as error:
        raise ProblemsError(replace(each, what=f"{each.what} (step {step})") for each in error.problems) from error


def _addresses(run: Run, epoch: int, planned: Planned) -> list[Address]:
    return [(run.plan.seed, epoch, placed.key, repeat) for placed, repeat in planned.items]
