"""How long a training is: batches, steps, epochs, and the sentence that spells the arithmetic out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from core.settings.schedule import ScheduleSettings

# Few images are trained in about 100 passes. Many need fewer each, though more in all: 1500 views for 15 images,
# 3000 for 300.
FEW_IMAGES, MANY_IMAGES = 15, 300
MOST_PASSES, LEAST_PASSES = 100, 10
LEAST_UPDATES = 100


@dataclass(frozen=True)
class Length:
    """epochs: passes begun, the last may be cut short. chosen_by: "steps", "epochs" or "advice".

    steps_per_epoch   of the first epoch; where regularization images come in turn, others may differ a little
    """

    steps_per_epoch: int
    epochs: int
    total_steps: int
    chosen_by: str


def advised_epochs(views: int, batch_size: int = 1, batches: int | None = None) -> int:
    """Passes over each image to begin with, for a first LoRA.

    100 for up to 15 images, then falling as 1500 views grow evenly to 3000 at 300 images, never below 10. A large
    batch makes few updates of many views, so passes are added until there are 100 updates.
    views     images with their repeats in one epoch
    batches   of one epoch; ceil(views / batch_size) when not given
    """
    if views <= 0:
        return LEAST_PASSES
    share = (min(max(views, FEW_IMAGES), MANY_IMAGES) - FEW_IMAGES) / (MANY_IMAGES - FEW_IMAGES)
    wanted = FEW_IMAGES * MOST_PASSES * (1 + share)
    passes = max(LEAST_PASSES, min(MOST_PASSES, round(wanted / views)))
    updates = batches if batches is not None else -(-views // batch_size)
    return max(passes, -(-LEAST_UPDATES // updates))


class Counts(Protocol):
    """What is known of the epochs of a dataset without making their batches (epochs.Epochs)."""

    @property
    def views(self) -> int: ...
    @property
    def steady(self) -> bool: ...
    @property
    def batch_sizes(self) -> list[int]: ...
    def batches_in(self, epoch: int) -> int: ...
    def updates_in(self, epoch: int) -> int: ...
    def first_update(self, epoch: int) -> int: ...
    def epoch_of(self, step: int) -> int: ...


def length_of(schedule: ScheduleSettings, epochs: Counts) -> Length:
    """Steps win over epochs; neither takes the advised epochs."""
    steps = epochs.updates_in(0)
    if not steps:
        return Length(0, 0, 0, "steps" if schedule.max_train_steps is not None else "epochs")
    if schedule.max_train_steps is not None:
        total = schedule.max_train_steps
        return Length(steps, epochs.epoch_of(total - 1) + 1, total, "steps")
    if schedule.max_train_epochs is not None:
        number = schedule.max_train_epochs
        return Length(steps, number, epochs.first_update(number), "epochs")
    size = epochs.batch_sizes[-1] * schedule.gradient_accumulation_steps
    number = advised_epochs(epochs.views, size, steps)
    return Length(steps, number, epochs.first_update(number), "advice")


def length_sentence(length: Length, epochs: Counts, images: int, accumulation: int) -> str:
    """ "24 images x 66 passes / batch 4 = 396 steps". Where some batches are short, the batches are counted instead.

    images   how many train, repeats not counted
    """
    views, batches = epochs.views, epochs.batches_in(0)
    if not batches:
        return "No image trains."
    size = epochs.batch_sizes[-1]
    who = _count(images, "image") + (f" ({views} with repeats)" if views > images else "")
    if views < images:
        who = f"{_count(views, 'view')} of {who} in turn"
    even = views == batches * size and accumulation == 1 and epochs.steady and len(epochs.batch_sizes) == 1
    if not even:
        about = "" if epochs.steady else "about "
        who += f" in {about}{_count(batches, 'batch', 'es')} of up to {size}"
    if accumulation > 1:
        who += f", {accumulation} batches to a step, so {_count(length.steps_per_epoch, 'step')} a pass"
    per = f" / batch {size}" if even else ""
    if length.chosen_by == "steps":
        return f"{_count(length.total_steps, 'step')} = {_passes(length, epochs, who + per)}"
    end = f" = {_count(length.total_steps, 'step')}" + (" (advised length)" if length.chosen_by == "advice" else "")
    return f"{who} x {_count(length.epochs, 'pass', 'es')}{per}{end}"


def _passes(length: Length, epochs: Counts, who: str) -> str:
    """What so many steps are: whole passes over `who`, and what is left of one that is cut short."""
    last = length.epochs - 1
    steps, whole = length.total_steps - epochs.first_update(last), epochs.updates_in(last)
    if steps == whole:
        return f"{_count(length.epochs, 'pass', 'es')} x {who}"
    part = f"{steps} of {_count(whole, 'step')}"
    return f"{_count(last, 'pass', 'es')} x {who}, then {part} of another" if last else f"{part} of one pass: {who}"


def _count(number: int, noun: str, plural: str = "s") -> str:
    return f"{number} {noun}" + ("" if number == 1 else plural)
