"""The images and captions of each step, determined for a whole run by the dataset, the settings and the seed."""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter, defaultdict
from collections.abc import Sequence
from typing import TYPE_CHECKING

from core.dataset.buckets.aspect_ratio import Size
from core.dataset.buckets.batches import Placed, PlannedBatch
from core.dataset.buckets.rotation import AllImages, View, parts_of
from core.dataset.captions.pipeline import ImageUse, caption_variants_of_epoch, is_random, training_caption
from core.record import draws
from core.settings.dataset.dataset import DatasetSettings

if TYPE_CHECKING:
    from core.settings.job import TrainJob

Bucket = tuple[str, Size]
EPOCHS_CHECKED = 8  # epochs to check for buckets that never fill a batch, where epochs differ


class Epochs:
    """How the epochs of a dataset are split into batches and optimizer steps. Epochs, steps and batches count from 0.

    placed         training and regularization images
    accumulation   batches per optimizer step
    processes      data parallel processes: global batches are this many times the batch size, and each process takes its part
    """

    def __init__(self, placed: Sequence[Placed], dataset: DatasetSettings, accumulation: int = 1, processes: int = 1):
        self.placed = placed
        self.parts = parts_of(placed, dataset.reg_balance)
        self._short = dataset.short_batches
        self._accumulation = accumulation
        self._sizes: dict[Bucket, int] = {
            each.bucket: each.concept.images.train_batch_size * processes for each in placed
        }
        # Keys of the shuffle's random numbers: with several processes, the order of one process with batches of the global size.
        self._shuffle_keys = {
            each.bucket: (each.concept.batch_group_of(processes), each.placement.bucket) for each in placed
        }
        self._members: defaultdict[Bucket, list[Placed]] = defaultdict(list)
        for each in placed:
            self._members[each.bucket].append(each)
        self._counts: dict[int, int] = {}
        self._first_steps: list[int] = [0]  # the first optimizer step of each epoch

    # -- counting

    @property
    def views(self) -> int:
        """Number of images in the first epoch, repeats counted (`views_of`)."""
        return len(self.views_of(0))

    @property
    def batch_sizes(self) -> list[int]:
        """The different global batch sizes of the first epoch, ascending."""
        return sorted({self._sizes[each.bucket] for each, _ in self.views_of(0)})

    @property
    def full(self) -> bool:
        """Whether all batches are full: incomplete ones are dropped or filled up."""
        return self._short in ("drop", "refill")

    @property
    def steady(self) -> bool:
        """Whether every epoch has the same images, and so the same number of batches."""
        return all(isinstance(part, AllImages) for part in self.parts)

    def batches_in(self, epoch: int) -> int:
        """Return the number of batches in an epoch, without building them."""
        epoch = 0 if self.steady else epoch
        if epoch not in self._counts:
            filled = Counter(each.bucket for each, _ in self.views_of(epoch))
            self._counts[epoch] = sum(self._batch_count(count, self._sizes[bucket]) for bucket, count in filled.items())
        return self._counts[epoch]

    def _batch_count(self, count: int, size: int) -> int:
        """Return how many batches of `size` a bucket with `count` views gives; incomplete ones count unless dropped."""
        return count // size if self._short == "drop" else -(-count // size)

    def steps_in(self, epoch: int) -> int:
        """Return the number of optimizer steps in an epoch; the last one may accumulate fewer batches."""
        return -(-self.batches_in(epoch) // self._accumulation)

    def first_step(self, epoch: int) -> int:
        """Return the index of the first optimizer step of an epoch, which is the number of steps before it."""
        if self.steady:
            return epoch * self.steps_in(0)
        while len(self._first_steps) <= epoch:
            self._first_steps.append(self._first_steps[-1] + self.steps_in(len(self._first_steps) - 1))
        return self._first_steps[epoch]

    def epoch_of(self, step: int) -> int:
        """Return the epoch of an optimizer step."""
        if self.steady:
            return step // self.steps_in(0)
        while self._first_steps[-1] <= step:
            self.first_step(len(self._first_steps))
        return bisect_right(self._first_steps, step) - 1

    def never_used(self) -> list[Placed]:
        """Return images that no epoch uses, because their bucket never fills a batch and incomplete batches are dropped.

        If epochs differ, only the first EPOCHS_CHECKED are checked.
        """
        if self._short != "drop":
            return []
        filled: Counter[Bucket] = Counter()
        for epoch in range(1 if self.steady else EPOCHS_CHECKED):
            filled |= Counter(each.bucket for each, _ in self.views_of(epoch))
        return [
            each
            for bucket, members in self._members.items()
            if filled[bucket] < self._sizes[bucket]
            for each in members
        ]

    def unneeded(self) -> list[Placed]:
        """Return regularization images in no epoch: there are no training images, or sd-scripts' balancing needs fewer."""
        used = {each.key for part in self.parts for each in part.images}
        return [each for members in self._members.values() for each in members if each.key not in used]

    # -- building

    def views_of(self, epoch: int) -> list[View]:
        """Return as many views (image, number of the repeat) as an epoch trains, unordered. Every count of images and views that is shown
        or saved comes from here.

        If incomplete batches are dropped, `batches` draws which views these are; here they are left out of a bucket's largest folders.
        """
        views = self._all_views(epoch)
        if self._short != "drop":
            return views
        by_folder: defaultdict[Bucket, defaultdict[int, list[View]]] = defaultdict(lambda: defaultdict(list))
        for view in views:
            by_folder[view[0].bucket][view[0].concept.number].append(view)
        for bucket, folders in by_folder.items():
            for _ in range(sum(map(len, folders.values())) % self._sizes[bucket]):
                max(folders.values(), key=len).pop()
        return [view for folders in by_folder.values() for members in folders.values() for view in members]

    def _all_views(self, epoch: int) -> list[View]:
        """Return the views (image, number of the repeat) of which an epoch's batches are made, unordered."""
        return [view for part in self.parts for view in part.of_epoch(epoch)]

    def batches(self, seed: int, epoch: int) -> list[PlannedBatch]:
        """Return all batches of an epoch, shuffled by `seed`. Takes time proportional to the number of views."""
        buckets: defaultdict[Bucket, list[View]] = defaultdict(list)
        for view in self._all_views(epoch):
            buckets[view[0].bucket].append(view)
        batches: list[PlannedBatch] = []
        for bucket in sorted(buckets, key=lambda each: self._shuffle_keys[each]):
            group, size = self._shuffle_keys[bucket]
            views = buckets[bucket]
            draws.python_random(seed, "order in a bucket", epoch, group, *size).shuffle(views)
            if self._short == "refill":
                views += self._fill_up(bucket, views, seed, epoch)
            limit = self._sizes[bucket]
            end = len(views) - len(views) % limit if self._short == "drop" else len(views)
            batches += [PlannedBatch(size, tuple(views[start : start + limit])) for start in range(0, end, limit)]
        draws.python_random(seed, "order of batches", epoch).shuffle(batches)
        return batches

    def groups(self, seed: int, epoch: int) -> list[list[PlannedBatch]]:
        """Return the batches of each optimizer step of an epoch; the last step may have fewer."""
        batches, size = self.batches(seed, epoch), self._accumulation
        return [batches[start : start + size] for start in range(0, len(batches), size)]

    def _fill_up(self, bucket: Bucket, views: Sequence[View], seed: int, epoch: int) -> list[View]:
        """Return extra views of a bucket's images that fill its last batch, with repeat numbers not in `views`."""
        lacking = -len(views) % self._sizes[bucket]
        next_repeat: Counter[tuple[str, ...]] = Counter()  # of each image
        for each, repeat in views:
            next_repeat[each.key] = max(next_repeat[each.key], repeat + 1)
        order = list({each.key: each for each, _ in views}.values())
        group, size = self._shuffle_keys[bucket]
        draws.python_random(seed, "filling up", epoch, group, *size).shuffle(order)
        extra: list[View] = []
        for number in range(lacking):
            each = order[number % len(order)]
            extra.append((each, next_repeat[each.key]))
            next_repeat[each.key] += 1
        return extra


class Plan:
    """The batches and captions of a run, by step number alone.

    placed   training and regularization images
    seed     of the order of images and batches, and of captions
    total    number of steps in the run, for captions that change during it
    begin    step of the run that gets the batches of step 0
    """

    def __init__(self, placed: Sequence[Placed], job: TrainJob, seed: int, total_steps: int = 0):
        self.placed = list(placed)
        self.epochs = Epochs(
            self.placed, job.dataset, job.schedule.gradient_accumulation_steps, job.memory.num_processes
        )
        self.seed, self.total = seed, total_steps
        self.begin = 0  # the step that gets the batches of step 0
        self._captions_vary = any(is_random(each.concept.captions) for each in self.placed)
        self._epoch = -1
        self._groups: list[list[PlannedBatch]] = []
        self._variants_epoch = -1
        self._variants: list[str] = []

    def epoch_of(self, step: int) -> int:
        """Return the epoch (from 0) of optimizer step `step` (from 0), without the offset of `begin`."""
        return self.epochs.epoch_of(step)

    def ends_epoch(self, step: int) -> bool:
        """Return whether an epoch ends after `step` steps."""
        return step > 0 and self.epochs.first_step(self.epoch_of(step)) == step

    def step_batches(self, step: int) -> tuple[int, list[PlannedBatch]]:
        """Return the epoch (from 0) and the batches of optimizer step `step` (from 0)."""
        step -= self.begin
        epoch = self.epoch_of(step)
        return epoch, self._groups_of(epoch)[step - self.epochs.first_step(epoch)]

    def next_batches(self, step: int) -> list[PlannedBatch]:
        """Return the batches of `step` and of the next step of the same epoch, to prepare them ahead."""
        step -= self.begin
        epoch = self.epoch_of(step)
        index = step - self.epochs.first_step(epoch)
        return [batch for group in self._groups_of(epoch)[index : index + 2] for batch in group]

    def _groups_of(self, epoch: int) -> list[list[PlannedBatch]]:
        """Return the batches of each optimizer step of an epoch; the latest epoch is cached."""
        if epoch != self._epoch:
            self._groups, self._epoch = self.epochs.groups(self.seed, epoch), epoch
        return self._groups

    def caption(self, placed: Placed, epoch: int, repeat: int, step: int) -> str:
        """Return the caption for one view of an image at optimizer step `step`. repeat: number of the repeat from 0"""
        return training_caption(self._image_use(placed, repeat, step), self.seed, epoch, self.total)

    def _image_use(self, placed: Placed, repeat: int, step: int) -> ImageUse:
        """Return the use of an image at optimizer step `step`, for the caption pipeline."""
        class_tokens = placed.image.class_tokens
        return ImageUse(placed.key, repeat, placed.caption, placed.concept.captions, class_tokens, step)

    def first_captions(self, epochs: int) -> dict[tuple[str, ...], list[str]]:
        """Return {image key: captions of its first use in each of the first `epochs` epochs}.

        Images that rotation does not reach in an epoch have fewer captions, or none.
        """
        captions: dict[tuple[str, ...], list[str]] = {each.key: [] for each in self.placed}
        for epoch in range(epochs):
            used: set[tuple[str, ...]] = set()
            for step, group in enumerate(self._groups_of(epoch), self.epochs.first_step(epoch)):
                for placed, repeat in (item for batch in group for item in batch.items):
                    if placed.key not in used:
                        used.add(placed.key)
                        captions[placed.key].append(self.caption(placed, epoch, repeat, step))
        return captions

    def captions(self, epoch: int) -> list[str]:
        """Return every caption that an epoch uses, each once; if captions do not vary, those of all images."""
        if self._variants_epoch == epoch or (self._variants_epoch >= 0 and not self._captions_vary):
            return self._variants
        first = self.epochs.first_step(epoch) + self.begin
        groups = self._groups_of(epoch) if self._captions_vary else []
        uses = [
            self._image_use(each, repeat, step)
            for step, group in enumerate(groups, first)
            for batch in group
            for each, repeat in batch.items
        ]
        if not self._captions_vary:  # all of them, also those whose turn comes later
            uses = [self._image_use(each, 0, 0) for each in self.placed]
        self._variants, self._variants_epoch = caption_variants_of_epoch(uses, self.seed, epoch, self.total), epoch
        return self._variants
