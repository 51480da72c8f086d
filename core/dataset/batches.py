"""Pictures -> the batches of an epoch: each picture as often as its repeats say, in every epoch, in an addressed order.

A batch holds one bucket. Where a bucket does not divide by the batch size its last batch is short: nothing is dropped
or shown twice. The order depends on (seed, epoch) alone, so a resumed run goes on where it stood.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from core.dataset.buckets import Placement, Size
from core.dataset.captions import Caption
from core.dataset.scan import Picture
from core.record import draws
from core.settings.concepts import PLAIN, Concept


@dataclass(frozen=True, slots=True)
class Placed:
    """A picture that trains, at one size: where it goes and what is said about it (before the caption pipeline).

    concept   its folder with the settings in force
    variant   which of several resolutions this is ("1024x1024"); empty for the first
    """

    picture: Picture
    placement: Placement
    caption: Caption
    concept: Concept = PLAIN
    variant: str = ""

    @property
    def key(self) -> tuple[str, ...]:
        """The address in random draws."""
        return (*self.picture.key, self.variant) if self.variant else self.picture.key

    @property
    def repeats(self) -> int:
        return self.picture.repeats


@dataclass(frozen=True, slots=True)
class Batch:
    """Pictures of one size for one forward pass. items: (picture, which of its repeats, from 0)."""

    bucket: Size
    items: tuple[tuple[Placed, int], ...]

    def __len__(self) -> int:
        return len(self.items)


def plan_epoch(placed: Sequence[Placed], batch_size: int, seed: int, epoch: int) -> list[Batch]:
    """All batches of an epoch, in order. Time grows with the number of pictures x repeats."""
    buckets: dict[Size, list[tuple[Placed, int]]] = defaultdict(list)
    for each in placed:
        buckets[each.placement.bucket].extend((each, repeat) for repeat in range(each.picture.repeats))
    batches: list[Batch] = []
    for bucket in sorted(buckets):
        items = buckets[bucket]
        draws.python_random(seed, "order in a bucket", epoch, *bucket).shuffle(items)
        batches += [
            Batch(bucket, tuple(items[start : start + batch_size])) for start in range(0, len(items), batch_size)
        ]
    draws.python_random(seed, "order of batches", epoch).shuffle(batches)
    return batches


def batches_per_epoch(placed: Iterable[Placed], batch_size: int) -> int:
    """How many batches `plan_epoch` makes, without making them."""
    views: dict[Size, int] = defaultdict(int)
    for each in placed:
        views[each.placement.bucket] += each.picture.repeats
    return sum(-(-count // batch_size) for count in views.values())


def steps_per_epoch(batches: int | Sequence[Batch], accumulation: int) -> int:
    """Optimizer updates of an epoch. An accumulation that is open at the epoch's end is closed there."""
    count = batches if isinstance(batches, int) else len(batches)
    return -(-count // accumulation)


def accumulation_groups(batches: Sequence[Batch], accumulation: int) -> list[list[Batch]]:
    """The batches of each optimizer update, in order; the last group may be short."""
    return [list(batches[start : start + accumulation]) for start in range(0, len(batches), accumulation)]
