"""Random augmentation of images: flip, crop, colors. Each random choice has an address (core/record/draws.py)."""

from __future__ import annotations

import random
import re
from dataclasses import dataclass
from pathlib import PurePath
from typing import TYPE_CHECKING

from core.dataset.buckets.aspect_ratio import Placement, Size
from core.record import draws
from core.settings.dataset.images import ImageSettings
from core.settings.rules.dataset import random_augmentations

if TYPE_CHECKING:
    from core.dataset.buckets.batches import Placed

# Reference: sections 3.4 and 3.6, that is sd-scripts' own numbers.
FLIP_SHARE = 0.5
COLOR_SHARE = 0.33
_COLOR_DRAW = "colour"  # an address (core/record/draws.py): with another word every training of a seed would change
HUE_SHIFT = 8.0  # at most, in OpenCV's hue units: 180 are a full circle
GAMMA = (0.95, 1.05)
_FACE_NAME = re.compile(r".+_(\d+)_(\d+)_(\d+)_(\d+)", re.DOTALL)


@dataclass(frozen=True, slots=True)
class View:
    """An augmented view of an image.

    placement   as planned, or with another crop
    flip        horizontal, after the crop
    hue         shift in OpenCV's units, -8 to 8; 0 for none
    gamma       exponent for the 0..255 values, 0.95 to 1.05; 1 for none
    """

    placement: Placement
    flip: bool = False
    hue: float = 0.0
    gamma: float = 1.0


@dataclass(frozen=True, slots=True)
class Face:
    """A face's center (x, y) and size in pixels of the image."""

    x: int
    y: int
    width: int
    height: int


def is_varied(images: ImageSettings) -> bool:
    """Return whether augmentation does more than flip, so that latents cannot be cached."""
    return bool(random_augmentations(images))


def crop_varies(images: ImageSettings) -> bool:
    """Return whether the crop is random, so that control images cannot be cached (changed colors do not affect them)."""
    return any(name != "color_aug" for name in random_augmentations(images))


def draw_view(placed: Placed, seed: int, epoch: int, repeat: int) -> View:
    """Return the random view of an image for an epoch and repeat, by its folder's settings.

    Flip, crop and colors have separate addresses, so that one setting does not change the draws of another.
    """
    images = placed.concept.images
    placement, flip, hue, gamma = placed.placement, False, 0.0, 1.0
    if images.flip_aug:
        flip = draws.uniform(seed, "flip", epoch, *placed.key, repeat) < FLIP_SHARE
    face = face_of(placed.image.relative)
    if images.face_crop_aug_range is not None and not images.enable_bucket and face is not None:
        draw = draws.python_random(seed, "face crop", epoch, *placed.key, repeat)
        placement = face_crop(placement, face, images.face_crop_aug_range, images.random_crop, draw)
    elif images.random_crop:
        placement = random_crop(placement, draws.python_random(seed, "crop", epoch, *placed.key, repeat))
    if images.color_aug:
        hue, gamma = _colors(draws.python_random(seed, _COLOR_DRAW, epoch, *placed.key, repeat))
    return View(placement, flip, hue, gamma)


def _colors(rng: random.Random) -> tuple[float, float]:
    """Draw (hue shift, gamma): with probability 0.33 exactly one of them is changed, both equally likely."""
    if rng.random() >= COLOR_SHARE:
        return 0.0, 1.0
    if rng.random() < 0.5:
        return rng.uniform(-HUE_SHIFT, HUE_SHIFT), 1.0
    return 0.0, rng.uniform(*GAMMA)


# ---- crops


def random_crop(placement: Placement, rng: random.Random) -> Placement:
    """Return a random crop of the resized image, every offset equally likely. A side that fits the bucket exactly is not cropped."""
    (width, height), bucket = placement.resized, placement.bucket
    crop = (rng.randint(0, width - bucket[0]), rng.randint(0, height - bucket[1]))
    return Placement(placement.image, bucket, placement.resized, crop)


def face_of(name: str) -> Face | None:
    """Return the face that a file name states, or None.

    Example: "anna_0512_0300_0120_0140.png" -> center (512, 300), size 120 x 140.
    """
    match = _FACE_NAME.fullmatch(PurePath(name).stem)
    if match is None:
        return None
    face = Face(*(int(part) for part in match.groups()))
    return face if face.width and face.height else None


def face_crop(
    placement: Placement, face: Face, sizes: tuple[float, float], jitter: bool, rng: random.Random
) -> Placement:
    """Return a crop around a face, with a shorter side between `sizes` times the face (reference: section 3.6).

    jitter   random_crop: the crop moves far; otherwise by at most a twentieth of the face, if that is large enough

    A smaller image is upscaled to cover the bucket; sd-scripts refuses it.
    """
    low, high = sorted(sizes)
    (image_width, image_height), bucket = placement.image, placement.bucket
    face_size, size = max(face.width, face.height), min(bucket)
    cover = max(bucket[0] / image_width, bucket[1] / image_height)
    lowest_scale = max(cover, min(1.0, size / (face_size * high)))
    highest_scale = max(lowest_scale, min(1.0, size / (face_size * low)))
    scale = rng.uniform(lowest_scale, highest_scale)
    resized: Size = (
        max(bucket[0], int(image_width * scale + 0.5)),
        max(bucket[1], int(image_height * scale + 0.5)),
    )
    small_move = low != high and face_size > size // 10 and face_size >= 40
    crop = []
    for length, window, center in zip(resized, bucket, (face.x, face.y), strict=True):
        face_center = min(int(center * scale + 0.5), length)
        start = face_center - window // 2
        if jitter:
            reach = max(length - face_center, face_center)
            start += rng.randint(0, reach) + rng.randint(0, reach) - reach
        elif small_move:
            start += rng.randint(-(face_size // 20), face_size // 20)
        crop.append(max(0, min(start, length - window)))
    return Placement(placement.image, bucket, resized, (crop[0], crop[1]))


# ---- SDXL size conditioning


def size_conditioning(placed: Placed, view: View, mode: str = "true") -> tuple[Size, tuple[int, int], Size]:
    """Return SDXL's size conditioning of a view: original size, crop (left, top), target size; sizes are (width, height) in pixels.

    mode   "true": pixels cropped at the left and top of the resized image, as in the SDXL paper (Podell et al. 2023,
           arXiv:2307.01952, section 2.2); of a flipped view, the crop of the flipped image
           "kohya": sd-scripts' values, from the image fitted into the bucket (reference: section 3.7)
    """
    placement, width = view.placement, view.placement.bucket[0]
    if mode == "kohya":  # the margins, whatever the actual crop is
        left, top, right, _ = recorded_crop(placement.bucket, placement.image)
        crop = int(width - right if view.flip else left), int(top)
    else:
        left_crop, top_crop = placement.crop
        crop = (placement.resized[0] - width - left_crop if view.flip else left_crop), top_crop
    return placement.image, crop, placement.bucket


def recorded_crop(bucket: Size, image: Size) -> tuple[float, float, float, float]:
    """Return sd-scripts' crop_ltrb (left, top, right, bottom) in pixels: the image fitted inside the bucket (section 3.7)."""
    ratio = image[0] / image[1]
    if bucket[0] / bucket[1] > ratio:
        width, height = bucket[1] * ratio, float(bucket[1])
    else:
        width, height = float(bucket[0]), bucket[0] / ratio
    left, top = (bucket[0] - width) // 2, (bucket[1] - height) // 2
    return (left, top, left + width, top + height)
