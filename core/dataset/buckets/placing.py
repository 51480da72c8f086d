"""Assign images to buckets at each resolution, and split off the validation set."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from hashlib import sha256

from core.dataset.buckets.batches import Placed
from core.dataset.buckets.sizes import MIN_KEPT, BucketPlan, Placement, Size, cover, plan_buckets
from core.dataset.captions.files import Caption
from core.dataset.images.opening import LEAVE_OUT, SKIP
from core.dataset.sources.files import printable
from core.dataset.sources.image_info import ImageInfo
from core.record.problems import Problem, ProblemsError
from core.settings.dataset.concepts import Concept, own_settings
from core.settings.dataset.images import ImageSettings

Key = tuple[str, str]
Bucket = tuple[str, Size]  # batch group and size
UNLIMITED = (1 << 30, 1 << 30)
AUTOMATIC_FROM, AUTOMATIC_SHARE, AUTOMATIC_LEAST, AUTOMATIC_MOST = 40, 0.03, 2, 16  # automatic validation split
SIZE_SETTINGS = (
    "resolution",
    "enable_bucket",
    "min_bucket_reso",
    "max_bucket_reso",
    "bucket_reso_steps",
    "bucket_no_upscale",
)


@dataclass
class Placing:
    """The placed images. refused: key -> why it does not train."""

    placed: list[Placed] = field(default_factory=list)
    validation: list[Placed] = field(default_factory=list)
    refused: dict[Key, str] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)


def place(
    images: Sequence[ImageInfo],
    concepts: Sequence[Concept],
    captions: Callable[[ImageInfo], Caption],
    *,
    held_out: frozenset[Key] = frozenset(),
    merge: bool = False,
    processes: int = 1,
    level: str = "error",
) -> Placing:
    """Assign every image a bucket at each resolution of its folder.

    held_out   keys of validation images (see `held_out`)
    merge      move images of buckets that cannot fill one global batch to the nearest bucket
    level      of the problem about images that are too narrow
    """
    result = Placing()
    plans = _Plans(images, concepts, result.problems)
    for image in images:
        concept = concepts[image.concept]
        placements = plans.places(image, concept)
        if placements is None:
            result.refused[image.key] = "has no bucket: the bucket settings are invalid"
            continue
        fitting = [(place, name) for place, name in placements if place is not None and place.kept >= MIN_KEPT]
        if not fitting:
            result.refused[image.key] = "is too narrow for any bucket"
            result.problems.append(_too_narrow(image, level))
            continue
        caption = captions(image)
        out = image.key in held_out
        for placement, name in fitting[:1] if out else fitting:
            (result.validation if out else result.placed).append(Placed(image, placement, caption, concept, name))
    if merge:
        result.placed = merged(result.placed, processes)
    return result


class _Plans:
    """Bucket plans, one for each distinct set of size settings; problems are reported once."""

    def __init__(self, images: Sequence[ImageInfo], concepts: Sequence[Concept], problems: list[Problem]):
        self._problems = problems
        self._known: dict[tuple, BucketPlan | None] = {}
        self._own = _own_buckets(images, concepts, problems)

    def places(self, image: ImageInfo, concept: Concept) -> list[tuple[Placement | None, str]] | None:
        """The placement at each resolution with the variant's name; None where the settings are invalid."""
        size = (image.width, image.height)
        if image.concept in self._own and image.own_bucket is not None:
            return [(cover(size, image.own_bucket), "")]
        found: list[tuple[Placement | None, str]] = []
        for number, settings in enumerate(_sizes_of(concept.images)):
            plan = self._plan(settings)
            if plan is None:
                return None
            placement = plan.assign(*size)
            if any(placement == other for other, _ in found):  # never upscaled: the same at every resolution
                continue
            found.append((placement, "" if number == 0 else _name(settings.resolution)))
        return found

    def _plan(self, settings: ImageSettings) -> BucketPlan | None:
        key = tuple(getattr(settings, name) for name in SIZE_SETTINGS)
        if key not in self._known:
            self._known[key] = None
            try:
                plan = plan_buckets(settings)
            except ProblemsError as error:
                self._problems.extend(problem for problem in error.problems if problem not in self._problems)
                return None
            self._problems.extend(problem for problem in plan.advice if problem not in self._problems)
            self._known[key] = plan
        return self._known[key]


def _sizes_of(settings: ImageSettings) -> list[ImageSettings]:
    """The settings once for each resolution."""
    wanted = [settings.resolution, *settings.more_resolutions]
    return [settings.model_copy(update={"resolution": each}) for each in dict.fromkeys(wanted)]


def _name(resolution: int | Size) -> str:
    width, height = resolution if isinstance(resolution, tuple) else (resolution, resolution)
    return f"{width}x{height}"


def _own_buckets(images: Sequence[ImageInfo], concepts: Sequence[Concept], problems: list[Problem]) -> set[int]:
    """Numbers of the folders whose metadata sets every image's bucket, as prepare_buckets_latents writes it."""
    with_size = Counter(each.concept for each in images if each.own_bucket is not None)
    whole = Counter(each.concept for each in images)
    found = {number for number, count in with_size.items() if count == whole[number]}
    for number, count in with_size.items():
        if number not in found:
            where = printable(concepts[number].source.metadata_file or "")
            what = f"Only {count} of {whole[number]} images have a bucket in the metadata, so all are assigned by size"
            fix = "add train_resolution to all entries, or to none"
            problems.append(Problem(what, where, fix, "advice", code="metadata.partial-resolutions"))
    return found


def _too_narrow(image: ImageInfo, level: str) -> Problem:
    skipped = " (skipped)" if level == "advice" else ""
    what = (
        f"The image {printable(image.relative)} ({image.width} x {image.height}) is too narrow for any bucket{skipped}"
    )
    fix = "crop it to train on it" if level == "advice" else f"crop it, or {LEAVE_OUT}"
    return Problem(what, printable(image.path), fix, level, SKIP, code="image.too-narrow")


# ---- buckets that cannot fill a batch


def merged(placed: Sequence[Placed], processes: int = 1) -> list[Placed]:
    """Move images of buckets with fewer views than a batch to the nearest bucket by aspect ratio in the same group.

    The smallest bucket moves first; a bucket that has grown to a batch stays. Regularization and other folders that
    share batches count together. Images with bucket_no_upscale only go where none of them would be upscaled.
    """
    views: Counter[Bucket] = Counter()
    members: defaultdict[Bucket, list[int]] = defaultdict(list)
    most: dict[Bucket, Size] = {}  # the largest size that a bucket's images fill without upscaling
    result = list(placed)
    for index, each in enumerate(result):
        views[each.bucket] += each.repeats
        members[each.bucket].append(index)
        most[each.bucket] = _smaller(most.get(each.bucket), _largest(each))
    batch = {each.bucket: each.concept.images.train_batch_size * processes for each in placed}
    while True:
        small = [bucket for bucket in members if views[bucket] < batch[bucket]]
        small.sort(key=lambda bucket: (views[bucket], bucket))
        moved = next((move for bucket in small if (move := _nearest(bucket, members, most[bucket])) is not None), None)
        if moved is None:
            return result
        bucket, target = moved
        for index in members.pop(bucket):
            each = result[index]
            result[index] = replace(each, placement=cover((each.image.width, each.image.height), target[1]))
            members[target].append(index)
        views[target] += views.pop(bucket)
        most[target] = _smaller(most[target], most.pop(bucket))


def _largest(placed: Placed) -> Size:
    """The largest size the image may get: its own with bucket_no_upscale."""
    settings = placed.concept.images
    kept = settings.enable_bucket and settings.bucket_no_upscale
    return (placed.image.width, placed.image.height) if kept else UNLIMITED


def _smaller(one: Size | None, other: Size) -> Size:
    return other if one is None else (min(one[0], other[0]), min(one[1], other[1]))


def _nearest(bucket: Bucket, members: Mapping[Bucket, object], most: Size) -> tuple[Bucket, Bucket] | None:
    """(bucket, the nearest other bucket of the group by aspect ratio, with at least half and at most twice its area)."""
    group, (width, height) = bucket
    others = [
        other
        for other in members
        if other != bucket
        and other[0] == group
        and other[1][0] <= most[0]
        and other[1][1] <= most[1]
        and 0.5 <= other[1][0] * other[1][1] / (width * height) <= 2
    ]
    if not others:
        return None
    return bucket, min(others, key=lambda other: (abs(other[1][0] / other[1][1] - width / height), other))


# ---- validation


def held_out(
    images: Sequence[ImageInfo],
    concepts: Sequence[Concept],
    contents: Callable[[Sequence[ImageInfo]], Mapping[Key, str]],
    seed: int,
) -> frozenset[Key]:
    """Keys of the validation images: folders with that role, images named, and each folder's validation split; else a
    few for finding the best checkpoint (see `_automatic`).

    contents   images -> SHA-256 of their bytes; called only with a validation split

    The split goes by content, not by name or path: a renamed or moved folder gives the same split, and two copies of an
    image are never on both sides. A file in several entries (a folder at two resolutions) is held out of all of them.
    """
    found: set[Key] = set()
    by_share: set[Key] = set()
    roles = {image.key: concepts[image.concept].role for image in images}
    folders: defaultdict[int, list[ImageInfo]] = defaultdict(list)
    for image in images:
        folders[image.concept].append(image)
    for number, members in folders.items():
        source, share = concepts[number].source, concepts[number].validation.validation_split
        if source.role == "validation":
            found |= {image.key for image in members}
        if source.role != "train":
            continue
        named = set(source.validation_images)
        chosen = {each.key for each in members if each.relative in named or each.path.name in named}
        found |= chosen
        if share > 0:
            by_share |= _share(members, share, contents(members), seed)
    if not any(concept.holds_out for concept in concepts):
        found |= _automatic(images, concepts, contents, seed)
    by_share |= _copies(by_share, images, contents)
    found |= by_share
    files = {image.path for image in images if image.key in found}
    found |= {image.key for image in images if image.path in files}
    return frozenset(key for key in found if roles[key] != "regularization")


def _copies(out: set[Key], images: Sequence[ImageInfo], contents: Callable) -> set[Key]:
    """Images of any folder with the content of a held-out image. Only files of equal size are read."""
    lengths = {each.bytes for each in images if each.key in out}
    alike = [each for each in images if each.bytes in lengths]
    if len(alike) == len(out):
        return set()
    content = contents(alike)
    held = {content[key] for key in out}
    return {each.key for each in alike if content[each.key] in held}


def _share(members: Sequence[ImageInfo], share: float, contents: Mapping[Key, str], seed: int) -> set[Key]:
    """The fraction of the images whose content hash sorts first, copies together; at least one of two or more."""
    order = {each.key: sha256(f"{seed} {contents[each.key]}".encode()).hexdigest() for each in members}
    wanted = len(members) if share >= 1 else min(max(round(share * len(members)), 1), len(members) - 1)
    if wanted <= 0:
        return set()
    last = sorted(order.values())[wanted - 1]
    chosen = {key for key, place in order.items() if place <= last}
    return chosen if len(chosen) < len(members) or share >= 1 else set()


# ---- held out to find the best checkpoint


def automatic_count(images: int) -> int:
    """How many of this many training images are held out to find the best checkpoint."""
    return min(max(round(AUTOMATIC_SHARE * images), AUTOMATIC_LEAST), AUTOMATIC_MOST) if images >= AUTOMATIC_FROM else 0


def _automatic(images: Sequence[ImageInfo], concepts: Sequence[Concept], contents: Callable, seed: int) -> set[Key]:
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
        if "validation_split" not in own_settings(concepts[each.concept].source):
            folders[each.source].append(each)
    quotas = _quotas({name: len(members) for name, members in folders.items()}, wanted)
    alike = _Alike(images, contents)
    found: set[Key] = set()
    for name, left in quotas.items():
        members = {each.key for each in folders[name]}
        for each in sorted(folders[name], key=lambda each: sha256(f"{seed} {each.key}".encode()).hexdigest()):
            group = alike.of(each) if left and each.key not in found else set()
            if 0 < len(group) <= left and group <= members:
                found |= group
                left -= len(group)
    return found


def _quotas(sizes: Mapping[str, int], wanted: int) -> dict[str, int]:
    """Number of images per folder, in proportion (largest remainders first) and at most half of each."""
    whole = sum(sizes.values())
    exact = {name: wanted * size / whole for name, size in sizes.items()}
    given = {name: min(int(exact[name]), size // 2) for name, size in sizes.items()}
    order = sorted(sizes, key=lambda name: (int(exact[name]) - exact[name], -sizes[name], name))
    left = wanted - sum(given.values())
    while left > 0 and any(given[name] < sizes[name] // 2 for name in order):
        for name in order:
            if left > 0 and given[name] < sizes[name] // 2:
                given[name] += 1
                left -= 1
    return given


class _Alike:
    """Which images are copies of one another. Only files of equal size are read."""

    def __init__(self, images: Sequence[ImageInfo], contents: Callable):
        self._contents = contents
        self._by_length: defaultdict[int, list[ImageInfo]] = defaultdict(list)
        self._known: dict[int, Mapping[Key, str]] = {}
        for each in images:
            self._by_length[each.bytes].append(each)

    def of(self, image: ImageInfo) -> set[Key]:
        """The image and its copies. A file in several entries counts once, as the last of them."""
        same = {each.path: each for each in self._by_length[image.bytes]}
        if len(same) == 1:
            return {image.key}
        if image.bytes not in self._known:
            self._known[image.bytes] = self._contents(list(same.values()))
        known = self._known[image.bytes]
        return {key for key, content in known.items() if content == known[image.key]}
