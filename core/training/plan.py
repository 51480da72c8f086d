"""Which images and captions each step sees: fixed for the whole run by the seed alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from core.dataset.captions import Showing, caption_variants_of_epoch, is_random, showing_caption
from core.dataset.epochs import Epochs

if TYPE_CHECKING:
    from core.dataset.batches import Batch, Placed
    from core.settings.job import TrainJob


class Plan:
    """The order of a run. The step alone determines the place in the data. total: its steps."""

    def __init__(self, placed: Sequence[Placed], job: TrainJob, seed: int, total_steps: int = 0):
        self.placed = list(placed)
        self.epochs = Epochs(
            self.placed, job.dataset, job.schedule.gradient_accumulation_steps, job.memory.num_processes
        )
        self.seed, self.total = seed, total_steps
        self.begin = 0  # the step that shows what otherwise the first one shows
        self._varies = any(is_random(each.concept.captions) for each in self.placed)
        self._epoch = -1
        self._groups: list[list[Batch]] = []
        self._captioned = -1
        self._variants: list[str] = []

    def epoch_of(self, step: int) -> int:
        """The epoch (from 0) that optimizer step `step` (from 0) belongs to."""
        return self.epochs.epoch_of(step)

    def ends_epoch(self, step: int) -> bool:
        """Whether an epoch is over after `step` steps."""
        return step > 0 and self.epochs.first_update(self.epoch_of(step)) == step

    def update(self, step: int) -> tuple[int, list[Batch]]:
        """Epoch (from 0) and batches of optimizer step `step` (from 0)."""
        step -= self.begin
        epoch = self.epoch_of(step)
        return epoch, self._groups_of(epoch)[step - self.epochs.first_update(epoch)]

    def next_batches(self, step: int) -> list[Batch]:
        """Those of this step and of the next one in the epoch: what may be got ready."""
        step -= self.begin
        epoch = self.epoch_of(step)
        place = step - self.epochs.first_update(epoch)
        return [batch for group in self._groups_of(epoch)[place : place + 2] for batch in group]

    def _groups_of(self, epoch: int) -> list[list[Batch]]:
        if epoch != self._epoch:
            self._groups, self._epoch = self.epochs.groups(self.seed, epoch), epoch
        return self._groups

    def caption(self, placed: Placed, epoch: int, repeat: int, step: int) -> str:
        return showing_caption(self._showing(placed, repeat, step), self.seed, epoch, self.total)

    def _showing(self, placed: Placed, repeat: int, step: int) -> Showing:
        words = placed.image.words
        return Showing(placed.key, repeat, placed.caption, placed.concept.captions, words, step)

    def first_captions(self, epochs: int) -> dict[tuple[str, ...], list[str]]:
        """{image's address: what its first showing in each of the first epochs is trained with}. An image whose turn
        comes later has fewer, or none."""
        found: dict[tuple[str, ...], list[str]] = {each.key: [] for each in self.placed}
        for epoch in range(epochs):
            seen: set[tuple[str, ...]] = set()
            for step, group in enumerate(self._groups_of(epoch), self.epochs.first_update(epoch)):
                for placed, repeat in (item for batch in group for item in batch.items):
                    if placed.key not in seen:
                        seen.add(placed.key)
                        found[placed.key].append(self.caption(placed, epoch, repeat, step))
        return found

    def captions(self, epoch: int) -> list[str]:
        """Every caption that an epoch uses, each once."""
        if self._captioned == epoch or (self._captioned >= 0 and not self._varies):
            return self._variants
        first = self.epochs.first_update(epoch) + self.begin
        groups = self._groups_of(epoch) if self._varies else []
        shown = [
            self._showing(each, repeat, step)
            for step, group in enumerate(groups, first)
            for batch in group
            for each, repeat in batch.items
        ]
        if not self._varies:  # all of them, also those whose turn comes later
            shown = [self._showing(each, 0, 0) for each in self.placed]
        self._variants, self._captioned = caption_variants_of_epoch(shown, self.seed, epoch, self.total), epoch
        return self._variants
