"""Which views of a folder an epoch shows: all of it, a number of them in turn, or as many as balance the others.

What an epoch shows depends on the settings alone and not on the seed, so the steps counted before a start are those made.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence

from core.dataset.batches import Placed
from core.record import draws

View = tuple[Placed, int]  # an image, and which of its showings in the epoch this is, from 0


class Whole:
    """Every image as often as its repeats."""

    def __init__(self, placed: Sequence[Placed]):
        self.views: list[View] = [(each, repeat) for each in placed for repeat in range(each.repeats)]

    @property
    def images(self) -> list[Placed]:
        """Those that some epoch shows."""
        return [each for each, _ in self.views]

    def __len__(self) -> int:
        return len(self.views)

    def of_epoch(self, epoch: int) -> list[View]:
        return self.views


class Turn:
    """A fixed number of views; each epoch goes on where the last one ended, so that all images come round.

    pool    in the order of the turn: an image stands in it as often as its repeats      count   views in an epoch
    """

    def __init__(self, placed: Sequence[Placed], count: int, name: str):
        self._pool = [each for each in placed for _ in range(each.repeats)]
        draws.python_random(0, "turn", name).shuffle(self._pool)
        self._count = count if self._pool else 0

    def __len__(self) -> int:
        return self._count

    @property
    def images(self) -> list[Placed]:
        """Those that some epoch shows."""
        return self._pool if self._count else []

    @property
    def pool(self) -> int:
        return len(self._pool)

    def of_epoch(self, epoch: int) -> list[View]:
        pool, begin = self._pool, epoch * self._count
        shown: defaultdict[tuple[str, ...], int] = defaultdict(int)
        views: list[View] = []
        for place in range(begin, begin + self._count):
            each = pool[place % len(pool)]
            views.append((each, shown[each.key]))
            shown[each.key] += 1
        return views


Part = Whole | Turn


def parts_of(placed: Iterable[Placed], reg_balance: str) -> list[Part]:
    """The dataset as parts that are shown each epoch. Regularization balances what trains in the same batch group."""
    folders: defaultdict[int, list[Placed]] = defaultdict(list)
    for each in placed:
        folders[each.concept.number].append(each)
    parts: list[Part] = []
    trained: defaultdict[str | None, int] = defaultdict(int)
    regularization: defaultdict[str | None, list[Placed]] = defaultdict(list)
    for number, images in folders.items():
        source = images[0].concept.source
        if source.role == "regularization":
            regularization[source.batch_group] += images
        elif source.role == "train":
            wanted = source.samples_per_epoch
            part: Part = Whole(images) if wanted is None else Turn(images, wanted, f"folder {number}")
            parts.append(part)
            trained[source.batch_group] += len(part)
    for group, images in regularization.items():
        if reg_balance == "kohya":
            parts.append(first_ones(images, trained[group]))
        else:
            parts.append(Turn(images, trained[group], f"regularization {group}"))
    return parts


def first_ones(images: Sequence[Placed], wanted: int) -> Whole:
    """sd-scripts' balance, the same views in every epoch: in order with their repeats until `wanted` is reached; if it is
    not, once more each, round after round. The last image of the first round may overshoot; the rest is never shown."""
    repeats: dict[int, int] = {}
    count = 0
    while count < wanted and images:
        for index, each in enumerate(images):
            more = 1 if index in repeats else each.repeats
            repeats[index] = repeats.get(index, 0) + more
            count += more
            if count >= wanted:
                break
    chosen = Whole([])
    chosen.views = [(images[index], repeat) for index, number in repeats.items() for repeat in range(number)]
    return chosen
