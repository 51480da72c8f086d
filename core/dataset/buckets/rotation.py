"""Images of a folder that an epoch uses: all, a fixed number in rotation, or enough to balance the training images.

The choice depends on the settings only, not on the seed, so the number of steps is known before a start.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial

from core.dataset.buckets.batches import Placed
from core.record import draws

View = tuple[Placed, int]  # an image, and which of its repeats in the epoch, from 0


class AllImages:
    """All images in every epoch, each as often as its repeats.
    views: (image, number of the repeat from 0) each"""

    def __init__(self, placed: Sequence[Placed]):
        self.views: list[View] = [(each, repeat) for each in placed for repeat in range(each.repeats)]

    @property
    def images(self) -> list[Placed]:
        """Images that some epoch uses, once for each repeat."""
        return [each for each, _ in self.views]

    def __len__(self) -> int:
        return len(self.views)

    def of_epoch(self, epoch: int) -> list[View]:
        """Return the views of an epoch, the same in every epoch."""
        return self.views


class Rotation:
    """A fixed number of views per epoch; each epoch continues where the last one ended, so that all images are used in turn.

    count   views per epoch
    name    seeds the shuffled order of the images, in which each occurs as often as its repeats
    """

    def __init__(self, placed: Sequence[Placed], count: int, name: str):
        self._pool = [each for each in placed for _ in range(each.repeats)]
        draws.python_random(0, "turn", name).shuffle(self._pool)
        self._count = count if self._pool else 0

    def __len__(self) -> int:
        return self._count

    @property
    def images(self) -> list[Placed]:
        """Images that some epoch uses, once for each repeat; [] if no view is needed."""
        return self._pool if self._count else []

    @property
    def pool_size(self) -> int:
        """Number of images, repeats counted."""
        return len(self._pool)

    def of_epoch(self, epoch: int) -> list[View]:
        """Return the views of an epoch: the next `count` images of the shuffled order."""
        pool, begin = self._pool, epoch * self._count
        next_repeat: defaultdict[tuple[str, ...], int] = defaultdict(int)
        views: list[View] = []
        for index in range(begin, begin + self._count):
            each = pool[index % len(pool)]
            views.append((each, next_repeat[each.key]))
            next_repeat[each.key] += 1
        return views


class RandomResolution:
    """The views of `part`, each at one of the image's resolutions, drawn by epoch, image and repeat.

    part       the images, each at its first resolution
    variants   `_variants_key` -> the image at all its resolutions
    """

    def __init__(self, part: AllImages | Rotation, variants: Mapping[tuple[str, ...], Sequence[Placed]]):
        self._part, self._variants = part, variants

    @property
    def images(self) -> list[Placed]:
        """Images that some epoch uses, at every resolution."""
        return [variant for each in self._part.images for variant in self._variants[_variants_key(each)]]

    def __len__(self) -> int:
        return len(self._part)

    @property
    def pool_size(self) -> int:
        """Number of images, without repeats."""
        return len(self._variants)

    def of_epoch(self, epoch: int) -> list[View]:
        """Return the views of an epoch, each at a resolution drawn for it."""
        return [(self._draw_size(each, epoch, repeat), repeat) for each, repeat in self._part.of_epoch(epoch)]

    def _draw_size(self, each: Placed, epoch: int, repeat: int) -> Placed:
        """Return the image at one of its resolutions, drawn by epoch, image and repeat."""
        variants = self._variants[_variants_key(each)]
        return variants[draws.address(0, "resolution", epoch, *each.image.key, repeat) % len(variants)]


Part = AllImages | Rotation | RandomResolution
MakePart = Callable[[Sequence[Placed]], AllImages | Rotation]


def parts_of(placed: Iterable[Placed], reg_balance: str) -> list[Part]:
    """Return the parts that together make up each epoch: one for each training folder and one for each group's regularization.

    reg_balance   "kohya" repeats regularization images as sd-scripts; other values rotate them. In both, their number balances
                  that of the training images in the same batch group.
    """
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
            samples = source.samples_per_epoch
            make: MakePart = AllImages if samples is None else partial(Rotation, count=samples, name=f"folder {number}")
            parts.append(_part(images, make))
            trained[source.batch_group] += len(parts[-1])
    for group, images in regularization.items():
        count = trained[group]
        make = partial(Rotation, count=count, name=f"regularization {group}")
        parts.append(_part(images, partial(sd_scripts_balanced, wanted=count) if reg_balance == "kohya" else make))
    return parts


def _variants_key(placed: Placed) -> tuple[str, ...]:
    """Return the image's key if each view draws one of its resolutions, else a key of the image at this resolution."""
    return placed.image.key if placed.concept.images.resolution_choice == "drawn" else placed.key


def _part(placed: Sequence[Placed], make: MakePart) -> Part:
    """Return `make(placed)`; if images draw their resolution, a `RandomResolution` around it in which each image counts once."""
    variants: defaultdict[tuple[str, ...], list[Placed]] = defaultdict(list)
    for each in placed:
        variants[_variants_key(each)].append(each)
    if len(variants) == len(placed):
        return make(placed)
    return RandomResolution(make([several[0] for several in variants.values()]), variants)


def sd_scripts_balanced(images: Sequence[Placed], wanted: int) -> AllImages:
    """Return sd-scripts' selection of regularization images, equal in every epoch, with `wanted` views or slightly more.

    Images are used in order with their repeats until there are `wanted` views, then once more each, round after round. The last
    image of the first round may exceed `wanted`; images after it are never used.
    """
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
