"""The doctor's findings about images themselves: copies, blur, borders, sizes."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
from PIL import Image

from core.dataset.contents import content_hashes
from core.dataset.doctor_finding import Finding, Key, Patient, joined_groups, one_by_one, size_of
from core.dataset.look import Look
from core.dataset.memo import Memo
from core.dataset.opening import BrokenImage, open_rgb
from core.dataset.scan import ImageInfo
from core.record.cancel import CancelToken

Progress = Callable[[int, int], None]

# Bits of 64. Measured on drawings: copies at other sizes and JPEG qualities down to 30 differ in at most 3, a crop by 2%
# in up to 11, different images in 15 and more. Chance pairs of a large set are sorted out by the second look.
NEAR_DISTANCE = 8
# Difference of two 16 x 16 grays over their own contrast. Copies: below 0.07; cropped by 2%: 0.6; others: from 0.9.
NEAR_DIFFERENCE = 0.5
# Variance of the Laplacian at 256 pixels. Sharp photographs: 540 to 7400, soft subjects (the moon, a retina) 150 and 220,
# drawings from 1650. A Gaussian blur of radius 2 at that size (8 pixels at 1024) leaves 2 to 92, motion blur 25.
BLUR_BELOW = 100.0
BORDER_FROM = 0.03  # share of the area; thinner ones are a pixel row of a scan
STRONG_SCALE = 1.5  # twice as many pixels and more are made up: softness is trained as the style
SMALL_SIDE = 64  # pixels: 8 x 8 latents, in which no VAE keeps a face
EXTREME_ASPECT = 3.0  # longer than any bucket of the usual ranges, so much is cropped or shrunk away

_CLOSER = "closer 2"  # the memo's name for a second look
_SIDE = 16
_EVEN, _CLEAR = 8, 16  # levels of 255: still the border's color; clearly another
_STRAIGHT = (
    0.6  # share of the first line inside a border that is clearly another color: bars end at once, grounds do not
)


@dataclass(frozen=True, slots=True)
class Limits:
    """Where a finding begins."""

    near_distance: int = NEAR_DISTANCE
    near_difference: float = NEAR_DIFFERENCE
    blur_below: float = BLUR_BELOW
    border_from: float = BORDER_FROM
    strong_scale: float = STRONG_SCALE
    small_side: int = SMALL_SIDE
    extreme_aspect: float = EXTREME_ASPECT


# ---- copies


def copies(
    patients: Sequence[Patient],
    seen: Mapping[Key, Look],
    limits: Limits,
    memo_path: Path | str | None,
    cancel: CancelToken | None,
    progress: Progress | None,
) -> list[Finding]:
    """Exact copies by content and near ones by look: within training, and across training, validation and classes."""
    exact = _same_content(patients, memo_path, cancel)
    near = _near(patients, seen, limits, exact, memo_path, cancel, progress)
    return _by_roles((exact, ""), (near, "near "))


def copies_by_content(
    patients: Sequence[Patient], memo_path: Path | str | None, cancel: CancelToken | None
) -> list[Finding]:
    """Exact copies alone: nothing is decoded for them."""
    return _by_roles((_same_content(patients, memo_path, cancel), ""))


def _by_roles(*alike_groups: tuple[list[list[Patient]], str]) -> list[Finding]:
    """A finding for each kind of copies, told by what the images are for."""
    found: dict[str, list[list[Patient]]] = defaultdict(list)
    for groups, alike in alike_groups:
        for group in groups:
            roles = {patient.role for patient in group}
            kind = "leak" if "validation" in roles and len(roles) > 1 else "class" if len(roles) > 1 else "copy"
            found[alike + kind].append(sorted(group, key=_worth))
    return [_copies(kind, found[kind]) for kind in _COPIES if found[kind]]


# kind -> (level, what, fix); {groups} and {n} are put in
_COPIES = {
    "leak": (
        "error",
        "{groups} in training and in validation: the validation loss would praise what was overfitted and says nothing.",
        "Put the copies away, or take that folder out of the validation.",
    ),
    "near leak": (
        "advice",
        "{groups}, nearly alike, in training and in validation: the validation loss would be far too good to be true.",
        "Look at each pair, and put the copies away.",
    ),
    "class": (
        "advice",
        "{groups} in training and among the regularization images: these teach the opposite of each other.",
        "Put the regularization copies away.",
    ),
    "near class": (
        "advice",
        "{groups}, nearly alike, in training and among the regularization images: these teach the opposite of each other.",
        "Look at each pair, and put the regularization copies away.",
    ),
    "copy": (
        "advice",
        "{groups} more than once, byte for byte: {n} too many, which are trained that much more strongly.",
        "Put the copies away; for more weight, set repeats instead.",
    ),
    "near copy": (
        "advice",
        "{groups} nearly more than once, at another size or quality: {n} that may be too many.",
        "Look at each group, and put the copies away.",
    ),
}


def _copies(kind: str, groups: Sequence[Sequence[Patient]]) -> Finding:
    level, what, fix = _COPIES[kind]
    advised = [patient.key for group in groups for patient in _too_many(group)]
    said = "1 image is there" if len(groups) == 1 else f"{len(groups)} images are there"
    shown = tuple(tuple(patient.seen(f"{size_of(patient)}, {patient.role}") for patient in group) for group in groups)
    what = what.replace("{groups}", said).replace("{n}", str(len(advised)))
    return Finding(kind, level, what, fix, shown, tuple(advised), "put away" if advised else "open")


def _too_many(group: Sequence[Patient]) -> list[Patient]:
    """All but the first. One file that two entries name cannot be put away without losing both."""
    return [patient for patient in group[1:] if patient.image.path != group[0].image.path]


_ROLE_ORDER = {"train": 0, "regularization": 1, "validation": 2}


def _worth(patient: Patient) -> tuple:
    """The copy to keep comes first: one that trains, has a caption, has more pixels, more bytes, the first name."""
    image = patient.image
    captioned = patient.placed.caption.source in ("file", "metadata")
    pixels = image.width * image.height
    return (_ROLE_ORDER.get(patient.role, 3), not captioned, -pixels, -image.bytes, patient.key)


def _same_content(
    patients: Sequence[Patient], memo_path: Path | str | None, cancel: CancelToken | None
) -> list[list[Patient]]:
    """Groups of equal bytes. Only files of equal length are read."""
    lengths = Counter(patient.image.bytes for patient in patients)
    suspects = [patient for patient in patients if lengths[patient.image.bytes] > 1]
    hashes = content_hashes([patient.image for patient in suspects], memo_path, cancel.check if cancel else None)
    groups: dict[str, list[Patient]] = defaultdict(list)
    for patient in suspects:
        groups[hashes[patient.key]].append(patient)
    return [group for group in groups.values() if len(group) > 1]


def _near(
    patients: Sequence[Patient],
    seen: Mapping[Key, Look],
    limits: Limits,
    exact: Sequence[Sequence[Patient]],
    memo_path: Path | str | None,
    cancel: CancelToken | None,
    progress: Progress | None,
) -> list[list[Patient]]:
    """Groups of images that look alike; of exact copies only the one to keep takes part."""
    left_out = set()
    for group in exact:
        ordered = sorted(group, key=_worth)
        left_out |= {patient.key for patient in ordered[1:]}
    able = [
        patient
        for patient in patients
        if patient.key not in left_out and patient.key in seen and int(seen[patient.key].dhash or "0", 16)
    ]
    pairs = list(close_pairs([seen[patient.key].dhash for patient in able], limits.near_distance, cancel))
    wanted = sorted({number for pair in pairs for number in pair})
    closer = second_look([able[number].image for number in wanted], memo_path, cancel, progress)
    alike = []
    for one, other in pairs:
        first, second = closer.get(able[one].key), closer.get(able[other].key)
        if first and second and difference(first.gray, second.gray) <= limits.near_difference:
            alike.append((one, other))
    return [[able[number] for number in group] for group in joined_groups(alike, len(able))]


def close_pairs(hashes: Sequence[str], distance: int, cancel: CancelToken | None = None) -> Iterator[tuple[int, int]]:
    """Every pair (i, j), i < j, of hashes (16 hex digits) that differ in at most `distance` bits; exact.

    All pairs are counted, a row at a time: 50 million XORs with a bit count take a fraction of a second, where a tree
    of distances in Python takes longer and a table of bands misses some.
    """
    values = np.array([int(each, 16) for each in hashes], dtype=np.uint64)
    for number in range(len(values) - 1):
        if cancel and number % 256 == 0:
            cancel.check()
        near = np.bitwise_count(values[number + 1 :] ^ values[number]) <= distance
        for other in np.flatnonzero(near):
            yield number, number + 1 + int(other)


def difference(one: np.ndarray, other: np.ndarray) -> float:
    """Root mean square of the difference of two grays over the smaller contrast of both (at least 8 levels)."""
    contrast = max(8.0, min(float(one.std()), float(other.std())))
    return float(np.sqrt(((one - other) ** 2).mean())) / contrast


# ---- a second look


@dataclass(frozen=True, slots=True)
class Closer:
    """What a second decode tells. gray: float32 [16, 16]; frame: share of the area of bars with straight edges."""

    gray: np.ndarray
    frame: float


def second_look(
    images: Sequence[ImageInfo],
    memo_path: Path | str | None,
    cancel: CancelToken | None = None,
    progress: Progress | None = None,
    threads: int = 4,
) -> dict[Key, Closer]:
    """Decode those images small and keep what is needed to be sure; remembered by file."""
    memo = Memo(memo_path)
    known = memo.known(_CLOSER, images)
    remaining = iter([image for image in images if image.path not in known])
    done = len(images) - sum(image.path not in known for image in images)
    with ThreadPoolExecutor(max(1, threads)) as pool:
        while part := list(islice(remaining, 16 * threads)):
            if cancel:
                cancel.check()
            found = dict(zip((image.path for image in part), pool.map(_look_closer, part), strict=True))
            memo.remember(_CLOSER, found, part)
            known.update(found)
            done += len(part)
            if progress:
                progress(done, len(images))
    result = {}
    for image in images:
        said = json.loads(known[image.path])
        if said:
            gray = np.frombuffer(bytes.fromhex(said["gray"]), np.uint8).reshape(_SIDE, _SIDE).astype(np.float32)
            result[image.key] = Closer(gray, said["frame"])
    return result


def _look_closer(image: ImageInfo) -> str:
    try:
        pixels = open_rgb(image.path, draft=(512, 512))
    except BrokenImage:
        return "null"
    gray = np.asarray(pixels.convert("L").resize((_SIDE, _SIDE), Image.Resampling.BOX))
    pixels.thumbnail((256, 256), Image.Resampling.BOX)
    return json.dumps({"gray": gray.tobytes().hex(), "frame": round(frame_share(np.asarray(pixels)), 4)})


def frame_share(pixels_HWC: np.ndarray) -> float:
    """Share of the area that bars or a frame of one color take, 0 where an even ground just surrounds something.

    A bar ends in one line: most of the first line inside is clearly another color. The outline of a thing on an even
    ground is curved or pointed at some side, so the line that first meets it holds little of it.
    """
    colors: np.ndarray = pixels_HWC.astype(np.float32)
    height, width = colors.shape[:2]
    ends = []
    for lines in (colors, colors[::-1], colors.transpose(1, 0, 2), colors.transpose(1, 0, 2)[::-1]):
        ground = lines[0].mean(axis=0)
        off = np.abs(lines - ground).max(axis=2)
        even = (off <= _EVEN).all(axis=1)
        if even.all():
            return 0.0
        ends.append(int(np.argmin(even)))
    top, bottom, left, right = ends
    if not (min(top, bottom) or min(left, right)):
        return 0.0  # bars come in pairs; one even side is a floor or a sky
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


def looks_wrong(
    patients: Sequence[Patient],
    seen: Mapping[Key, Look],
    limits: Limits,
    memo_path: Path | str | None,
    cancel: CancelToken | None,
    progress: Progress | None,
) -> list[Finding]:
    """Blurred, empty and framed images."""
    whole = [patient for patient in patients if patient.key in seen and not seen[patient.key].reason]
    plain = [patient for patient in whole if seen[patient.key].border >= 1.0]
    rest = [patient for patient in whole if seen[patient.key].border < 1.0]
    blurred = sorted(
        (patient for patient in rest if seen[patient.key].blur < limits.blur_below),
        key=lambda patient: seen[patient.key].blur,
    )
    edged = [patient for patient in rest if seen[patient.key].border >= limits.border_from]
    closer = second_look([patient.image for patient in edged], memo_path, cancel, progress)
    frames = {patient.key: closer[patient.key].frame for patient in edged if patient.key in closer}
    framed = sorted(
        (patient for patient in edged if frames.get(patient.key, 0.0) >= limits.border_from),
        key=lambda patient: -frames[patient.key],
    )
    return [
        *one_by_one(
            "plain",
            plain,
            "{n} of one color and nothing else: there is nothing to train.",
            "Put them away.",
            put_away=True,
        ),
        *one_by_one(
            "blur",
            blurred,
            "{n} blurred or very soft: what is trained on them draws soft images.",
            "Look at each, and put away those that are not meant to be soft.",
            lambda patient: f"sharpness {seen[patient.key].blur:.0f}",
            put_away=True,
        ),
        *one_by_one(
            "border",
            framed,
            "{n} framed or between bars of one color: the frame is trained with the image.",
            "Crop them with the image tools, or put them away.",
            lambda patient: f"{frames[patient.key]:.0%} is border",
            put_away=True,
        ),
    ]


def wrong_size(patients: Sequence[Patient], limits: Limits) -> list[Finding]:
    """Images that are enlarged much, tiny or very long."""

    def aspect(patient: Patient) -> float:
        sides = sorted((patient.image.width, patient.image.height))
        return sides[1] / sides[0]

    small = [p for p in patients if min(p.image.width, p.image.height) < limits.small_side]
    tiny = {patient.key for patient in small}
    enlarged = sorted(
        (p for p in patients if p.placed.placement.scale > limits.strong_scale and p.key not in tiny),
        key=lambda patient: -patient.placed.placement.scale,
    )
    long = sorted((p for p in patients if aspect(p) > limits.extreme_aspect), key=lambda patient: -aspect(patient))
    return [
        *one_by_one(
            "small",
            small,
            f"{{n}} under {limits.small_side} pixels at the short side: hardly anything of them is left for the model to see.",
            "Find larger ones, or put them away.",
            size_of,
            put_away=True,
        ),
        *one_by_one(
            "enlarged",
            enlarged,
            f"{{n}} enlarged more than {limits.strong_scale:g} times: the softness is trained as the style.",
            "Find larger ones, train at a lower resolution, turn on 'Never enlarge', or put them away.",
            lambda patient: f"{size_of(patient)}, {patient.placed.placement.scale:.1f} times",
            put_away=True,
        ),
        *one_by_one(
            "long",
            long,
            f"{{n}} more than {limits.extreme_aspect:g} times as long as wide: most is cropped away or shrunk.",
            "Crop them with the image tools.",
            lambda patient: f"{size_of(patient)}, {patient.placed.placement.kept:.0%} trains",
        ),
    ]
