"""Which images of a folder an epoch uses: all, a fixed number in rotation, or as many as balance the training images.

This depends on the settings only, not on the seed, so the steps counted before a start are exact.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial

from core.dataset.buckets.batches import Placed
from core.record import draws

View = tuple[Placed, int]  # an image, and which of its repeats in the epoch, from 0


class AllImages:
    """All images in every epoch, each as often as its repeats."""

    def __init__(self, placed: Sequence[Placed]):
        self.views: list[View] = [(each, repeat) for each in placed for repeat in range(each.repeats)]

    @property
    def images(self) -> list[Placed]:
        """Images that some epoch uses."""
        return [each for each, _ in self.views]

    def __len__(self) -> int:
        return len(self.views)

    def of_epoch(self, epoch: int) -> list[View]:
        return self.views


class Rotation:
    """A fixed number of views; each epoch continues where the last one ended, so that all images are used in rotation.

    pool    in shuffled order, each image as often as its repeats      count   views per epoch
    """

    def __init__(self, placed: Sequence[Placed], count: int, name: str):
        self._pool = [each for each in placed for _ in range(each.repeats)]
        draws.python_random(0, "turn", name).shuffle(self._pool)
        self._count = count if self._pool else 0

    def __len__(self) -> int:
        return self._count

    @property
    def images(self) -> list[Placed]:
        """Images that some epoch uses."""
        return self._pool if self._count else []

    @property
    def pool_size(self) -> int:
        return len(self._pool)

    def of_epoch(self, epoch: int) -> list[View]:
        pool, begin = self._pool, epoch * self._count
        shown: defaultdict[tuple[str, ...], int] = defaultdict(int)
        views: list[View] = []
        for index in range(begin, begin + self._count):
            each = pool[index % len(pool)]
            views.append((each, shown[each.key]))
            shown[each.key] += 1
        return views


class RandomResolution:
    """A part whose views show each image at one of its resolutions, drawn by epoch, image and repeat.

    part    of each image at its first resolution      variants   {`_variants_key`: the image at all its resolutions}
    """

    def __init__(self, part: AllImages | Rotation, variants: Mapping[tuple[str, ...], Sequence[Placed]]):
        self._part, self._variants = part, variants

    @property
    def images(self) -> list[Placed]:
        """Images that some epoch uses."""
        return [variant for each in self._part.images for variant in self._variants[_variants_key(each)]]

    def __len__(self) -> int:
        return len(self._part)

    @property
    def pool_size(self) -> int:
        return len(self._variants)

    def of_epoch(self, epoch: int) -> list[View]:
        return [(self._draw_size(each, epoch, repeat), repeat) for each, repeat in self._part.of_epoch(epoch)]

    def _draw_size(self, each: Placed, epoch: int, repeat: int) -> Placed:
        variants = self._variants[_variants_key(each)]
        return variants[draws.address(0, "resolution", epoch, *each.image.key, repeat) % len(variants)]


Part = AllImages | Rotation | RandomResolution
MakePart = Callable[[Sequence[Placed]], AllImages | Rotation]


def parts_of(placed: Iterable[Placed], reg_balance: str) -> list[Part]:
    """The parts that make up each epoch. Regularization images balance the training images of their batch group."""
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
            make: MakePart = AllImages if wanted is None else partial(Rotation, count=wanted, name=f"folder {number}")
            parts.append(_part(images, make))
            trained[source.batch_group] += len(parts[-1])
    for group, images in regularization.items():
        count = trained[group]
        make = partial(Rotation, count=count, name=f"regularization {group}")
        parts.append(_part(images, partial(sd_scripts_balanced, wanted=count) if reg_balance == "kohya" else make))
    return parts


def _variants_key(placed: Placed) -> tuple[str, ...]:
    """Key that an image's resolutions share if each view shows one of them at random; else the key of this one."""
    return placed.image.key if placed.concept.images.resolution_choice == "drawn" else placed.key


def _part(placed: Sequence[Placed], make: MakePart) -> Part:
    """Return `make(placed)`; if images choose their resolution at random, a `RandomResolution` of them in which each image counts once."""
    variants: defaultdict[tuple[str, ...], list[Placed]] = defaultdict(list)
    for each in placed:
        variants[_variants_key(each)].append(each)
    if len(variants) == len(placed):
        return make(placed)
    return RandomResolution(make([several[0] for several in variants.values()]), variants)


def sd_scripts_balanced(images: Sequence[Placed], wanted: int) -> AllImages:
    """sd-scripts' balancing, the same in every epoch: images in order with their repeats until `wanted` is reached, then
    once more each, round after round. The last image of the first round may overshoot; the rest is never used."""
    repeats: dict[int, int] = {}
    count = 0
    while count < wanted and images:
        for index, each in enumerate(images):
            added = 1 if index in repeats else each.repeats
            repeats[index] = repeats.get(index, 0) + added
            count += added
            if count >= wanted:
                break
    balanced = AllImages([])
    balanced.views = [(images[index], repeat) for index, number in repeats.items() for repeat in range(number)]
    return balanced
