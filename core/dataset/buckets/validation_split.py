"""Splits off the validation set by file content, not by name."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from hashlib import sha256

from core.dataset.buckets.placing import Key
from core.dataset.sources.image_info import ImageInfo
from core.settings.dataset.concepts import Concept, overridden_settings

AUTOMATIC_FROM, AUTOMATIC_SHARE, AUTOMATIC_LEAST, AUTOMATIC_MOST = 40, 0.03, 2, 16


def held_out(
    images: Sequence[ImageInfo],
    concepts: Sequence[Concept],
    hashes_of: Callable[[Sequence[ImageInfo]], Mapping[Key, str]],
    seed: int,
) -> frozenset[Key]:
    """Keys of the validation images: folders with that role, images named, and each folder's validation split; else a
    few to find the best checkpoint (see `_automatic`).

    hashes_of  images -> SHA-256 of their bytes; called only with a validation split

    Each folder with repeats is split by itself, as sd-scripts splits each subset and with its rounding, so that every concept is
    measured; where all are too small for an image, the entry is split as a whole.
    The split goes by content, not by name or path: a renamed or moved folder gives the same split, and two copies of an
    image are never on both sides. A file in several entries (a folder at two resolutions) is held out of all of them.
    """
    keys: set[Key] = set()
    by_split: set[Key] = set()
    copies = CopyFinder(images, hashes_of)
    roles = {image.key: concepts[image.concept].role for image in images}
    folders: defaultdict[int, list[ImageInfo]] = defaultdict(list)
    for image in images:
        folders[image.concept].append(image)
    for number, members in folders.items():
        source, share = concepts[number].source, concepts[number].validation.validation_split
        if source.role == "validation":
            keys |= {image.key for image in members}
        if source.role != "train":
            continue
        named_images = set(source.validation_images)
        chosen = {each.key for each in members if each.relative in named_images or each.path.name in named_images}
        keys |= chosen
        if share > 0:
            hashes = hashes_of(members)
            subfolders: defaultdict[str, list[ImageInfo]] = defaultdict(list)
            for image in members:
                subfolders[image.source].append(image)
            splits = (_split(subfolder, share, hashes, seed) for subfolder in subfolders.values())
            by_split |= set().union(*splits) or _split(members, share, hashes, seed, least=1)
    if not any(concept.holds_out for concept in concepts):
        keys |= _automatic(images, concepts, copies, seed)
    keys |= {key for image in images if image.key in by_split for key in copies.of(image)}
    files = {image.path for image in images if image.key in keys}
    keys |= {image.key for image in images if image.path in files}
    return frozenset(key for key in keys if roles[key] != "regularization")


def _split(
    members: Sequence[ImageInfo], share: float, hashes: Mapping[Key, str], seed: int, least: int = 0
) -> set[Key]:
    """The fraction of the images whose content hash sorts first, copies together; at least `least`, and never all below 1."""
    order = {each.key: sha256(f"{seed} {hashes[each.key]}".encode()).hexdigest() for each in members}
    wanted = len(members) if share >= 1 else min(max(round(share * len(members)), least), len(members) - 1)
    if wanted <= 0:
        return set()
    highest = sorted(order.values())[wanted - 1]
    chosen = {key for key, digest in order.items() if digest <= highest}
    return chosen if len(chosen) < len(members) or share >= 1 else set()


# ---- held out to find the best checkpoint


def automatic_count(images: int) -> int:
    """How many of this many training images are held out to find the best checkpoint."""
    return min(max(round(AUTOMATIC_SHARE * images), AUTOMATIC_LEAST), AUTOMATIC_MOST) if images >= AUTOMATIC_FROM else 0


def _automatic(images: Sequence[ImageInfo], concepts: Sequence[Concept], copies: CopyFinder, seed: int) -> set[Key]:
    """A few training images, from each folder in proportion and at most half of it, ordered by a hash of seed and name
    (hashing every file's content before each scan would take minutes for a large dataset).

    Copies go together or not at all: those within a folder count as many, those across folders or roles stay.
    A folder with its own validation_split, even 0, gives none.
    """
    if not any(each.validation.automatic for each in concepts):
        return set()
    others = {each.path for each in images if concepts[each.concept].role != "train"}
    training = {each.path: each for each in images if each.path not in others}
    wanted = automatic_count(len(training))
    if not wanted:
        return set()
    folders: defaultdict[str, list[ImageInfo]] = defaultdict(list)
    for each in training.values():
        if "validation_split" not in overridden_settings(concepts[each.concept].source):
            folders[each.source].append(each)
    quotas = _quotas({name: len(members) for name, members in folders.items()}, wanted)
    keys: set[Key] = set()
    for name, left in quotas.items():
        members = {each.key for each in folders[name]}
        for each in sorted(folders[name], key=lambda each: sha256(f"{seed} {each.key}".encode()).hexdigest()):
            group = copies.of(each) if left and each.key not in keys else set()
            if 0 < len(group) <= left and group <= members:
                keys |= group
                left -= len(group)
    return keys


def _quotas(sizes: Mapping[str, int], wanted: int) -> dict[str, int]:
    """Number of images per folder, in proportion (largest remainders first) and at most half of each."""
    total = sum(sizes.values())
    exact = {name: wanted * size / total for name, size in sizes.items()}
    counts = {name: min(int(exact[name]), size // 2) for name, size in sizes.items()}
    order = sorted(sizes, key=lambda name: (int(exact[name]) - exact[name], -sizes[name], name))
    left = wanted - sum(counts.values())
    while left > 0 and any(counts[name] < sizes[name] // 2 for name in order):
        for name in order:
            if left > 0 and counts[name] < sizes[name] // 2:
                counts[name] += 1
                left -= 1
    return counts


class CopyFinder:
    """Finds copies of an image: files with the same SHA-256. Only files of equal size are read.

    hashes_of  images -> {key: SHA-256}
    """

    def __init__(self, images: Sequence[ImageInfo], hashes_of: Callable):
        self._hashes_of = hashes_of
        self._by_length: defaultdict[int, list[ImageInfo]] = defaultdict(list)
        self._hashes: dict[int, Mapping[Key, str]] = {}  # by file size
        for each in images:
            self._by_length[each.bytes].append(each)

    def of(self, image: ImageInfo) -> set[Key]:
        """Keys of the image and its copies. A file in several dataset entries counts once, with the key of the last entry."""
        same = {each.path: each for each in self._by_length[image.bytes]}
        if len(same) == 1:
            return {image.key}
        if image.bytes not in self._hashes:
            self._hashes[image.bytes] = self._hashes_of(list(same.values()))
        hashes = self._hashes[image.bytes]
        wanted = hashes[same[image.path].key]
        return {key for key, sha in hashes.items() if sha == wanted}
