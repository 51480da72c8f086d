"""From images to what trains: held-out ones apart, each of the others at its size or sizes."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from hashlib import sha256

from core.dataset.batches import Placed
from core.dataset.buckets import MIN_KEPT, BucketPlan, Placement, Size, cover, plan_buckets
from core.dataset.caption_files import Caption
from core.dataset.files import printable
from core.dataset.opening import LEAVE_OUT, SKIP
from core.dataset.scan import ImageInfo
from core.record.problems import Problem, ProblemsError
from core.settings.concepts import Concept, own_settings
from core.settings.images import ImageSettings

Key = tuple[str, str]
Bucket = tuple[str, Size]  # what shares batches, and the size
UNLIMITED = (1 << 30, 1 << 30)
AUTOMATIC_FROM, AUTOMATIC_SHARE, AUTOMATIC_LEAST, AUTOMATIC_MOST = 40, 0.03, 2, 16  # images held out without a word
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
    """Where every image went. refused: key -> why it does not train."""

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
    """Give every image its place at each resolution of its folder.

    held_out   keys of validation images (see `held_out`)
    merge      images of buckets that cannot fill one batch, of all processes, go to the nearest bucket
    level      of the finding about images that are too narrow
    """
    result = Placing()
    plans = _Plans(images, concepts, result.problems)
    for image in images:
        concept = concepts[image.concept]
        placements = plans.places(image, concept)
        if placements is None:
            result.refused[image.key] = "has no bucket: the sizes cannot be planned"
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
    """The sizes of each folder, planned once for each different wish. What contradicts itself is said once."""

    def __init__(self, images: Sequence[ImageInfo], concepts: Sequence[Concept], problems: list[Problem]):
        self._problems = problems
        self._known: dict[tuple, BucketPlan | None] = {}
        self._own = _own_buckets(images, concepts, problems)

    def places(self, image: ImageInfo, concept: Concept) -> list[tuple[Placement | None, str]] | None:
        """The placement for each resolution with the variant's name; None where the sizes cannot be planned."""
        size = (image.width, image.height)
        if image.concept in self._own and image.own_bucket is not None:
            return [(cover(size, image.own_bucket), "")]
        found: list[tuple[Placement | None, str]] = []
        for number, settings in enumerate(_sizes_of(concept.images)):
            plan = self._plan(settings)
            if plan is None:
                return None
            placement = plan.assign(*size)
            if any(placement == other for other, _ in found):  # never enlarged: the same at every resolution
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
    """The settings once for each resolution asked for."""
    wanted = [settings.resolution, *settings.more_resolutions]
    return [settings.model_copy(update={"resolution": each}) for each in dict.fromkeys(wanted)]


def _name(resolution: int | Size) -> str:
    width, height = resolution if isinstance(resolution, tuple) else (resolution, resolution)
    return f"{width}x{height}"


def _own_buckets(images: Sequence[ImageInfo], concepts: Sequence[Concept], problems: list[Problem]) -> set[int]:
    """Numbers of the folders whose metadata gives every image its size, as prepare_buckets_latents writes it."""
    with_size = Counter(each.concept for each in images if each.own_bucket is not None)
    whole = Counter(each.concept for each in images)
    found = {number for number, count in with_size.items() if count == whole[number]}
    for number, count in with_size.items():
        if number not in found:
            what = f"{count} of {whole[number]} images have a size in the metadata; as not all have, none is used."
            fix = "Write the sizes of all, or of none; the sizes are planned anew."
            problems.append(Problem(what, printable(concepts[number].source.metadata_file or ""), fix, "advice"))
    return found


def _too_narrow(image: ImageInfo, level: str) -> Problem:
    what = f"The image {printable(image.relative)} ({image.width} x {image.height}) is too narrow for any bucket."
    fix = "It is left out. Crop it by hand to train it." if level == "advice" else f"Crop it by hand, or {LEAVE_OUT}."
    return Problem(what, printable(image.path), fix, level, SKIP)


# ---- buckets that cannot fill a batch


def merged(placed: Sequence[Placed], processes: int = 1) -> list[Placed]:
    """Images of buckets with fewer views than a batch go to the nearest bucket by shape that they can share.

    The smallest bucket moves first; a bucket that has grown to a batch stays. Regularization and other folders that
    share batches count together. Images that are never enlarged only go where none of them would be.
    """
    views: Counter[Bucket] = Counter()
    members: defaultdict[Bucket, list[int]] = defaultdict(list)
    most: dict[Bucket, Size] = {}  # the largest size that a bucket's images fill without being enlarged
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
    """The largest size that the image may have: its own where it is never enlarged."""
    settings = placed.concept.images
    kept = settings.enable_bucket and settings.bucket_no_upscale
    return (placed.image.width, placed.image.height) if kept else UNLIMITED


def _smaller(one: Size | None, other: Size) -> Size:
    return other if one is None else (min(one[0], other[0]), min(one[1], other[1]))


def _nearest(bucket: Bucket, members: Mapping[Bucket, object], most: Size) -> tuple[Bucket, Bucket] | None:
    """(bucket, the other bucket of the same group that is nearest in shape), near in area too and of at most that size."""
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
    """Keys of the images that never train: whole folders of that role, those named, and each folder's share; else the
    few that find the best checkpoint (see `_automatic`).

    contents   images -> SHA-256 of their bytes; asked only where a share is held out

    The share goes by content, not by name or place: a folder that is renamed or moved holds out the same images, and
    two copies of an image are never on both sides, wherever they lie. A file that several entries reach (a folder at
    two resolutions) is held out of all of them.
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
    """Images of any folder whose content is held out. Only those that are as long in bytes are read."""
    lengths = {each.bytes for each in images if each.key in out}
    alike = [each for each in images if each.bytes in lengths]
    if len(alike) == len(out):
        return set()
    content = contents(alike)
    held = {content[key] for key in out}
    return {each.key for each in alike if content[each.key] in held}


def _share(members: Sequence[ImageInfo], share: float, contents: Mapping[Key, str], seed: int) -> set[Key]:
    """The share of the images whose content's hash comes first, copies together; at least one of two or more."""
    order = {each.key: sha256(f"{seed} {contents[each.key]}".encode()).hexdigest() for each in members}
    wanted = len(members) if share >= 1 else min(max(round(share * len(members)), 1), len(members) - 1)
    if wanted <= 0:
        return set()
    last = sorted(order.values())[wanted - 1]
    chosen = {key for key, place in order.items() if place <= last}
    return chosen if len(chosen) < len(members) or share >= 1 else set()


# ---- held out to find the best checkpoint


def automatic_count(images: int) -> int:
    """How many of so many training images are held out to find the best checkpoint."""
    return min(max(round(AUTOMATIC_SHARE * images), AUTOMATIC_LEAST), AUTOMATIC_MOST) if images >= AUTOMATIC_FROM else 0


def _automatic(images: Sequence[ImageInfo], concepts: Sequence[Concept], contents: Callable, seed: int) -> set[Key]:
    """A few training images, from each folder in proportion and at most half of it, in an order that follows from the seed
    and their names: hashing every file of a large dataset before each look would cost minutes.

    Copies go together or not at all: those within a folder count as many, those across folders or roles stay.
    A folder whose own share is set, be it to 0, gives none.
    """
    if not any(each.validation.best_checkpoint == "auto" for each in concepts):
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
    """So many of each folder, in proportion (largest remainders first) and at most half of one."""
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
    """Which images are copies of one another. Only those that are as long in bytes as another one are read."""

    def __init__(self, images: Sequence[ImageInfo], contents: Callable):
        self._contents = contents
        self._by_length: defaultdict[int, list[ImageInfo]] = defaultdict(list)
        self._known: dict[int, Mapping[Key, str]] = {}
        for each in images:
            self._by_length[each.bytes].append(each)

    def of(self, image: ImageInfo) -> set[Key]:
        """The image and its copies. A file that several entries reach counts once, as the last of them."""
        same = {each.path: each for each in self._by_length[image.bytes]}
        if len(same) == 1:
            return {image.key}
        if image.bytes not in self._known:
            self._known[image.bytes] = self._contents(list(same.values()))
        known = self._known[image.bytes]
        return {key for key, content in known.items() if content == known[image.key]}
