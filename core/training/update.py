"""One optimizer update: its micro-batches, the gradient, the guard."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from core.dataset.batches import Batch
from core.dataset.views import draw_view, size_conditioning
from core.families import family
from core.optimization.clipping import clip_grad_norm
from core.optimization.schedules import set_learning_rates
from core.training.draws import draw_noises, draw_timesteps
from core.training.losses import StepRecord
from core.training.prior import PRESERVE
from core.training.step import training_loss
from core.training.watching import Seen

if TYPE_CHECKING:
    from torch import Tensor, nn

    from core.training.draws import Address
    from core.training.prior import ModelPrior
    from core.training.run import Run

WEIGHT_NORM_STEPS = 25  # it changes slowly, and reading all weights takes time


def optimizer_update(run: Run) -> None:
    """Move the weights once. The loss is the mean over all pictures of the update, so a short batch weighs by its true count."""
    import torch

    run.guard.begin()
    epoch, batches = run.plan.update(run.state.step)
    run.text.need(run.plan.captions(epoch))
    set_learning_rates(run.optimizer, run.job, run.state.step, run.total, run.context.processes.count)
    pictures = sum(len(batch.items) for batch in batches)
    total = None
    timesteps: list[int] = []
    seen: list[Seen] = []
    by_picture: list[Tensor] = []
    processes = run.context.processes
    ahead = run.plan.next_batches(run.state.step)
    run.latents.expect(epoch, [item for batch in ahead for item in processes.share(batch.items)])
    for number, whole in enumerate(batches):
        batch = Batch(whole.bucket, tuple(processes.share(whole.items)))
        if not batch.items:  # a short batch that left nothing for this process
            continue
        shown = [(placed.key, repeat) for placed, repeat in batch.items]
        run.method.before_micro_batch(run.state.step, number, shown)
        losses_B, drawn = micro_batch(run, epoch, batch)
        loss = losses_B.sum() / pictures
        if run.fused is not None:
            run.fused.begin(loss)
        (run.scaler.scale(loss) if run.scaler is not None else loss).backward()
        run.method.after_micro_batch()  # not before: gradient checkpointing computes forwards once more
        total = loss.detach() if total is None else total + loss.detach()
        timesteps += drawn
        by_picture.append(losses_B.detach())
        for (placed, _), timestep in zip(batch.items, drawn, strict=True):
            seen.append(Seen(placed.key, timestep, placed.loss_weight(run.job.dataset)))
    total = total if total is not None else torch.zeros((), device=run.context.device)
    processes.sum_gradients(run.parameters, steady=run.method.steady_gradients)
    processes.sum_up([total])
    norm = _step(run, total)
    numbers = run.method.after_update()
    run.optimizer.zero_grad(set_to_none=True)
    names = [placed.picture.relative for batch in batches for placed, _ in batch.items]
    step = run.state.step + 1
    run.losses.put(
        StepRecord(
            step,
            total,
            norm,
            names,
            timesteps,
            seen,
            torch.cat(by_picture) if by_picture else None,
            weight_norm(run.parameters) if step % WEIGHT_NORM_STEPS == 0 or step == 1 else None,
            numbers,
        )
    )


def weight_norm(parameters: Sequence[nn.Parameter]) -> Tensor:
    """The L2 norm of all that learns, 0-d on the device."""
    import torch

    with torch.no_grad():
        norms = torch._foreach_norm(list(parameters))
        return torch.stack([norm.float() for norm in norms]).norm()


def _step(run: Run, loss: Tensor) -> Tensor:
    """Clip, guard and step; returns the gradient's norm before clipping, 0-d on the device."""
    if run.fused is not None:  # the weights have moved within the backward pass
        return run.fused.end()
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
    addresses = [(run.seed, epoch, placed.key, repeat) for placed, repeat in batch.items]
    timesteps = draw_timesteps(run.job.noise, addresses)
    captions = [run.plan.caption(placed, epoch, repeat, run.state.step) for placed, repeat in batch.items]
    return picture_losses(run, epoch, batch, addresses, timesteps, captions, run.prior), timesteps


def picture_losses(
    run: Run,
    epoch: int,
    batch: Batch,
    addresses: Sequence[Address],
    timesteps: Sequence[int],
    captions: Sequence[str],
    prior: ModelPrior | None = None,
) -> Tensor:
    """Losses [B] of a batch's pictures at these timesteps with the weights as they are.

    epoch       of the latents' draws and of what is shown
    addresses   of all noise, one for each picture
    prior       a term that is added for each picture
    """
    import torch

    noise_settings, device = run.job.noise, run.context.device
    queued = device.startswith("cuda")  # a plain copy to a graphics card waits for everything queued before it
    latents, masks = run.latents.batch(epoch, batch.items)
    latents = latents.to(device, non_blocking=queued)
    if noise_settings.compatibility == "kohya" and run.job.method.kind != "lora":
        latents = latents.to(run.precision.compute)  # sd-scripts 0.10 keeps float32 for LoRA alone
    drawn = draw_noises(noise_settings, latents, addresses)
    strength = batch.items[0][0].concept.pictures.network_multiplier  # one for the batch: see Concept.batch_group
    run.method.set_strength(strength)
    text = run.text.states(captions)
    sizes = _sizes(run, epoch, batch)

    def predict(noisy: Tensor, at: Tensor) -> Tensor:
        return run.predict(noisy, at, text, sizes)

    def base_predict(noisy: Tensor, at: Tensor) -> Tensor:
        with run.method.untrained():
            return run.predict(noisy, at, text, sizes)

    preserved = [bool(each.concept.source.custom_attributes.get(PRESERVE)) for each, _ in batch.items]
    noise, at = drawn.pop("noise"), torch.tensor(list(timesteps)).to(device, non_blocking=queued)

    def loss_of(predict: Callable[[Tensor, Tensor], Tensor], **more: Any) -> Tensor:
        return training_loss(
            predict,
            latents,
            noise,
            at,
            noise_settings,
            alpha_bar=run.alpha_bar,
            prediction=run.prediction,
            **{**drawn, **more},
        )

    losses_B = loss_of(
        predict,
        sample_weights=_weights(run, batch),
        masks=None if masks is None else masks.to(device, non_blocking=queued),
        base_predict=base_predict if any(preserved) else None,
        preserved=torch.tensor(preserved).to(device, non_blocking=queued) if any(preserved) else None,
    )
    return losses_B if prior is None else losses_B + prior.losses(run, batch, loss_of, sizes)


def _sizes(run: Run, epoch: int, batch: Batch) -> Tensor | None:
    """What SDXL is told of each picture: original height and width, what was cropped off at the top and the left, height
    and width of what is shown; float32 [B, 6] in pixels on the device. None for families that read none."""
    import torch

    if not family(run.components.family).READS_SIZES:
        return None
    rows = []
    for placed, repeat in batch.items:
        view = draw_view(placed, run.seed, epoch, repeat)
        shown = size_conditioning(placed, view, run.job.dataset.crop_conditioning)
        rows.append([number for width_height in shown for number in width_height[::-1]])
    device = run.context.device
    return torch.tensor(rows, dtype=torch.float32).to(device, non_blocking=device.startswith("cuda"))


def _weights(run: Run, batch: Batch) -> Tensor | None:
    """What each picture's loss counts, [B] on the device; None where all count 1."""
    import torch

    weights = [placed.loss_weight(run.job.dataset) for placed, _ in batch.items]
    if all(weight == 1 for weight in weights):
        return None
    device = run.context.device
    return torch.tensor(weights).to(device, non_blocking=device.startswith("cuda"))
