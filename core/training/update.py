"""One optimizer step: its micro-batches, the gradient, the guard."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from math import inf
from typing import TYPE_CHECKING, Any

from core.dataset.batches import Batch
from core.dataset.views import draw_view, size_conditioning
from core.diffusion.noise import Address, draw_noises, draw_timesteps
from core.families import family
from core.optimization.schedules import set_learning_rates
from core.record.queued import queued
from core.training.losses import StepRecord
from core.training.step import Predict, training_loss
from core.training.watching import Seen

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from core.training.prior import ModelPrior
    from core.training.run import Run

WEIGHT_NORM_STEPS = 25  # it changes slowly, and reading all weights takes time


def optimizer_update(run: Run) -> None:
    """Update the weights once. The reported loss is the mean over all images of the step."""
    import torch

    run.guard.begin()
    epoch, batches = run.plan.update(run.state.step)
    run.text.need(run.plan.captions(epoch))
    tick = run.state.step - run.stepper.paused
    set_learning_rates(run.optimizer, run.job, tick, run.total, run.context.processes.count)
    processes = run.context.processes
    ahead = run.plan.next_batches(run.state.step)
    run.latents.expect(epoch, [item for batch in ahead for item in processes.share(batch.items)])
    images = sum(len(batch.items) for batch in batches)
    # Each process fills in its own, so that one exchange carries the loss of every image.
    by_image = torch.zeros(images, device=run.context.device)
    seen: list[Seen] = []
    for number, whole in enumerate(batches):
        mine = processes.share(range(len(seen), len(seen) + len(whole.items)))
        timesteps = draw_timesteps(run.job.noise, _addresses(run, epoch, whole))
        for (placed, _), timestep in zip(whole.items, timesteps, strict=True):
            seen.append(Seen(placed.key, timestep, placed.loss_weight(run.job.dataset)))
        stand_in = run.stepper.stand_in
        batch = Batch(whole.bucket, tuple(processes.share(whole.items) or stand_in(whole.items)))
        if not batch.items:  # a short batch that left nothing for this process
            continue
        shown = [(placed.key, repeat) for placed, repeat in batch.items]
        run.method.before_micro_batch(run.state.step, number, shown)
        shared = processes.share(timesteps) or stand_in(timesteps)
        losses_of = partial(micro_batch, run, epoch, batch, shared)
        count = counted(run, whole, images) if mine else inf
        losses_B = run.stepper.backward(losses_of, count, number == len(batches) - 1)
        run.method.after_micro_batch()  # not before: gradient checkpointing computes forwards once more
        if mine:
            by_image[mine[0] : mine[-1] + 1] = losses_B
    processes.sum_up([by_image])
    total = by_image.sum() / images
    norm = run.stepper.step(total)
    numbers = run.method.after_update()
    names = [placed.image.relative for batch in batches for placed, _ in batch.items]
    step = run.state.step + 1
    run.losses.put(
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


def counted(run: Run, whole: Batch, images: int) -> int:
    """What the sum of a batch's losses is divided by: the images of the update, so that each counts the same.

    sd-scripts divides by those of the batch, and by the batches of a whole update: images of a short batch count more,
    and those of an epoch's last update, which may have fewer batches, less.
    """
    if run.job.noise.as_kohya:
        return len(whole.items) * run.job.schedule.gradient_accumulation_steps
    return images


def micro_batch(run: Run, epoch: int, batch: Batch, timesteps: Sequence[int]) -> Tensor:
    """Losses [B] of one batch at these timesteps. Every random number is addressed by (seed, purpose, epoch, image, repeat)."""
    captions = [run.plan.caption(placed, epoch, repeat, run.state.step) for placed, repeat in batch.items]
    return image_losses(run, epoch, batch, _addresses(run, epoch, batch), timesteps, captions, run.prior)


def _addresses(run: Run, epoch: int, batch: Batch) -> list[Address]:
    return [(run.seed, epoch, placed.key, repeat) for placed, repeat in batch.items]


def image_losses(
    run: Run,
    epoch: int,
    batch: Batch,
    addresses: Sequence[Address],
    timesteps: Sequence[int],
    captions: Sequence[str],
    prior: ModelPrior | None = None,
) -> Tensor:
    """Losses [B] of a batch's images at these timesteps with the weights as they are.

    epoch       of the random latents and of the image's augmentation
    addresses   of all noise, one for each image
    prior       a term that is added for each image
    """
    import torch

    noise_settings, device = run.job.noise, run.context.device
    latents, masks = run.latents.batch(epoch, batch.items)
    if noise_settings.halves_latents(run.job.method.changes):
        latents = scaled_in(run.precision.compute, latents, run.latents.scale)
    noises = draw_noises(noise_settings, latents, addresses)
    strength = batch.items[0][0].concept.images.network_multiplier  # one for the batch: see Concept.batch_group
    run.method.set_strength(strength)
    text = run.text.states(captions)
    sizes = _sizes(run, epoch, batch, addresses[0][0])

    def predict(noisy: Tensor, at: Tensor) -> Tensor:
        return run.predict(noisy, at, text, sizes)

    def base_predict(noisy: Tensor, at: Tensor) -> Tensor:
        with run.method.untrained():
            return run.predict(noisy, at, text, sizes)

    preserved = [each.concept.source.diff_output_preservation for each, _ in batch.items]
    at = queued(torch.tensor(list(timesteps)), device)

    def loss_of(predict: Predict, **more: Any) -> Tensor:
        return training_loss(run.objective, predict, latents, noises, at, **more)

    losses_B = loss_of(
        predict,
        sample_weights=_weights(run, batch),
        masks=None if masks is None else queued(masks, device),
        preserved=(base_predict, queued(torch.tensor(preserved), device)) if any(preserved) else None,
    )
    return losses_B if prior is None else losses_B + prior.losses(run, batch, loss_of, sizes)


def scaled_in(dtype: torch.dtype, latents: Tensor, scale: float) -> Tensor:
    """Latents that were scaled in float32, as if they had been cast before that."""
    return (latents / scale).to(dtype) * scale


def _sizes(run: Run, epoch: int, batch: Batch, seed: int) -> Tensor | None:
    """SDXL's size conditioning of each image: original height and width, what was cropped off at the top and the left, height
    and width of what is shown; float32 [B, 6] in pixels on the device. None for families that read none."""
    import torch

    if not family(run.components.family).reads_sizes:
        return None
    rows = []
    for placed, repeat in batch.items:
        view = draw_view(placed, seed, epoch, repeat)
        shown = size_conditioning(placed, view, run.job.dataset.crop_conditioning)
        rows.append([number for width_height in shown for number in width_height[::-1]])
    return queued(torch.tensor(rows, dtype=torch.float32), run.context.device)


def _weights(run: Run, batch: Batch) -> Tensor | None:
    """What each image's loss counts, [B] on the device; None where all count 1."""
    import torch

    weights = [placed.loss_weight(run.job.dataset) for placed, _ in batch.items]
    if all(weight == 1 for weight in weights):
        return None
    return queued(torch.tensor(weights), run.context.device)
