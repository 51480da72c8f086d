"""One optimizer update: its micro-batches, the gradient, the guard."""

from __future__ import annotations

from typing import TYPE_CHECKING

from core.dataset.batches import Batch
from core.optimization.clipping import clip_grad_norm
from core.optimization.schedules import multiplier, set_learning_rates
from core.training.draws import draw_noises, draw_timesteps
from core.training.losses import StepRecord
from core.training.step import training_loss

if TYPE_CHECKING:
    from torch import Tensor

    from core.training.run import Run

PRESERVE = "diff_output_preservation"  # a folder's custom attribute: its pictures keep what the base model draws


def optimizer_update(run: Run) -> None:
    """Move the weights once. The loss is the mean over all pictures of the update, so a short batch weighs by its true count."""
    import torch

    epoch, batches = run.plan.update(run.state.step)
    run.text.need(run.plan.captions(epoch))
    schedule = run.job.schedule
    set_learning_rates(
        run.optimizer, multiplier(schedule.lr_scheduler, run.state.step, schedule.lr_warmup_steps, run.total)
    )
    pictures = sum(len(batch.items) for batch in batches)
    total = None
    timesteps: list[int] = []
    processes = run.context.processes
    ahead = run.plan.next_batches(run.state.step)
    run.latents.expect(epoch, [item for batch in ahead for item in processes.share(batch.items)])
    for whole in batches:
        batch = Batch(whole.bucket, tuple(processes.share(whole.items)))
        if not batch.items:  # a short batch that left nothing for this process
            continue
        losses_B, drawn = micro_batch(run, epoch, batch)
        loss = losses_B.sum() / pictures
        (run.scaler.scale(loss) if run.scaler is not None else loss).backward()
        total = loss.detach() if total is None else total + loss.detach()
        timesteps += drawn
    total = total if total is not None else torch.zeros((), device=run.context.device)
    processes.sum_gradients(run.parameters)
    processes.sum_up([total])
    norm = _step(run, total)
    run.optimizer.zero_grad(set_to_none=True)
    names = [placed.picture.relative for batch in batches for placed, _ in batch.items]
    run.losses.put(StepRecord(run.state.step + 1, total, norm, names, timesteps))


def _step(run: Run, loss: Tensor) -> Tensor:
    """Clip, guard and step; returns the gradient's norm before clipping, 0-d on the device."""
    if run.scaler is None:
        norm = clip_grad_norm(run.parameters, run.job.optimizer.max_grad_norm)
        run.guard.watch(loss, norm)
        run.guard.step(run.optimizer)
        return norm
    run.scaler.unscale_(run.optimizer)
    norm = clip_grad_norm(run.parameters, run.job.optimizer.max_grad_norm)
    run.guard.watch(loss)
    if not run.guard.tripped():
        run.scaler.step(run.optimizer)  # leaves out a step whose gradient overflowed
        run.scaler.update()
    return norm


def micro_batch(run: Run, epoch: int, batch: Batch) -> tuple[Tensor, list[int]]:
    """Losses [B] of one batch and the timesteps drawn. Every draw is addressed by (seed, purpose, epoch, picture, repeat)."""
    import torch

    seed, noise_settings, device = run.seed, run.job.noise, run.context.device
    queued = device.startswith("cuda")  # a plain copy to a graphics card waits for everything queued before it
    addresses = [(seed, epoch, placed.key, repeat) for placed, repeat in batch.items]
    latents, masks = run.latents.batch(epoch, batch.items)
    latents = latents.to(device, non_blocking=queued)
    if noise_settings.compatibility == "kohya" and run.job.method.kind != "lora":
        latents = latents.to(run.precision.compute)  # sd-scripts 0.10 keeps float32 for LoRA alone
    drawn = draw_noises(noise_settings, latents, addresses)
    timesteps = draw_timesteps(noise_settings, addresses)
    strength = batch.items[0][0].concept.pictures.network_multiplier  # one for the batch: see Concept.batch_group
    run.method.set_strength(strength)
    step = run.state.step
    text = run.text.states([run.plan.caption(placed, epoch, repeat, step) for placed, repeat in batch.items])

    def predict(noisy: Tensor, at: Tensor) -> Tensor:
        return run.predict(noisy, at, text)

    def base_predict(noisy: Tensor, at: Tensor) -> Tensor:
        run.method.set_strength(0.0)
        try:
            return run.predict(noisy, at, text)
        finally:
            run.method.set_strength(strength)

    preserved = [bool(each.concept.source.custom_attributes.get(PRESERVE)) for each, _ in batch.items]
    losses_B = training_loss(
        predict,
        latents,
        drawn.pop("noise"),
        torch.tensor(timesteps).to(device, non_blocking=queued),
        noise_settings,
        alpha_bar=run.alpha_bar,
        prediction=run.prediction,
        sample_weights=_weights(run, batch),
        masks=None if masks is None else masks.to(device, non_blocking=queued),
        **drawn,
        base_predict=base_predict if any(preserved) else None,
        preserved=torch.tensor(preserved).to(device, non_blocking=queued) if any(preserved) else None,
    )
    return losses_B, timesteps


def _weights(run: Run, batch: Batch) -> Tensor | None:
    """What each picture's loss counts, [B] on the device; None where all count 1."""
    import torch

    weights = [placed.loss_weight(run.job.dataset) for placed, _ in batch.items]
    if all(weight == 1 for weight in weights):
        return None
    device = run.context.device
    return torch.tensor(weights).to(device, non_blocking=device.startswith("cuda"))
