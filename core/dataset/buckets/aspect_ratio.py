"""Aspect ratio buckets: the training sizes, which one an image gets, how it is resized and cropped to it.

The rules and their numbers are sd-scripts' (reference: sections 3.1 to 3.3), so that an image trains at the size it
would have there. Sizes are (width, height) in pixels.
"""

import math
from dataclasses import dataclass, field

from core.record.problems import Problem, ProblemsError
from core.settings.dataset.images import ImageSettings

Size = tuple[int, int]

SIDE_STEP = 8  # every side is a multiple of it; families that need more say so (FamilyTraits.size_step)
MIN_AREA_AFTER_CROP = 0.05  # an image that keeps less than this fraction after the crop is too narrow for its bucket


@dataclass(frozen=True, slots=True)
class Placement:
    """How an image is fitted to its bucket: resized to cover it, then center-cropped.

    image    original size           bucket  training size
    resized  size before the crop    crop    (left, top) of the bucket in the resized image
    """

    image: Size
    bucket: Size
    resized: Size
    crop: tuple[int, int]

    @property
    def pixel_key(self) -> tuple[Size, tuple[int, int], Size]:
        """(resized, crop, bucket): what the pixels depend on besides the image, for keys of caches."""
        return self.resized, self.crop, self.bucket

    @property
    def scale(self) -> float:
        """Resize factor, the larger of both sides: above 1 the image is upscaled."""
        return max(self.resized[0] / self.image[0], self.resized[1] / self.image[1])

    @property
    def area_after_crop(self) -> float:
        """Fraction of the image's area left after the crop, 0 to 1."""
        return (self.bucket[0] * self.bucket[1]) / (self.resized[0] * self.resized[1])

    @property
    def frame(self) -> tuple[float, float, float, float]:
        """The crop as fractions of the image: (left, top, right, bottom), 0 to 1; drawn on thumbnails."""
        (width, height), (left, top) = self.resized, self.crop
        return (left / width, top / height, (left + self.bucket[0]) / width, (top + self.bucket[1]) / height)


@dataclass(frozen=True)
class BucketPlan:
    """The buckets of one dataset, and the rule that assigns images to them.

    sizes   sorted by (width, height); empty with no_upscale, where the image's size decides
    area    max pixels of a bucket        step    sides are multiples of it
    """

    sizes: tuple[Size, ...]
    area: int
    step: int
    no_upscale: bool = False
    advice: tuple[Problem, ...] = ()
    _placements: dict[Size, Placement | None] = field(default_factory=dict, compare=False, repr=False)

    def assign(self, width: int, height: int) -> Placement | None:
        """The bucket and crop for an image of this size; None when it is too narrow for any bucket."""
        if (width, height) not in self._placements:
            find = self._without_upscaling if self.no_upscale else self._nearest
            self._placements[width, height] = find(width, height)
        return self._placements[width, height]

    def _nearest(self, width: int, height: int) -> Placement:
        """The bucket with the nearest aspect ratio (absolute difference of width / height; the first of equals)."""
        ratio = width / height
        if (width, height) in self.sizes:
            bucket = (width, height)
        else:
            bucket = min(self.sizes, key=lambda size: abs(size[0] / size[1] - ratio))
        return fit_to_bucket((width, height), bucket)

    def _without_upscaling(self, width: int, height: int) -> Placement | None:
        """The placement without upscaling: downscaled to the area if larger, then cropped to multiples of the step."""
        resized = (width, height)
        if width * height > self.area:
            shrunk = _shrink_to_area(width / height, self.area, self.step)
            if shrunk is None:
                return None
            resized = shrunk
        bucket = (resized[0] - resized[0] % self.step, resized[1] - resized[1] % self.step)
        return _placement((width, height), bucket, resized) if min(bucket) > 0 else None


def fit_to_bucket(image: Size, bucket: Size) -> Placement:
    """The placement that resizes the image to cover the bucket and crops its center."""
    width, height = image
    scale = bucket[1] / height if width / height > bucket[0] / bucket[1] else bucket[0] / width
    return _placement(image, bucket, (int(width * scale + 0.5), int(height * scale + 0.5)))


def _placement(image: Size, bucket: Size, resized: Size) -> Placement:
    return Placement(image, bucket, resized, ((resized[0] - bucket[0]) // 2, (resized[1] - bucket[1]) // 2))


def _shrink_to_area(ratio: float, area: int, step: int) -> Size | None:
    """The size of this aspect ratio near `area` with one side a multiple of the step; of both candidates the one whose
    bucket has the nearer ratio (the height on the step when equal). None where a side would be 0."""

    def on_step(length: float) -> int:
        whole = int(length + 0.5)
        return whole - whole % step

    width = math.sqrt(area * ratio)
    width_first, height_first = on_step(width), on_step(area / width)
    height_of_width, width_of_height = on_step(width_first / ratio), on_step(height_first * ratio)
    if not (height_of_width and height_first):
        return None
    if abs(width_first / height_of_width - ratio) < abs(width_of_height / height_first - ratio):
        return (width_first, int(width_first / ratio + 0.5))
    return (int(height_first * ratio + 0.5), height_first)


# ---- the list of buckets


def plan_buckets(settings: ImageSettings) -> BucketPlan:
    """The buckets that the settings ask for. Raises ProblemsError where they contradict each other."""
    resolution = settings.resolution
    width, height = resolution if isinstance(resolution, tuple) else (resolution, resolution)
    step = settings.bucket_reso_steps
    if not settings.enable_bucket:
        return _without_bucketing(width, height)
    area = width * height
    if settings.bucket_no_upscale:
        return BucketPlan((), area, step, no_upscale=True)
    square = _square_side(area, step)
    if square == 0:
        what = f"The bucket step {step} is larger than the resolution {width} x {height}"
        fix = f"use a step of at most {math.isqrt(area) // 8 * 8}"
        raise ProblemsError.one(what, "dataset.bucket_reso_steps", fix, "dataset.bucket-step")
    highest = settings.max_bucket_reso or 2 * max(width, height)
    lowest = settings.min_bucket_reso
    advice: list[Problem] = []
    if lowest >= square or lowest > min(width, height):
        lowered = min(width, height) // 2
        if lowest != ImageSettings.model_fields["min_bucket_reso"].default:
            what = f"The min bucket resolution {lowest} is too high for {width} x {height}; {lowered} is used"
            fix = f"use {lowered} or less, or turn off bucketing"
            advice.append(Problem(what, "dataset.min_bucket_reso", fix, "advice", code="dataset.min-bucket-resolution"))
        lowest = lowered
    rounded = rounded_limits(lowest, highest, step)
    advice += _rounding_advice(settings, (lowest, highest), rounded)
    lowest, highest = rounded
    if highest < max(width, height):
        what = f"The max bucket resolution {highest} is below the resolution {width} x {height}"
        fix = f"leave it empty (twice the resolution), or use {max(width, height)} or more"
        raise ProblemsError.one(what, "dataset.max_bucket_reso", fix, code="dataset.max-bucket-resolution")
    return BucketPlan(tuple(bucket_sizes((width, height), lowest, highest, step)), area, step, advice=tuple(advice))


def _rounding_advice(settings: ImageSettings, limits: Size, rounded: Size) -> list[Problem]:
    """Advice on limits that were set and are no multiples of the step."""
    problems = []
    for name, limit, used in zip(("min", "max"), limits, rounded, strict=True):
        setting = f"{name}_bucket_reso"
        if getattr(settings, setting) == limit != used and limit != ImageSettings.model_fields[setting].default:
            what = f"The {name} bucket resolution {limit} is no multiple of the bucket step {settings.bucket_reso_steps}; {used} is used"
            fix = f"use {used}, or another step"
            code = f"dataset.{name}-bucket-resolution-rounded"
            problems.append(Problem(what, f"dataset.{setting}", fix, "advice", code=code))
    return problems


def _without_bucketing(width: int, height: int) -> BucketPlan:
    """The plan without bucketing: every image is cropped to one size."""
    fitting = (width - width % SIDE_STEP, height - height % SIDE_STEP)
    advice: tuple[Problem, ...] = ()
    if fitting != (width, height):
        what = f"The resolution {width} x {height} is rounded down to {fitting[0]} x {fitting[1]} (multiples of {SIDE_STEP})"
        fix = f"set the resolution to {fitting[0]} x {fitting[1]}"
        advice = (Problem(what, "dataset.resolution", fix, "advice", code="dataset.resolution-rounded"),)
    return BucketPlan((fitting,), fitting[0] * fitting[1], SIDE_STEP, advice=advice)


def rounded_limits(lowest: int, highest: int, step: int) -> tuple[int, int]:
    """Min side rounded down and max side rounded up to multiples of the step; the min is at least one step."""
    return max(lowest // step * step, step), -(-highest // step) * step


def _square_side(area: int, step: int) -> int:
    """Side of the largest square within the area whose side is a multiple of the step."""
    return int(math.sqrt(area) // step) * step


def bucket_sizes(resolution: Size, lowest: int, highest: int, step: int) -> list[Size]:
    """Every bucket of at most the resolution's area: for each width the tallest, in both orientations, sorted.

    lowest, highest   limits of a side, multiples of the step
    """
    area = resolution[0] * resolution[1]
    square = _square_side(area, step)
    sizes = {(square, square)}
    for width in range(lowest, highest + 1, step):
        height = min(highest, area // width // step * step)
        if height >= lowest:
            sizes |= {(width, height), (height, width)}
    return sorted(sizes)
