"""Assigning images to buckets at each resolution, and merging buckets that cannot fill a batch."""

from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from core.dataset.buckets.aspect_ratio import (
    MIN_AREA_AFTER_CROP,
    BucketPlan,
    Placement,
    Size,
    fit_to_bucket,
    plan_buckets,
)
from core.dataset.buckets.batches import Placed
from core.dataset.captions.files import Caption
from core.dataset.images.opening import LEAVE_OUT, SKIP
from core.dataset.sources.files import printable
from core.dataset.sources.image_info import ImageInfo
from core.record.problems import Problem, ProblemsError
from core.settings.dataset.concepts import Concept
from core.settings.dataset.images import ImageSettings

Key = tuple[str, str]
Bucket = tuple[str, Size]  # batch group and size
UNLIMITED = (1 << 30, 1 << 30)
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
    """Images with their buckets.

    placed       training and regularization images
    validation   held-out images
    refused      image key -> why the image cannot train
    """

    placed: list[Placed] = field(default_factory=list)
    validation: list[Placed] = field(default_factory=list)
    refused: dict[Key, str] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)


def place(
    images: Sequence[ImageInfo],
    concepts: Sequence[Concept],
    caption_of: Callable[[ImageInfo], Caption],
    *,
    held_out: frozenset[Key] = frozenset(),
    merge: bool = False,
    processes: int = 1,
    level: str = "error",
) -> Placing:
    """Assign every image a bucket at each resolution of its folder; images that get none are in the result's `refused`.

    concepts     the folders, indexed by `ImageInfo.concept`
    caption_of   returns the caption of an image
    held_out     keys of validation images (validation_split.py)
    merge        move images of buckets that cannot fill one global batch to the nearest bucket
    processes    GPUs that share a global batch
    level        "error" or "advice": severity of problems about images that are too narrow
    """
    result = Placing()
    plans = _BucketPlans(result.problems)
    for image in images:
        concept = concepts[image.concept]
        placements = plans.placements(image, concept)
        if placements is None:
            result.refused[image.key] = "has no bucket: the bucket settings are invalid"
            continue
        fitting = [
            (placement, name)
            for placement, name in placements
            if placement is not None and placement.area_after_crop >= MIN_AREA_AFTER_CROP
        ]
        if not fitting:
            result.refused[image.key] = "is too narrow for any bucket"
            result.problems.append(_too_narrow(image, concept.images, level))
            continue
        caption = caption_of(image)
        validates = image.key in held_out
        for placement, name in fitting[:1] if validates else fitting:
            (result.validation if validates else result.placed).append(Placed(image, placement, caption, concept, name))
    if merge:
        result.placed = merged(result.placed, processes)
    return result


class _BucketPlans:
    """Bucket plans, one for each distinct set of size settings; their problems are appended to `problems` once."""

    def __init__(self, problems: list[Problem]):
        self._problems = problems
        self._known: dict[tuple, BucketPlan | None] = {}

    def placements(self, image: ImageInfo, concept: Concept) -> list[tuple[Placement | None, str]] | None:
        """Return (placement, variant) at each resolution of an image; None if the bucket settings are invalid.

        A placement is None if the image is too narrow; the variant is "" for the first resolution, else such as "1024x1024".
        """
        size = (image.width, image.height)
        if image.metadata_bucket is not None:
            return [(fit_to_bucket(size, image.metadata_bucket), "")]
        placements: list[tuple[Placement | None, str]] = []
        for number, settings in enumerate(_at_each_resolution(concept.images)):
            plan = self._plan(settings)
            if plan is None:
                return None
            placement = plan.assign(*size)
            if any(placement == other for other, _ in placements):  # never upscaled: the same at every resolution
                continue
            placements.append((placement, "" if number == 0 else _resolution_name(settings.resolution)))
        return placements

    def _plan(self, settings: ImageSettings) -> BucketPlan | None:
        """Return the bucket plan for the settings, computed once; None if they are invalid. Records problems."""
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


def _at_each_resolution(settings: ImageSettings) -> list[ImageSettings]:
    """Return a copy of the settings for each different resolution, in order."""
    resolutions = [settings.resolution, *settings.more_resolutions]
    return [settings.model_copy(update={"resolution": each}) for each in dict.fromkeys(resolutions)]


def _resolution_name(resolution: int | Size) -> str:
    """Return a resolution as text, such as "768x512"; a single number is both sides."""
    width, height = resolution if isinstance(resolution, tuple) else (resolution, resolution)
    return f"{width}x{height}"


def _too_narrow(image: ImageInfo, settings: ImageSettings, level: str) -> Problem:
    """Return the problem of an image that is too narrow for any bucket; with level "advice" the image is skipped."""
    skipped = " (skipped)" if level == "advice" else ""
    what = (
        f"The image {printable(image.relative)} ({image.width} x {image.height}) is too narrow for any bucket{skipped}"
    )
    fix = "crop it"
    if settings.bucket_no_upscale and min(image.width, image.height) < settings.bucket_reso_steps:
        fix = f"turn off '{settings.title_of('bucket_no_upscale')}' or lower '{settings.title_of('bucket_reso_steps')}'"
    elif not settings.enable_bucket:
        fix = f"turn on '{settings.title_of('enable_bucket')}', or crop it"
    fix += " to train on it" if level == "advice" else f", or {LEAVE_OUT}"
    return Problem(what, printable(image.path), fix, level, SKIP, code="image.too-narrow")


# ---- buckets that cannot fill a batch


def merged(placed: Sequence[Placed], processes: int = 1) -> list[Placed]:
    """Return `placed`, with images of buckets that have fewer views (images times repeats) than a global batch moved to another.

    That is the nearest by aspect ratio in the same batch group. The smallest bucket moves first; a bucket that has grown to a
    batch stays. All images of a batch group count together. Images with bucket_no_upscale only go where none of them would be
    upscaled.

    processes   GPUs that share a global batch
    """
    views: Counter[Bucket] = Counter()
    members: defaultdict[Bucket, list[int]] = defaultdict(list)
    limit: dict[Bucket, Size] = {}  # the largest size that a bucket's images fill without upscaling
    result = list(placed)
    for index, each in enumerate(result):
        views[each.bucket] += each.repeats
        members[each.bucket].append(index)
        limit[each.bucket] = _smaller_of_both(limit.get(each.bucket), _max_size(each))
    batch = {each.bucket: each.concept.images.train_batch_size * processes for each in placed}
    while True:
        small = [bucket for bucket in members if views[bucket] < batch[bucket]]
        small.sort(key=lambda bucket: (views[bucket], bucket))
        moved = next((move for bucket in small if (move := _nearest(bucket, members, limit[bucket])) is not None), None)
        if moved is None:
            return result
        bucket, target = moved
        for index in members.pop(bucket):
            each = result[index]
            result[index] = replace(each, placement=fit_to_bucket((each.image.width, each.image.height), target[1]))
            members[target].append(index)
        views[target] += views.pop(bucket)
        limit[target] = _smaller_of_both(limit[target], limit.pop(bucket))


def _max_size(placed: Placed) -> Size:
    """Return the largest size to which an image may be resized: its own with bucket_no_upscale, else UNLIMITED."""
    settings = placed.concept.images
    limited = settings.enable_bucket and settings.bucket_no_upscale
    return (placed.image.width, placed.image.height) if limited else UNLIMITED


def _smaller_of_both(size: Size | None, other: Size) -> Size:
    """Return the smaller width and the smaller height of two sizes; `other` if `size` is None."""
    return other if size is None else (min(size[0], other[0]), min(size[1], other[1]))


def _nearest(bucket: Bucket, members: Mapping[Bucket, object], max_size: Size) -> tuple[Bucket, Bucket] | None:
    """Return (`bucket`, the bucket to merge it into): the nearest of its group by aspect ratio, or None if there is none.

    The area of the other bucket is at least half and at most twice as large.

    members    all buckets, as keys
    max_size   (width, height) that the images of `bucket` fill without upscaling
    """
    group, (width, height) = bucket
    others = [
        other
        for other in members
        if other != bucket
        and other[0] == group
        and other[1][0] <= max_size[0]
        and other[1][1] <= max_size[1]
        and 0.5 <= other[1][0] * other[1][1] / (width * height) <= 2
    ]
    if not others:
        return None
    return bucket, min(others, key=lambda other: (abs(other[1][0] / other[1][1] - width / height), other))
