"""Validation loss: the loss on held-out images, always with the same noise at the same timesteps.

As many training images are measured in the same manner; the gap between both losses shows overfitting. Random numbers are
addressed and no global generator is used, so a training with and without validation is equal to the bit.
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

from core.dataset.buckets.batches import Placed, PlannedBatch
from core.dataset.buckets.validation_split import AUTOMATIC_MOST
from core.dataset.captions.pipeline import ImageUse, training_caption
from core.dataset.images.views import is_varied
from core.record.context import JobContext
from core.record.events import Validated
from core.record.lazy_torch import Tensor, torch
from core.settings.base import every
from core.settings.job import TrainJob
from core.settings.noise import NoiseSettings
from core.settings.rules.validation import holds_out
from core.training.loop.sources import VALIDATION_EPOCH

if TYPE_CHECKING:
    from core.dataset.report import Report
    from core.training.loop.batch import Batch
    from core.training.loop.passes import Passes

COST_SHARE = 0.02  # share of the training's forward passes that rank checkpoints
EFFECT_BATCHES = 8  # whose predictions are compared with those of the untrained model
MOST_LOSSES = 512  # in one line of the journal
MOST_PAIRS = 4 * AUTOMATIC_MOST  # each held-out image at each timestep
PARTS = 5  # equal parts of the range of timesteps, measured at their boundaries (reference: section 7.5)
NO_AUGMENTATION = {"flip_aug": False, "color_aug": False, "random_crop": False, "face_crop_aug_range": None}
NO_CAPTION_AUGMENTATION = {
    "shuffle_caption": False,
    "caption_dropout_rate": 0.0,
    "caption_dropout_every_n_epochs": 0,
    "caption_tag_dropout_rate": 0.0,
    "token_warmup_step": 0,
}


def timesteps_of(settings: NoiseSettings) -> list[int]:
    """Return the timesteps of validation: the inner four of six evenly spaced ones from the lowest to the highest trained timestep, by
    default 200, 400, 600, 800."""
    low, high = settings.min_timestep, settings.max_timestep
    return [min(low + (high - low) * part // PARTS, 999) for part in range(1, PARTS)]


def unaugmented(placed: Placed) -> Placed:
    """Return the image without random flip, crop and colors, so that each measurement uses the same pixels."""
    images = placed.concept.images.model_copy(update=NO_AUGMENTATION)
    return replace(placed, concept=replace(placed.concept, images=images))


def unaugmented_caption(placed: Placed) -> str:
    """Return the trained caption of an image without dropout, shuffling and token warmup."""
    settings = placed.concept.captions.model_copy(update=NO_CAPTION_AUGMENTATION)
    return training_caption(ImageUse(placed.key, 0, placed.caption, settings, placed.image.class_tokens), 0, 0)


@dataclass(frozen=True)
class ValidationBatch:
    """Images of one size that are measured in one pass. timestep_indices: of each image's timestep in `timesteps_of`, [B]"""

    batch: PlannedBatch
    timestep_indices: tuple[int, ...]


@dataclass(frozen=True)
class Budget:
    """Limits of the cost of validation in a training.

    views   number of images that one process trains on, each once per repeat and epoch
    saves   steps after which a checkpoint is saved, including the last
    pairs   number of (image, timestep) pairs of each measurement that ranks a checkpoint
    """

    views: float
    saves: Sequence[int]
    pairs: int

    def unmeasured_saves(self, pairs: int) -> frozenset[int]:
        """Return the steps of saves (0: before the first step) that are not measured, as `pairs` pairs at each save would take more than 2%
        of the training's forward passes.

        The measured saves are spaced evenly and include the last; none is measured if only one could be.
        """
        planned = [0, *self.saves]
        affordable = int(2 * COST_SHARE * self.views / max(pairs, 1))
        if affordable >= len(planned):
            return frozenset()
        count = min(affordable, len(self.saves))
        measured = [self.saves[(number + 1) * len(self.saves) // count - 1] for number in range(count)]
        return frozenset(planned) - frozenset(measured if count > 1 else ())


@dataclass(frozen=True)
class MeasuredLosses:
    """Validation losses.

    each          loss of each (image, timestep) pair, in the order of the batches
    by_timestep   {timestep: mean loss}
    """

    each: list[float]
    by_timestep: dict[int, float]

    @property
    def loss(self) -> float:
        """Mean loss of all pairs."""
        return sum(self.each) / len(self.each)


class Validation:
    """The images that a run measures, and the measurement of their losses.

    pairs               number of (image, timestep) pairs of a measurement that ranks a checkpoint
    holds_out_images    whether the settings hold out images for validation
    measured_on         "held_out" or "training": the images of `batches`
    ranks_checkpoints   whether saved checkpoints are measured, to find the best one
    unmeasured_saves    steps of saves that are not measured, to limit the cost; 0 if the base model is not
    batches             of held-out images, else of some training images; empty if nothing is measured
    training_batches    of as many training images as the settings hold out
    """

    def __init__(self, job: TrainJob, report: Report, budget: Budget):
        self.pairs = budget.pairs
        self.holds_out_images = holds_out(job)
        self.measured_on = "held_out" if report.validation else "training"
        self.batches: list[ValidationBatch] = []
        self.training_batches: list[ValidationBatch] = []
        self._seed = job.validation.validation_seed
        self.ranks_checkpoints = job.validation.best_checkpoint != "off"
        if self.holds_out_images:
            most = every(job.validation.max_validation_steps)
            batches = batches_of([unaugmented(placed) for placed in report.validation])
            self.batches = at_every_timestep(batches[: int(most)] if most else batches)
            self.training_batches = at_every_timestep(batches_of(pick_evenly(report.placed, len(self.images))))
        elif self.ranks_checkpoints:
            held_out = [unaugmented(placed) for placed in report.validation]
            images = held_out or pick_evenly(report.placed, min(self.pairs, AUTOMATIC_MOST))
            self.batches = spread_pairs(images, self.pairs)
        self._saves = budget.saves
        self.unmeasured_saves = budget.unmeasured_saves(self._measured_pairs) if self.ranks_checkpoints else frozenset()
        self.ranks_checkpoints = self.ranks_checkpoints and not self.unmeasured_saves.issuperset(budget.saves)
        if not self.ranks_checkpoints and not self.holds_out_images:
            self.batches = []

    @property
    def _measured_pairs(self) -> int:
        """Number of (image, timestep) pairs of a measurement."""
        return sum(len(each.timestep_indices) for each in [*self.batches, *self.training_batches])

    @property
    def is_quick(self) -> bool:
        """Whether a measurement takes a few seconds at most."""
        return self._measured_pairs <= MOST_PAIRS

    @property
    def limit_message(self) -> str:
        """A sentence about checkpoints that are not measured, to limit the cost; "" if all are."""
        unmeasured = len(self.unmeasured_saves - {0})
        if not unmeasured or self.holds_out_images or len(self._saves) < 2:
            return ""
        if not self.ranks_checkpoints:
            return "Too short to compare checkpoints by loss"
        most = len(self._saves) - unmeasured
        return (
            f"Best checkpoint: chosen from {most} of {len(self._saves)} checkpoints, to stay within "
            f"{COST_SHARE:.0%} of the training time"
        )

    @property
    def images(self) -> list[Placed]:
        """The held-out images that are measured; [] if training images are measured instead."""
        return _images_of(self.batches) if self.measured_on == "held_out" else []

    def captions(self) -> list[str]:
        """The captions of all measured images, each once."""
        both = [*self.batches, *self.training_batches]
        return list(dict.fromkeys(unaugmented_caption(placed) for each in both for placed, _ in each.batch.items))

    @cached_property
    def pairs_hash(self) -> str:
        """Hash of the measured images, their captions and timesteps, in order: only losses with an equal hash compare."""
        rows = [
            [self._seed, *placed.key, unaugmented_caption(placed), number]
            for each in self.batches
            for (placed, _), number in zip(each.batch.items, each.timestep_indices, strict=True)
        ]
        return sha256(json.dumps(rows).encode()).hexdigest()[:16]

    def measure(self, passes: Passes, context: JobContext, step: int) -> Validated:
        """Return the validation losses of the present weights. step: optimizer steps done"""
        name = "held-out" if self.measured_on == "held_out" else "training"
        with torch.no_grad(), passes.without_dropout():
            passes.text.need(self.captions())
            context.stage(f"measuring the loss on {name} images")
            result = _measure(passes, context, self.batches)
            train_loss = None
            if self.training_batches:
                train_loss = _measure(passes, context, self.training_batches).loss
            effect = _mean_effect(passes, self.batches) if passes.job.method.traits.control_images else None
        return Validated(
            step,
            result.loss,
            train_loss,
            None if train_loss is None else result.loss - train_loss,
            {str(timestep): loss for timestep, loss in result.by_timestep.items()},
            len(_images_of(self.batches)),
            self.measured_on,
            [float(f"{loss:.7g}") for loss in thinned(result.each, MOST_LOSSES)],
            self.pairs_hash,
            effect,
        )


def _images_of(batches: Sequence[ValidationBatch]) -> list[Placed]:
    """Return the images of the batches, each once."""
    return list({placed.key: placed for each in batches for placed, _ in each.batch.items}.values())


def batches_of(images: Sequence[Placed]) -> list[PlannedBatch]:
    """Return batches of images of one size and folder group, at most as large as a training batch, in the order of the images."""
    groups: defaultdict[tuple, list[Placed]] = defaultdict(list)
    for placed in images:
        groups[placed.bucket].append(placed)
    batches = []
    for (_, size), members in groups.items():
        most = members[0].concept.images.train_batch_size
        for begin in range(0, len(members), most):
            batches.append(PlannedBatch(size, tuple((placed, 0) for placed in members[begin : begin + most])))
    return batches


def at_every_timestep(batches: Sequence[PlannedBatch]) -> list[ValidationBatch]:
    """Return each batch once at each of the validation timesteps."""
    return [ValidationBatch(batch, (number,) * len(batch)) for batch in batches for number in range(PARTS - 1)]


def pairs_within(views: float, saves: int) -> int:
    """Return the number of (image, timestep) pairs per measurement with which all measurements of a run cost about 2% of its training; at
    least one pair for each timestep (`Budget.unmeasured_saves` then leaves out saves).

    views   see `Budget`
    saves   number of saves; there is a measurement at each of them and one before the first step

    A pair is one forward pass. The training of a view costs at least two, as frozen weights need no gradients.
    """
    affordable = 2 * COST_SHARE * views / (saves + 1)
    rounded = int(affordable) // (PARTS - 1) * (PARTS - 1)  # equally many for each timestep
    return min(max(rounded, PARTS - 1), MOST_PAIRS)


def pick_evenly(training: Sequence[Placed], count: int) -> list[Placed]:
    """Return `count` training images at even intervals, always the same; all images if there are fewer."""
    images = list({placed.key: placed for placed in training if placed.concept.role == "train"}.values())
    count = min(count, len(images))
    picked = [images[index * len(images) // count] for index in range(count)]
    # Images that are augmented at each step have no cached latents; the address of validation gives them a fixed view.
    return [placed if is_varied(placed.concept.images) else unaugmented(placed) for placed in picked]


def spread_pairs(images: Sequence[Placed], pairs: int) -> list[ValidationBatch]:
    """Return batches of `pairs` (image, timestep) pairs, in which images and timesteps occur equally often, as far as possible."""
    count, timesteps = len(images), PARTS - 1
    order = [
        (position % count, (position + position // lcm(count, timesteps)) % timesteps)
        for position in range(count * timesteps)
    ]
    numbers: defaultdict[int, list[int]] = defaultdict(list)
    for index, number in order[:pairs]:
        numbers[index].append(number)
    batches = []
    for round_ in range(PARTS - 1):
        remaining = {index: each[round_] for index, each in numbers.items() if len(each) > round_}
        number_of = {id(images[index]): number for index, number in remaining.items()}
        for batch in batches_of([images[index] for index in remaining]):
            batches.append(ValidationBatch(batch, tuple(number_of[id(placed)] for placed, _ in batch.items)))
    return batches


def thinned(values: Sequence[Any], most: int) -> list[Any]:
    """Return at most `most` of the values, at even intervals."""
    step = -(-len(values) // most)
    return list(values[::step])


def _measure(passes: Passes, context: JobContext, batches: Sequence[ValidationBatch]) -> MeasuredLosses:
    """Return the losses of the batches. Waits for the device once, at the end."""
    timesteps = timesteps_of(passes.job.noise)
    losses: list[Tensor] = []
    for batch in batches:
        context.check()
        losses.append(passes.losses(*_batch_of(passes, batch, timesteps)).float())
    each = torch.cat(losses).double().tolist()
    numbers = [number for batch in batches for number in batch.timestep_indices]
    by_number: defaultdict[int, list[float]] = defaultdict(list)
    for number, loss in zip(numbers, each, strict=True):
        by_number[number].append(loss)
    return MeasuredLosses(each, {timesteps[number]: fmean(by_number[number]) for number in sorted(by_number)})


def _mean_effect(passes: Passes, batches: Sequence[ValidationBatch]) -> float:
    """Return the mean relative change of predictions by the trained weights, over EFFECT_BATCHES of the batches."""
    timesteps = timesteps_of(passes.job.noise)
    few = thinned(batches, EFFECT_BATCHES)
    return float(torch.cat([passes.effect(*_batch_of(passes, batch, timesteps)) for batch in few]).mean())


def _batch_of(passes: Passes, measured: ValidationBatch, timesteps: Sequence[int]) -> tuple[Batch, list[int]]:
    """Return (batch of latents and captions, with the addresses of its noise; timestep of each image).
    timesteps: of validation, which `measured.timestep_indices` indexes"""
    seed = passes.job.validation.validation_seed
    numbered = list(zip((placed for placed, _ in measured.batch.items), measured.timestep_indices, strict=True))
    addresses = [(seed, VALIDATION_EPOCH, placed.key, number) for placed, number in numbered]
    captions = [unaugmented_caption(placed) for placed, _ in numbered]
    batch = passes.latents.batch(VALIDATION_EPOCH, measured.batch.items, addresses, captions)
    return batch, [timesteps[number] for number in measured.timestep_indices]
