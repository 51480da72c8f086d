"""The doctor's findings about images: duplicates, blur, borders, sizes."""

import json
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from core.dataset.caches.contents import content_hashes
from core.dataset.captions.files import IMAGE_SOURCES
from core.dataset.doctor.finding import (
    ExaminedImage,
    Finding,
    FindingImage,
    Key,
    connected_components,
    images_finding,
    size_of,
)
from core.dataset.images.opening import BrokenImage, UnreachableImage, open_rgb
from core.dataset.report import Row
from core.dataset.sources.image_info import ImageInfo
from core.dataset.sources.memo import Memo
from core.record.bounded_json import json_or_none
from core.record.cancel import CancelToken
from core.record.units import count
from core.settings.dataset.images import ImageSettings

_CLOSER = "closer 2"  # the memo's name for the closer look
_SIDE = 16
_EVEN, _CLEAR = 8, 16  # levels of 255: still the border's color; clearly another
_STRAIGHT = 0.6  # fraction of the first line inside a border that is clearly another color: bars end in a straight line


# ---- thresholds of the findings

# Bits of 64. Measured on drawings: copies at other sizes and JPEG qualities down to 30 differ in at most 3, a crop by 2%
# in up to 11, different images in 15 and more. The closer look removes random pairs of large sets.
NEAR_DISTANCE = 8
# Difference of two 16 x 16 grays over their own contrast. Copies: below 0.07; cropped by 2%: 0.6; others: from 0.9.
NEAR_DIFFERENCE = 0.5
# Variance of the Laplacian at 256 pixels. Sharp photographs: 540 to 7400, soft subjects (the moon, a retina) 150 and
# 220, drawings from 1650. A Gaussian blur of radius 2 at that size (8 pixels at 1024) leaves 2 to 92, motion blur 25.
BLUR_BELOW = 100.0
BORDER_FROM = 0.03  # fraction of the area; thinner ones are a pixel row of a scan
STRONG_SCALE = 1.5  # more than half of the pixels are interpolated, and the model learns the softness
SMALL_SIDE = 64  # pixels: 8 x 8 latents, in which no VAE keeps a face
EXTREME_ASPECT = 3.0  # beyond the usual buckets, so much is cropped


@dataclass(frozen=True)
class Reading:
    """How image files are read.

    memo_path   where measurements are stored
    progress    called with (done, total) images
    """

    memo_path: Path | str | None = None
    cancel: CancelToken | None = None
    progress: Callable[[int, int], None] | None = None

    @property
    def check(self) -> Callable[[], None] | None:
        """A function that raises once the task is cancelled; None without a cancel token."""
        return self.cancel.check if self.cancel else None


# ---- duplicates


def unreadable_findings(rows: Iterable[Row]) -> list[Finding]:
    """Return the finding about files that cannot be read as images; [] if there are none. Missing files are left out."""
    broken = [FindingImage(row.key, row.path, row.why) for row in rows if not row.readable and row.path.is_file()]
    if not broken:
        return []
    what = f"{count(len(broken), 'file')} that cannot be read as an image"
    fix = "replace them, or move them to the trash"
    advised = tuple(each.key for each in broken)
    return [Finding("unreadable", "advice", what, fix, tuple((each,) for each in broken), advised, "put away")]


def duplicate_findings(items: Sequence[ExaminedImage], reading: Reading, *, only_exact: bool = False) -> list[Finding]:
    """Return findings about exact and near duplicates, within the training set and across roles, one for each kind in _COPIES.

    Roles are training, validation and regularization.

    only_exact   no near duplicates: decodes nothing
    """
    exact = _same_content(items, reading)
    near = [] if only_exact else _near_duplicates(items, exact, reading)
    by_kind: dict[str, list[list[ExaminedImage]]] = defaultdict(list)
    for prefix, group in [*(("", group) for group in exact), *(("near ", group) for group in near)]:
        roles = {item.role for item in group}
        kind = "leak" if "validation" in roles and len(roles) > 1 else "class" if len(roles) > 1 else "copy"
        by_kind[prefix + kind].append(sorted(group, key=_keep_order))
    return [_copies_finding(kind, by_kind[kind]) for kind in _COPIES if by_kind[kind]]


# kind -> (level, what, fix); {groups} and {n} are filled in
_COPIES = {
    "leak": (
        "error",
        "{groups} in both the training and the validation set, so the validation loss would not show overfitting",
        "move the duplicates to the trash, or remove that folder from validation",
    ),
    "near leak": (
        "advice",
        "{groups} with near duplicates in both the training and the validation set, so the validation loss is too low",
        "check each pair, and move the duplicates to the trash",
    ),
    "class": (
        "advice",
        "{groups} in both the training and the regularization images, which have opposite goals",
        "move the regularization duplicates to the trash",
    ),
    "near class": (
        "advice",
        "{groups} with near duplicates in both the training and the regularization images, which have opposite goals",
        "check each pair, and move the regularization duplicates to the trash",
    ),
    "copy": (
        "advice",
        "{groups} with exact duplicates: {n} extra, which give these images more weight",
        "move the duplicates to the trash; use repeats to give an image more weight",
    ),
    "near copy": (
        "advice",
        "{groups} with near duplicates at another size or quality: {n} possibly extra",
        "check each group, and move the duplicates to the trash",
    ),
}


def _copies_finding(kind: str, groups: Sequence[Sequence[ExaminedImage]]) -> Finding:
    """Return the finding of a kind of duplicates.

    groups   duplicates, each group beginning with the image to keep
    The other images are suggested for the trash, unless they are the same file. Of duplicates across roles, images with the first
    image's role stay too: each is a duplicate of an image of another role, not of the first.
    """
    level, what, fix = _COPIES[kind]
    advised = [
        item.key
        for first, *others in groups
        for item in others
        if item.image.path != first.image.path and (kind.endswith("copy") or item.role != first.role)
    ]
    groups_text = "1 image" if len(groups) == 1 else f"{len(groups)} images"
    images = tuple(tuple(item.in_finding(f"{size_of(item)}, {item.role}") for item in group) for group in groups)
    what = what.replace("{groups}", groups_text).replace("{n}", str(len(advised)))
    return Finding(kind, level, what, fix, images, tuple(advised), "put away" if advised else "open")


_ROLE_ORDER = {"train": 0, "regularization": 1, "validation": 2}
# What programs give to copies, without the extension: "fox copy", "fox (1)".
_COPY_NAME = re.compile(r"^copy of .|.[ _-]copy( ?\(?\d+\)?)?$|.\(\d+\)$|._\d$", re.IGNORECASE)


def _keep_order(item: ExaminedImage) -> tuple:
    """Sort key that puts the duplicate to keep first: by role, with a caption, more pixels, more bytes, then by name.

    Of names the one that no program gives to a copy comes first, then the shorter one.
    """
    image, stem = item.image, item.image.path.stem
    uncaptioned, is_copy = item.placed.caption.source not in IMAGE_SOURCES, _COPY_NAME.search(stem) is not None
    pixels = image.width * image.height
    return (_ROLE_ORDER.get(item.role, 3), uncaptioned, -pixels, -image.bytes, is_copy, len(stem), item.key)


def _same_content(items: Sequence[ExaminedImage], reading: Reading) -> list[list[ExaminedImage]]:
    """Return groups of images with equal file bytes. Only files of equal size are read."""
    lengths = Counter(item.image.bytes for item in items)
    suspects = [item for item in items if lengths[item.image.bytes] > 1]
    hashes = content_hashes([item.image for item in suspects], reading.memo_path, reading.check)
    groups: dict[str, list[ExaminedImage]] = defaultdict(list)
    for item in suspects:
        groups[hashes[item.key]].append(item)
    return [group for group in groups.values() if len(group) > 1]


def _near_duplicates(
    items: Sequence[ExaminedImage], exact: Sequence[Sequence[ExaminedImage]], reading: Reading
) -> list[list[ExaminedImage]]:
    """Return groups of near duplicates.

    exact   groups of exact duplicates, of which only the image to keep is compared
    Regularization images are compared only with others: they are alike, as they were generated from one prompt.
    """
    left_out = {item.key for group in exact for item in sorted(group, key=_keep_order)[1:]}
    comparable = [item for item in items if item.key not in left_out and int(item.look.dhash or "0", 16)]
    close = close_pairs([item.look.dhash for item in comparable], NEAR_DISTANCE, reading.cancel)
    pairs = [pair for pair in close if {comparable[number].role for number in pair} != {"regularization"}]
    indices = sorted({number for pair in pairs for number in pair})
    closer = second_look([comparable[number].image for number in indices], reading)
    alike = []
    for one, other in pairs:
        first, second = closer.get(comparable[one].key), closer.get(comparable[other].key)
        if first and second and difference(first.gray, second.gray) <= NEAR_DIFFERENCE:
            alike.append((one, other))
    return [[comparable[number] for number in group] for group in connected_components(alike, len(comparable))]


def close_pairs(hashes: Sequence[str], distance: int, cancel: CancelToken | None = None) -> Iterator[tuple[int, int]]:
    """Yield every pair (i, j), i < j, of hashes (16 hex digits) that differ in at most `distance` bits.

    Brute force, a row at a time: 50 million XORs with a bit count take a fraction of a second; a BK-tree in Python is
    slower, and hash bands miss some pairs.
    """
    values = np.array([int(each, 16) for each in hashes], dtype=np.uint64)
    for number in range(len(values) - 1):
        if cancel and number % 256 == 0:
            cancel.check()
        near = np.bitwise_count(values[number + 1 :] ^ values[number]) <= distance
        for other in np.flatnonzero(near):
            yield number, number + 1 + int(other)


def difference(first: np.ndarray, second: np.ndarray) -> float:
    """Return the RMS difference of two grayscale images (levels 0 to 255), divided by the lower standard deviation of both.

    The divisor is at least 8 levels.
    """
    contrast = max(8.0, min(float(first.std()), float(second.std())))
    return float(np.sqrt(((first - second) ** 2).mean())) / contrast


# ---- a closer look


@dataclass(frozen=True, slots=True)
class CloserLook:
    """Measurements of a second decode.

    gray    the image at 16 x 16 pixels, float32, levels 0 to 255
    frame   fraction of the area in straight-edged bars, 0 to 1
    """

    gray: np.ndarray
    frame: float


def second_look(images: Sequence[ImageInfo], reading: Reading) -> dict[Key, CloserLook]:
    """Return {image key: measurements} of the images, decoded at a small size and cached by file.

    Images that cannot be decoded are left out.
    """
    memo = Memo(reading.memo_path)
    texts = memo.facts(_CLOSER, images, _look_closer, reading.check, reading.progress)
    result = {}
    for image in images:
        stored = json_or_none(texts[image.path] or "")
        with suppress(TypeError, KeyError, ValueError):  # a damaged row; none for an image that cannot be decoded
            gray = np.frombuffer(bytes.fromhex(stored["gray"]), np.uint8).reshape(_SIDE, _SIDE).astype(np.float32)
            result[image.key] = CloserLook(gray, stored["frame"])
    return result


def _look_closer(image: ImageInfo) -> str | None:
    """Decode an image and return its `CloserLook` as JSON for the memo; "null" for a damaged file; None, which is not cached, if it cannot
    be opened now."""
    try:
        pixels = open_rgb(image.path, draft=(512, 512))
    except UnreachableImage:
        return None
    except BrokenImage:
        return "null"
    gray = np.asarray(pixels.convert("L").resize((_SIDE, _SIDE), Image.Resampling.BOX))
    pixels.thumbnail((256, 256), Image.Resampling.BOX)
    return json.dumps({"gray": gray.tobytes().hex(), "frame": round(frame_share(np.asarray(pixels)), 4)})


def frame_share(pixels_HWC: np.ndarray) -> float:
    """Return the fraction of the area in bars or a frame of one color, 0 to 1; 0 for an object on a plain background.

    pixels_HWC   uint8 [H, W, 3]
    A bar ends in a straight line: most of the first line inside is clearly another color. The outline of an object on a
    plain background is curved, so the first line that touches it contains little of it.
    """
    colors: np.ndarray = pixels_HWC.astype(np.float32)
    height, width = colors.shape[:2]
    ends = []
    for lines in (colors, colors[::-1], colors.transpose(1, 0, 2), colors.transpose(1, 0, 2)[::-1]):
        ground = lines[0].mean(axis=0)
        deviation = np.abs(lines - ground).max(axis=2)
        uniform = (deviation <= _EVEN).all(axis=1)
        if uniform.all():
            return 0.0
        ends.append(int(np.argmin(uniform)))
    top, bottom, left, right = ends
    if not (min(top, bottom) or min(left, right)):
        return 0.0  # bars come in pairs; one plain side is a floor or a sky
    inner = colors[top : height - bottom, left : width - right]
    # One line further in: area-averaging mixes the bar's last line with the image's first.
    sides = (
        (top, colors[0].mean(axis=0), inner[min(1, len(inner) - 1)]),
        (bottom, colors[-1].mean(axis=0), inner[max(-2, -len(inner))]),
        (left, colors[:, 0].mean(axis=0), inner[:, min(1, inner.shape[1] - 1)]),
        (right, colors[:, -1].mean(axis=0), inner[:, max(-2, -inner.shape[1])]),
    )
    for lines_of_bar, ground, line in sides:
        if lines_of_bar and (np.abs(line - ground).max(axis=1) > _CLEAR).mean() < _STRAIGHT:
            return 0.0
    return 1.0 - inner.shape[0] * inner.shape[1] / (height * width)


# ---- single images


def appearance_findings(items: Sequence[ExaminedImage], reading: Reading) -> list[Finding]:
    """Return findings about single-color, blurry and framed images.

    Regularization images may be blurry: they show what the base model generates.
    """
    single_color = [item for item in items if item.look.border >= 1.0]
    others = [item for item in items if item.look.border < 1.0]
    judged = [item for item in others if item.role != "regularization"]
    blurred = sorted((item for item in judged if item.look.blur < BLUR_BELOW), key=lambda item: item.look.blur)
    edged = [item for item in others if item.look.border >= BORDER_FROM]
    closer = second_look([item.image for item in edged], reading)
    frames = {item.key: closer[item.key].frame for item in edged if item.key in closer}
    framed = sorted(
        (item for item in edged if frames.get(item.key, 0.0) >= BORDER_FROM),
        key=lambda item: -frames[item.key],
    )
    return [
        *images_finding(
            "plain",
            single_color,
            "{n} a single color, with nothing to train on",
            "move them to the trash",
            put_away=True,
        ),
        *images_finding(
            "blur",
            blurred,
            "{n} blurry or very soft, which makes generated images soft too",
            "check each, and move those that are not meant to be soft to the trash",
            lambda item: f"sharpness {item.look.blur:.0f}",
            put_away=True,
        ),
        *images_finding(
            "border",
            framed,
            "{n} framed or letterboxed: the border is trained too",
            "crop them with the image tools, or move them to the trash",
            lambda item: f"{frames[item.key]:.0%} is border",
            put_away=True,
        ),
    ]


def size_findings(items: Sequence[ExaminedImage]) -> list[Finding]:
    """Return findings about images that are tiny, strongly upscaled, or have an extreme aspect ratio."""

    def aspect(item: ExaminedImage) -> float:
        sides = sorted((item.image.width, item.image.height))
        return sides[1] / sides[0]

    small = [item for item in items if min(item.image.width, item.image.height) < SMALL_SIDE]
    tiny = {item.key for item in small}
    enlarged = sorted(
        (item for item in items if item.placed.placement.scale > STRONG_SCALE and item.key not in tiny),
        key=lambda item: -item.placed.placement.scale,
    )
    no_upscale = ImageSettings.title_of("bucket_no_upscale")
    long = sorted((item for item in items if aspect(item) > EXTREME_ASPECT), key=lambda item: -aspect(item))
    return [
        *images_finding(
            "small",
            small,
            f"{{n}} under {SMALL_SIDE} pixels on the short side, too small to train on",
            "use larger versions, or move them to the trash",
            size_of,
            put_away=True,
        ),
        *images_finding(
            "enlarged",
            enlarged,
            f"{{n}} upscaled more than {STRONG_SCALE:g} times: the blur is trained too",
            f"use larger versions or a lower resolution, turn on '{no_upscale}', or move them to the trash",
            lambda item: f"{size_of(item)}, {item.placed.placement.scale:.1f} times",
            put_away=True,
        ),
        *images_finding(
            "long",
            long,
            f"{{n}} more than {EXTREME_ASPECT:g} times as long as wide: a large part is cropped",
            "crop them with the image tools",
            lambda item: f"{size_of(item)}, {item.placed.placement.area_after_crop:.0%} left after the crop",
        ),
    ]
