"""How long a training is: batches, steps, epochs, and the sentence that spells the arithmetic out."""

from __future__ import annotations

from dataclasses import dataclass

from core.dataset.batches import steps_per_epoch
from core.settings.schedule import ScheduleSettings

# Few pictures are learnt in about 100 passes. Many need fewer each, though more in all: 1500 views for 15 pictures,
# 3000 for 300.
FEW_PICTURES, MANY_PICTURES = 15, 300
MOST_PASSES, LEAST_PASSES = 100, 10
LEAST_UPDATES = 100


@dataclass(frozen=True)
class Length:
    """epochs: passes begun, the last may be cut short. chosen_by: "steps", "epochs" or "advice"."""

    steps_per_epoch: int
    epochs: int
    total_steps: int
    chosen_by: str


def advised_epochs(views: int, batch_size: int = 1, batches: int | None = None) -> int:
    """Passes over each picture to begin with, for a first LoRA.

    100 for up to 15 pictures, then falling as 1500 views grow evenly to 3000 at 300 pictures, never below 10. A large
    batch makes few updates of many views, so passes are added until there are 100 updates.
    views     pictures with their repeats in one epoch
    batches   of one epoch; ceil(views / batch_size) when not given
    """
    if views <= 0:
        return LEAST_PASSES
    share = (min(max(views, FEW_PICTURES), MANY_PICTURES) - FEW_PICTURES) / (MANY_PICTURES - FEW_PICTURES)
    wanted = FEW_PICTURES * MOST_PASSES * (1 + share)
    passes = max(LEAST_PASSES, min(MOST_PASSES, round(wanted / views)))
    updates = batches if batches is not None else -(-views // batch_size)
    return max(passes, -(-LEAST_UPDATES // updates))


def length_of(schedule: ScheduleSettings, views: int, batches: int, batch_size: int) -> Length:
    """Steps win over epochs; neither takes the advised epochs."""
    accumulation = schedule.gradient_accumulation_steps
    steps = steps_per_epoch(batches, accumulation)
    if schedule.max_train_steps is not None:
        epochs = -(-schedule.max_train_steps // steps) if steps else 0
        return Length(steps, epochs, schedule.max_train_steps if steps else 0, "steps")
    if schedule.max_train_epochs is not None:
        return Length(steps, schedule.max_train_epochs, schedule.max_train_epochs * steps, "epochs")
    epochs = advised_epochs(views, batch_size * accumulation, steps) if steps else 0
    return Length(steps, epochs, epochs * steps, "advice")


def length_sentence(length: Length, pictures: int, views: int, batches: int, batch_size: int, accumulation: int) -> str:
    """ "24 pictures x 66 passes / batch 4 = 396 steps". Where some batches are short, the batches are counted instead.

    views   pictures with their repeats     batches   of one epoch
    """
    if not batches:
        return "No picture trains."
    who = _count(pictures, "picture") + (f" ({views} with repeats)" if views != pictures else "")
    even = views == batches * batch_size and accumulation == 1
    if not even:
        who += f" in {_count(batches, 'batch', 'es')} of up to {batch_size}"
    if accumulation > 1:
        who += f", {accumulation} batches to a step, so {_count(length.steps_per_epoch, 'step')} a pass"
    per = f" / batch {batch_size}" if even else ""
    if length.chosen_by == "steps":
        passes = length.total_steps / length.steps_per_epoch
        return f"{_count(length.total_steps, 'step')} = {passes:.4g} passes x {who}{per}"
    end = f" = {_count(length.total_steps, 'step')}" + (" (advised length)" if length.chosen_by == "advice" else "")
    return f"{who} x {_count(length.epochs, 'pass', 'es')}{per}{end}"


def _count(number: int, noun: str, plural: str = "s") -> str:
    return f"{number} {noun}" + ("" if number == 1 else plural)
