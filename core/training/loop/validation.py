"""The loss on images that never train, always with the same noise at the same timesteps.

As many training images are measured the same way, so that the gap between both says what is overfitted. Every
random number has its own address and no module's generator is used: a training with and without validation is the
same to the bit.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from hashlib import sha256
from math import lcm
from statistics import fmean
from typing import TYPE_CHECKING, Any

from core.dataset.buckets.batches import Placed, Planned
from core.dataset.buckets.validation_split import AUTOMATIC_MOST
from core.dataset.captions.pipeline import ImageUse, training_caption
from core.dataset.images.views import is_varied
from core.record.context import JobContext
from core.record.events import Validated
from core.settings.base import every
from core.settings.job import TrainJob
from core.settings.noise import NoiseSettings
from core.settings.rules.validation import holds_out
from core.training.loop.sources import EPOCH

if TYPE_CHECKING:
    from torch import Tensor

    from core.dataset.report import Report
    from core.training.loop.batch import Batch
    from core.training.loop.passes import Passes

COST = 0.02  # of the training's forward passes, for what finds the best checkpoint
EFFECT_LOOKS = 8  # whose prediction is compared with that of the untrained model
MOST_TOLD = 512  # losses in one line of the journal
MOST_PAIRS = 4 * AUTOMATIC_MOST  # each held-out image at each timestep
PARTS = 5  # the range of timesteps is cut into so many parts, and measured where they meet (reference: section 7.5)
NO_CHANCE = {"flip_aug": False, "color_aug": False, "random_crop": False, "face_crop_aug_range": None}
NO_CAPTION_CHANCE = {
    "shuffle_caption": False,
    "caption_dropout_rate": 0.0,
    "caption_dropout_every_n_epochs": 0,
    "caption_tag_dropout_rate": 0.0,
    "token_warmup_step": 0,
}


def timesteps_of(settings: NoiseSettings) -> list[int]:
    """The inner four of six evenly spaced timesteps from the lowest to the highest: 200, 400, 600, 800 of all."""
    low, high = settings.min_timestep, settings.max_timestep
    return [min(low + (high - low) * part // PARTS, 999) for part in range(1, PARTS)]


def as_it_is(placed: Placed) -> Placed:
    """The image without mirroring, other crops or colors: a held-out one is measured the same way each time."""
    images = placed.concept.images.model_copy(update=NO_CHANCE)
    return replace(placed, concept=replace(placed.concept, images=images))


def caption_of(placed: Placed) -> str:
    """Its caption with nothing dropped or shuffled."""
    settings = placed.concept.captions.model_copy(update=NO_CAPTION_CHANCE)
    return training_caption(ImageUse(placed.key, 0, placed.caption, settings, placed.image.words), 0, 0)


def compared_images(training: Sequence[Placed], held_out: Sequence[Placed]) -> list[Placed]:
    """As many images that train as are held out."""
    return some_of(training, len(held_out))


@dataclass(frozen=True)
class Look:
    """Images of one size that are measured at once, each at the timestep of its number."""

    batch: Planned
    numbers: tuple[int, ...]


@dataclass(frozen=True)
class Length:
    """How long a training is, as far as it says what measuring may cost.

    shown   image passes, of one process        saves   after which steps a checkpoint is saved, the last one with them
    pairs   of an image and a timestep at each measurement that finds the best checkpoint
    """

    shown: float
    saves: Sequence[int]
    pairs: int

    def too_many(self, pairs: int) -> frozenset[int]:
        """The steps of saves (0: before the first step) that are not measured, as so many pairs each would take more than 2%
        of the training's forward passes. The others lie evenly, the last one with them; all where two cannot be had."""
        planned = [0, *self.saves]
        affordable = int(2 * COST * self.shown / max(pairs, 1))
        if affordable >= len(planned):
            return frozenset()
        count = min(affordable, len(self.saves))
        kept = [self.saves[(number + 1) * len(self.saves) // count - 1] for number in range(count)]
        return frozenset(planned) - frozenset(kept if count > 1 else ())


@dataclass(frozen=True)
class Measured:
    """The loss of each look in their order, and means by timestep."""

    each: list[float]
    by_timestep: dict[int, float]

    @property
    def loss(self) -> float:
        return sum(self.each) / len(self.each)


class Validation:
    """Which images are measured; made once for a run.

    ranks      whether saved checkpoints are measured, to name the best one
    left_out   steps of planned saves that are not, as that would take too long, and 0 if the base model is not
    looks      of the images that are held out, else of some that train; empty when nothing is measured
    compared   looks of as many training images as a person holds out
    """

    def __init__(self, job: TrainJob, report: Report, length: Length):
        self.pairs = length.pairs
        self.by_hand = holds_out(job)
        self.measured_on = "held_out" if report.validation else "training"
        self.looks: list[Look] = []
        self.compared: list[Look] = []
        self._seed = job.validation.validation_seed
        self.ranks = job.validation.best_checkpoint != "off"
        if self.by_hand:
            most = every(job.validation.max_validation_steps)
            batches = batches_of([as_it_is(placed) for placed in report.validation])
            self.looks = at_every_timestep(batches[: int(most)] if most else batches)
            self.compared = at_every_timestep(batches_of(compared_images(report.placed, self.images)))
        elif self.ranks:
            found = [as_it_is(placed) for placed in report.validation]
            self.looks = spread(found or some_of(report.placed, min(self.pairs, AUTOMATIC_MOST)), self.pairs)
        self._saves = length.saves
        self.left_out = length.too_many(self._measured_pairs) if self.ranks else frozenset()
        self.ranks = self.ranks and not self.left_out.issuperset(length.saves)
        if not self.ranks and not self.by_hand:
            self.looks = []

    @property
    def _measured_pairs(self) -> int:
        return sum(len(look.numbers) for look in [*self.looks, *self.compared])

    @property
    def quick(self) -> bool:
        """Whether measuring takes a few seconds at most."""
        return self._measured_pairs <= MOST_PAIRS

    @property
    def limited(self) -> str:
        """A sentence about checkpoints that are not measured to keep the cost low; empty where all are."""
        left = len(self.left_out - {0})
        if not left or self.by_hand or len(self._saves) < 2:
            return ""
        if not self.ranks:
            return "Too short to compare checkpoints by loss"
        most = len(self._saves) - left
        return (
            f"Best checkpoint: chosen from {most} of {len(self._saves)} checkpoints, to stay within "
            f"{COST:.0%} of the training time"
        )

    @property
    def images(self) -> list[Placed]:
        """The held-out images that are measured."""
        return _images_of(self.looks) if self.measured_on == "held_out" else []

    def captions(self) -> list[str]:
        """Every caption it needs encoded."""
        both = [*self.looks, *self.compared]
        return list(dict.fromkeys(caption_of(placed) for look in both for placed, _ in look.batch.items))

    @cached_property
    def each_of(self) -> str:
        """Names the images, their captions and timesteps in their order."""
        rows = [
            [self._seed, *placed.key, caption_of(placed), number]
            for look in self.looks
            for (placed, _), number in zip(look.batch.items, look.numbers, strict=True)
        ]
        return sha256(json.dumps(rows).encode()).hexdigest()[:16]

    def measure(self, passes: Passes, context: JobContext, step: int) -> Validated:
        """The loss of the weights as they are now, after so many steps."""
        import torch

        words = "held-out" if self.measured_on == "held_out" else "training"
        with torch.no_grad(), passes.without_chance():
            passes.text.need(self.captions())
            context.stage(f"measuring the loss on {words} images")
            found = _measure(passes, context, self.looks)
            usual = _measure(passes, context, self.compared).loss if self.compared else None
            effect = _effect(passes, self.looks) if passes.job.method.traits.control_images else None
        return Validated(
            step,
            found.loss,
            usual,
            None if usual is None else found.loss - usual,
            {str(timestep): loss for timestep, loss in found.by_timestep.items()},
            len(_images_of(self.looks)),
            self.measured_on,
            [float(f"{loss:.7g}") for loss in evenly(found.each, MOST_TOLD)],
            self.each_of,
            effect,
        )


def _images_of(looks: Sequence[Look]) -> list[Placed]:
    return list({placed.key: placed for look in looks for placed, _ in look.batch.items}.values())


def batches_of(images: Sequence[Placed]) -> list[Planned]:
    """Images of one size and folder group together, at most a training batch of them, in the order they came."""
    groups: defaultdict[tuple, list[Placed]] = defaultdict(list)
    for placed in images:
        groups[placed.bucket].append(placed)
    batches = []
    for (_, size), members in groups.items():
        most = members[0].concept.images.train_batch_size
        for begin in range(0, len(members), most):
            batches.append(Planned(size, tuple((placed, 0) for placed in members[begin : begin + most])))
    return batches


def at_every_timestep(batches: Sequence[Planned]) -> list[Look]:
    return [Look(batch, (number,) * len(batch)) for batch in batches for number in range(PARTS - 1)]


def pairs_within(shown: float, saves: int) -> int:
    """How many (image, timestep) pairs each measurement takes, so that all of a run cost about 2% of its training; not fewer
    than one a timestep (`Length.too_many` leaves out saves then).

    A pair is a forward pass; an image that trains is at least two, as frozen weights need no gradients of their own. There
    is a measurement at each save and one before the first step.
    """
    affordable = 2 * COST * shown / (saves + 1)
    whole = int(affordable) // (PARTS - 1) * (PARTS - 1)  # each timestep as often
    return min(max(whole, PARTS - 1), MOST_PAIRS)


def some_of(training: Sequence[Placed], count: int) -> list[Placed]:
    """So many images that train, evenly picked, always the same; all where there are fewer."""
    own = list({placed.key: placed for placed in training if placed.concept.role == "train"}.values())
    count = min(count, len(own))
    picked = [own[index * len(own) // count] for index in range(count)]
    # Images that are augmented at each step have no cached latents: they keep one fixed look.
    return [placed if is_varied(placed.concept.images) else as_it_is(placed) for placed in picked]


def spread(shown: Sequence[Placed], pairs: int) -> list[Look]:
    """So many pairs of an image and a timestep, each image as often and each timestep as often as they go."""
    many, timesteps = len(shown), PARTS - 1
    order = [(place % many, (place + place // lcm(many, timesteps)) % timesteps) for place in range(many * timesteps)]
    numbers: defaultdict[int, list[int]] = defaultdict(list)
    for index, number in order[:pairs]:
        numbers[index].append(number)
    looks = []
    for turn in range(PARTS - 1):
        left = {index: found[turn] for index, found in numbers.items() if len(found) > turn}
        number_of = {id(shown[index]): number for index, number in left.items()}
        for batch in batches_of([shown[index] for index in left]):
            looks.append(Look(batch, tuple(number_of[id(placed)] for placed, _ in batch.items)))
    return looks


def evenly(values: Sequence[Any], most: int) -> list[Any]:
    """At most so many of them."""
    step = -(-len(values) // most)
    return list(values[::step])


def _measure(passes: Passes, context: JobContext, looks: Sequence[Look]) -> Measured:
    """Every look. The device is waited for once, at the end."""
    import torch

    timesteps = timesteps_of(passes.job.noise)
    losses: list[Tensor] = []
    for look in looks:
        context.check()
        losses.append(_losses_of(passes, look, timesteps))
    each = torch.cat(losses).double().tolist()
    numbers = [number for look in looks for number in look.numbers]
    by_number: defaultdict[int, list[float]] = defaultdict(list)
    for number, loss in zip(numbers, each, strict=True):
        by_number[number].append(loss)
    return Measured(each, {timesteps[number]: fmean(by_number[number]) for number in sorted(by_number)})


def _losses_of(passes: Passes, look: Look, timesteps: Sequence[int]) -> Tensor:
    """Losses [B] with the noise that belongs to these images and timesteps, whatever the training's seed is."""
    return passes.losses(*_shown(passes, look, timesteps)).float()


def _effect(passes: Passes, looks: Sequence[Look]) -> float:
    """How far what trains moves the predictions, by a few of the looks."""
    import torch

    timesteps = timesteps_of(passes.job.noise)
    few = evenly(looks, EFFECT_LOOKS)
    return float(torch.cat([passes.effect(*_shown(passes, look, timesteps)) for look in few]).mean())


def _shown(passes: Passes, look: Look, timesteps: Sequence[int]) -> tuple[Batch, list[int]]:
    """The images of a look, with the noise that belongs to them, and their timesteps."""
    seed = passes.job.validation.validation_seed
    numbered = list(zip((placed for placed, _ in look.batch.items), look.numbers, strict=True))
    addresses = [(seed, EPOCH, placed.key, number) for placed, number in numbered]
    captions = [caption_of(placed) for placed, _ in numbered]
    batch = passes.latents.batch(EPOCH, look.batch.items, addresses, captions)
    return batch, [timesteps[number] for number in look.numbers]
