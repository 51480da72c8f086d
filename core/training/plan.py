"""Which pictures and captions each step sees: known ahead for the whole run from the seed alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from core.dataset.batches import accumulation_groups, batches_per_epoch, plan_epoch, steps_per_epoch
from core.dataset.captions import caption_variants_of_epoch, is_random, training_caption

if TYPE_CHECKING:
    from core.dataset.batches import Batch, Placed
    from core.settings.job import TrainJob


class Plan:
    """The order of a run. Step s belongs to epoch s // updates_per_epoch, so the step alone tells the place in the data."""

    def __init__(self, placed: Sequence[Placed], job: TrainJob, seed: int):
        self.placed = list(placed)
        self._batch_size = job.dataset.train_batch_size
        self._accumulation = job.schedule.gradient_accumulation_steps
        self._captions = job.captions
        self._seed = seed
        self.batches_per_epoch = batches_per_epoch(self.placed, self._batch_size)
        self.updates_per_epoch = steps_per_epoch(self.batches_per_epoch, self._accumulation)
        self._epoch = -1
        self._groups: list[list[Batch]] = []
        self._captioned = -1
        self._variants: list[str] = []

    def epoch_of(self, step: int) -> int:
        return step // self.updates_per_epoch

    def update(self, step: int) -> tuple[int, list[Batch]]:
        """Epoch (from 0) and batches of optimizer step `step` (from 0)."""
        epoch, place = divmod(step, self.updates_per_epoch)
        if epoch != self._epoch:
            batches = plan_epoch(self.placed, self._batch_size, self._seed, epoch)
            self._groups, self._epoch = accumulation_groups(batches, self._accumulation), epoch
        return epoch, self._groups[place]

    def caption(self, placed: Placed, epoch: int, repeat: int) -> str:
        return training_caption(placed.caption.text, self._captions, self._seed, epoch, placed.key, repeat)

    def captions(self, epoch: int) -> list[str]:
        """Every caption that an epoch uses, each once."""
        if self._captioned == epoch or (self._captioned >= 0 and not is_random(self._captions)):
            return self._variants
        items = (
            (placed.key, repeat, placed.caption.text) for placed in self.placed for repeat in range(placed.repeats)
        )
        self._variants = caption_variants_of_epoch(items, self._captions, self._seed, epoch)
        self._captioned = epoch
        return self._variants
