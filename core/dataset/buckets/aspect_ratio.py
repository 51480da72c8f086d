"""Aspect ratio buckets: the training sizes, the bucket of each image, and how the image is resized and cropped to it.

The rules and numbers are sd-scripts' (reference: sections 3.1 to 3.3), so that an image trains at the same size as there.
Sizes are (width, height) in pixels.
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
    """How an image is fitted to its bucket: resized to cover it, then center-cropped. Sizes in pixels.

    image     original size
    bucket    training size
    resized   size before the crop
    crop      (left, top) of the bucket in the resized image
    """

    image: Size
    bucket: Size
    resized: Size
    crop: tuple[int, int]

    @property
    def pixel_key(self) -> tuple[Size, tuple[int, int], Size]:
        """(resized, crop, bucket), the part of a cache key that says how the image's pixels are resized and cropped."""
        return self.resized, self.crop, self.bucket

    @property
    def scale(self) -> float:
        """The resize factor, of the side with the larger one; above 1 the image is upscaled."""
        return max(self.resized[0] / self.image[0], self.resized[1] / self.image[1])

    @property
    def area_after_crop(self) -> float:
        """Fraction of the image's area left after the crop, 0 to 1."""
        return (self.bucket[0] * self.bucket[1]) / (self.resized[0] * self.resized[1])

    @property
    def frame(self) -> tuple[float, float, float, float]:
        """The crop as (left, top, right, bottom), fractions of the image's width and height."""
        (width, height), (left, top) = self.resized, self.crop
        return (left / width, top / height, (left + self.bucket[0]) / width, (top + self.bucket[1]) / height)


@dataclass(frozen=True)
class BucketPlan:
    """The buckets of a dataset, and the rule that assigns images to them.

    sizes        of the buckets, sorted by (width, height); empty with `no_upscale`, where the image's size decides
    area         highest number of pixels of a bucket
    step         sides are multiples of this number of pixels
    no_upscale   never enlarge images (bucket_no_upscale)
    advice       about the settings of the buckets
    """

    sizes: tuple[Size, ...]
    area: int
    step: int
    no_upscale: bool = False
    advice: tuple[Problem, ...] = ()
    _placements: dict[Size, Placement | None] = field(default_factory=dict, compare=False, repr=False)

    def assign(self, width: int, height: int) -> Placement | None:
        """Return the bucket and crop for an image of `width` x `height` pixels, or None if it is too narrow for any bucket."""
        if (width, height) not in self._placements:
            find = self._without_upscaling if self.no_upscale else self._nearest
            self._placements[width, height] = find(width, height)
        return self._placements[width, height]

    def _nearest(self, width: int, height: int) -> Placement:
        """Fit an image to the bucket of the same size, else to the one with the nearest width / height (the first of equals)."""
        ratio = width / height
        if (width, height) in self.sizes:
            bucket = (width, height)
        else:
            bucket = min(self.sizes, key=lambda size: abs(size[0] / size[1] - ratio))
        return fit_to_bucket((width, height), bucket)

    def _without_upscaling(self, width: int, height: int) -> Placement | None:
        """Downscale an image to the area if larger, then crop to multiples of the step; None if a side would be 0."""
        resized = (width, height)
        if width * height > self.area:
            shrunk = _shrink_to_area(width / height, self.area, self.step)
            if shrunk is None:
                return None
            resized = shrunk
        bucket = (resized[0] - resized[0] % self.step, resized[1] - resized[1] % self.step)
        return _placement((width, height), bucket, resized) if min(bucket) > 0 else None


def fit_to_bucket(image: Size, bucket: Size) -> Placement:
    """Return the placement that resizes an image to cover a bucket and crops the center."""
    width, height = image
    scale = bucket[1] / height if width / height > bucket[0] / bucket[1] else bucket[0] / width
    return _placement(image, bucket, (int(width * scale + 0.5), int(height * scale + 0.5)))


def _placement(image: Size, bucket: Size, resized: Size) -> Placement:
    """Return the placement of an image resized to `resized` with its center cropped to `bucket`."""
    return Placement(image, bucket, resized, ((resized[0] - bucket[0]) // 2, (resized[1] - bucket[1]) // 2))


def _shrink_to_area(ratio: float, area: int, step: int) -> Size | None:
    """Return the size of an aspect ratio (width / height) near `area` pixels, with one side a multiple of `step`.

    Of the two candidates, the one whose bucket has the nearer ratio; if equal, the one with the height on the step. None if a
    side would be 0.
    """

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
    """Return the buckets for these settings. Raises ProblemsError for settings that contradict each other."""
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
    """Return advice about min and max bucket resolutions that the user set and that are not multiples of the step.
    limits, rounded: (min, max) in pixels, before and after rounding"""
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
    """Return a plan with a single bucket, the resolution rounded down to multiples of SIDE_STEP."""
    fitting = (width - width % SIDE_STEP, height - height % SIDE_STEP)
    advice: tuple[Problem, ...] = ()
    if fitting != (width, height):
        what = f"The resolution {width} x {height} is rounded down to {fitting[0]} x {fitting[1]} (multiples of {SIDE_STEP})"
        fix = f"set the resolution to {fitting[0]} x {fitting[1]}"
        advice = (Problem(what, "dataset.resolution", fix, "advice", code="dataset.resolution-rounded"),)
    return BucketPlan((fitting,), fitting[0] * fitting[1], SIDE_STEP, advice=advice)


def rounded_limits(lowest: int, highest: int, step: int) -> tuple[int, int]:
    """Round the shortest side down (to at least one step) and the longest side up to multiples of `step`; return both."""
    return max(lowest // step * step, step), -(-highest // step) * step


def _square_side(area: int, step: int) -> int:
    """Return the side of the largest square of at most `area` pixels with a side that is a multiple of `step`; 0 if there is none."""
    return int(math.sqrt(area) // step) * step


def bucket_sizes(resolution: Size, lowest: int, highest: int, step: int) -> list[Size]:
    """Return the sizes of all buckets, sorted: the largest square, and for each width the tallest, in both orientations.

    resolution        (width, height); no bucket has more pixels, apart from the limits' rounding
    lowest, highest   limits of a side, multiples of `step`
    """
    area = resolution[0] * resolution[1]
    square = _square_side(area, step)
    sizes = {(square, square)}
    for width in range(lowest, highest + 1, step):
        height = min(highest, area // width // step * step)
        if height >= lowest:
            sizes |= {(width, height), (height, width)}
    return sorted(sizes)
