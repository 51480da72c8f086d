"""Selection of the validation set, by file content instead of names."""

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
    """Return the keys of the validation images.

    They are the images of folders with that role, images named in the settings, and each folder's validation split; without
    any of these, a few training images to find the best checkpoint (see `_automatic`).

    concepts    the folders, indexed by `ImageInfo.concept`
    hashes_of   images -> {key: SHA-256 of the file's bytes}; called only for a validation split and for files of equal size

    A folder's subfolders are split one by one, as sd-scripts splits each subset and with its rounding, so that every concept is
    measured; if all are too small to give an image, the folder is split as a whole.
    The split goes by content, so a renamed or moved folder gives the same split, and copies of an image are never on both
    sides. A file in several dataset entries (such as a folder at two resolutions) is held out of all of them.
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
        named_keys = {each.key for each in members if each.relative in named_images or each.path.name in named_images}
        keys |= named_keys
        if share > 0:
            hashes = hashes_of(members)
            subfolders: defaultdict[str, list[ImageInfo]] = defaultdict(list)
            for image in members:
                subfolders[image.source].append(image)
            splits = (_split(subfolder, share, hashes, seed) for subfolder in subfolders.values())
            by_split |= set().union(*splits) or _split(members, share, hashes, seed, minimum=1)
    if not any(concept.holds_out for concept in concepts):
        keys |= _automatic(images, concepts, copies, seed)
    keys |= {key for image in images if image.key in by_split for key in copies.of(image)}
    files = {image.path for image in images if image.key in keys}
    keys |= {image.key for image in images if image.path in files}
    return frozenset(key for key in keys if roles[key] != "regularization")


def _split(
    members: Sequence[ImageInfo], share: float, hashes: Mapping[Key, str], seed: int, minimum: int = 0
) -> set[Key]:
    """Return the keys of the fraction `share` (0 to 1) of the images whose hash of seed and content sorts first.

    hashes   key -> SHA-256 of the file's bytes; copies stay together
    minimum  smallest number of images
    Never returns all images, unless `share` is 1.
    """
    order = {each.key: sha256(f"{seed} {hashes[each.key]}".encode()).hexdigest() for each in members}
    count = len(members) if share >= 1 else min(max(round(share * len(members)), minimum), len(members) - 1)
    if count <= 0:
        return set()
    highest = sorted(order.values())[count - 1]
    keys = {key for key, digest in order.items() if digest <= highest}
    return keys if len(keys) < len(members) or share >= 1 else set()


# ---- held out to find the best checkpoint


def automatic_count(images: int) -> int:
    """Return how many of `images` training images are held out to find the best checkpoint; 0 for small datasets."""
    return min(max(round(AUTOMATIC_SHARE * images), AUTOMATIC_LEAST), AUTOMATIC_MOST) if images >= AUTOMATIC_FROM else 0


def _automatic(images: Sequence[ImageInfo], concepts: Sequence[Concept], copies: CopyFinder, seed: int) -> set[Key]:
    """Return the keys of a few training images, from each folder in proportion and at most half of it.

    Images are ordered by a hash of seed and name, because hashing every file before each scan would take minutes for a large
    dataset. Copies within a folder are taken together and count each; images with copies in other folders or roles are not
    taken. A folder with a validation_split of its own, even 0, gives none.
    """
    if not any(each.validation.automatic for each in concepts):
        return set()
    others = {each.path for each in images if concepts[each.concept].role != "train"}
    training = {each.path: each for each in images if each.path not in others}
    count = automatic_count(len(training))
    if not count:
        return set()
    folders: defaultdict[str, list[ImageInfo]] = defaultdict(list)
    for each in training.values():
        if "validation_split" not in overridden_settings(concepts[each.concept].source):
            folders[each.source].append(each)
    quotas = _quotas({name: len(members) for name, members in folders.items()}, count)
    keys: set[Key] = set()
    for name, remaining in quotas.items():
        members = {each.key for each in folders[name]}
        for each in sorted(folders[name], key=lambda each: sha256(f"{seed} {each.key}".encode()).hexdigest()):
            group = copies.of(each) if remaining and each.key not in keys else set()
            if 0 < len(group) <= remaining and group <= members:
                keys |= group
                remaining -= len(group)
    return keys


def _quotas(sizes: Mapping[str, int], target: int) -> dict[str, int]:
    """Return folder -> number of images, `target` in all, in proportion to `sizes` (largest remainders) and at most half of each."""
    total = sum(sizes.values())
    exact = {name: target * size / total for name, size in sizes.items()}
    counts = {name: min(int(exact[name]), size // 2) for name, size in sizes.items()}
    order = sorted(sizes, key=lambda name: (int(exact[name]) - exact[name], -sizes[name], name))
    remaining = target - sum(counts.values())
    while remaining > 0 and any(counts[name] < sizes[name] // 2 for name in order):
        for name in order:
            if remaining > 0 and counts[name] < sizes[name] // 2:
                counts[name] += 1
                remaining -= 1
    return counts


class CopyFinder:
    """Finds copies of an image: files with the same SHA-256. Only files of equal size are hashed.
    hashes_of: images -> {key: SHA-256}"""

    def __init__(self, images: Sequence[ImageInfo], hashes_of: Callable):
        self._hashes_of = hashes_of
        self._by_length: defaultdict[int, list[ImageInfo]] = defaultdict(list)
        self._hashes: dict[int, Mapping[Key, str]] = {}  # by file size
        for each in images:
            self._by_length[each.bytes].append(each)

    def of(self, image: ImageInfo) -> set[Key]:
        """Return the keys of an image and its copies. A file in several dataset entries counts once, by its last entry's key."""
        same = {each.path: each for each in self._by_length[image.bytes]}
        if len(same) == 1:
            return {image.key}
        if image.bytes not in self._hashes:
            self._hashes[image.bytes] = self._hashes_of(list(same.values()))
        hashes = self._hashes[image.bytes]
        digest = hashes[same[image.path].key]
        return {key for key, sha in hashes.items() if sha == digest}
