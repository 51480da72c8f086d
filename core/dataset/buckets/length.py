"""Length of a training run: batches, steps, epochs, and a sentence with the arithmetic."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from core.record.units import count
from core.settings.optimization.schedule import ScheduleSettings

if TYPE_CHECKING:
    from core.dataset.buckets.plan import Epochs

# Few images need about 100 epochs. Many need fewer, though more steps in all: 1500 views for 15 images, 3000 for 300.
FEW_IMAGES, MANY_IMAGES = 15, 300
MOST_EPOCHS, LEAST_EPOCHS = 100, 10
LEAST_STEPS = 100


@dataclass(frozen=True)
class Length:
    """The length of a training run.

    steps_per_epoch   of the first epoch; others may differ a little where regularization images rotate
    epochs            number of epochs, of which the last may be partial
    chosen_by         what determines the length: "steps", "epochs" or "advice" (the recommended number of epochs)
    """

    steps_per_epoch: int
    epochs: int
    total_steps: int
    chosen_by: str


def advised_epochs(views: int, batch_size: int = 1, batches: int | None = None) -> int:
    """Return the recommended number of epochs for a first LoRA.

    100 for up to 15 images, then falling as the total views grow linearly from 1500 to 3000 at 300 images, never below 10.
    Epochs are added until there are 100 steps, for large batches.

    views     images times repeats in one epoch
    batches   of one epoch; None for ceil(views / batch_size)
    """
    if views <= 0:
        return LEAST_EPOCHS
    share = (min(max(views, FEW_IMAGES), MANY_IMAGES) - FEW_IMAGES) / (MANY_IMAGES - FEW_IMAGES)
    wanted_views = FEW_IMAGES * MOST_EPOCHS * (1 + share)
    epochs = max(LEAST_EPOCHS, min(MOST_EPOCHS, round(wanted_views / views)))
    steps = batches if batches is not None else -(-views // batch_size)
    return max(epochs, -(-LEAST_STEPS // steps))


def length_of(schedule: ScheduleSettings, epochs: Epochs) -> Length:
    """Return the length by the number of steps if set, else by the set number of epochs, else by the recommended one."""
    steps = epochs.steps_in(0)
    if not steps:
        return Length(0, 0, 0, "steps" if schedule.steps_in_force is not None else "epochs")
    total = schedule.steps_in_force
    if total is not None:
        return Length(steps, epochs.epoch_of(total - 1) + 1, total, "steps")
    if schedule.max_train_epochs is not None:
        number = schedule.max_train_epochs
        return Length(steps, number, epochs.first_step(number), "epochs")
    size = epochs.batch_sizes[-1] * schedule.gradient_accumulation_steps
    number = advised_epochs(epochs.views, size, steps)
    return Length(steps, number, epochs.first_step(number), "advice")


def length_sentence(length: Length, epochs: Epochs, images: int, accumulation: int) -> str:
    """Return the arithmetic of a length, such as "24 images x 66 epochs / batch 4 = 396 steps".

    If the last epoch is partial: "40 steps, about 2.67 epochs of 60 images / batch 4".

    images         number of training images, without repeats
    accumulation   batches per optimizer step
    """
    views, batches = epochs.views, epochs.batches_in(0)
    if not batches:
        return "No images to train on"
    size = epochs.batch_sizes[-1]
    images_text = count(images, "image") + (f" ({views} with repeats)" if views > images else "")
    if views < images:
        images_text = f"{count(views, 'view')} of {images_text} in rotation"
    exact = views == batches * size and accumulation == 1 and epochs.steady and len(epochs.batch_sizes) == 1
    if not exact:
        approximately = "" if epochs.steady else "about "
        up_to = "" if epochs.full and len(epochs.batch_sizes) == 1 else "up to "
        images_text += f" in {approximately}{count(batches, 'batch', 'batches')} of {up_to}{size}"
    if accumulation > 1:
        images_text += f", {accumulation} batches per step, {count(length.steps_per_epoch, 'step')} per epoch"
    per_batch = f" / batch {size}" if exact else ""
    last = length.epochs - 1
    steps_done, steps_in_last = length.total_steps - epochs.first_step(last), epochs.steps_in(last)
    if steps_done < steps_in_last:
        return f"{count(length.total_steps, 'step')}, about {last + steps_done / steps_in_last:.3g} epochs of {images_text}{per_batch}"
    if length.chosen_by == "steps":
        return f"{count(length.total_steps, 'step')} = {count(length.epochs, 'epoch')} x {images_text}{per_batch}"
    end = f" = {count(length.total_steps, 'step')}" + (" (recommended)" if length.chosen_by == "advice" else "")
    return f"{images_text} x {count(length.epochs, 'epoch')}{per_batch}{end}"
