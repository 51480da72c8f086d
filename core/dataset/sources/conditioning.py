"""Masks and control images: pairs each image with the file of the same name in another folder."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from core.dataset.images.decoding import look_at_all
from core.dataset.images.look import FACT, Look, from_text, looks
from core.dataset.images.opening import BrokenImage, problem_of
from core.dataset.sources.files import extension, printable, reachable
from core.dataset.sources.image_info import ImageInfo, listed, names_of
from core.dataset.sources.memo import Memo
from core.dataset.sources.painted import is_painted
from core.dataset.sources.walk import File, file_at, headers, walk
from core.record.cancel import CancelToken
from core.record.problems import Problem
from core.record.units import count
from core.record.workspace import resolve_path

if TYPE_CHECKING:
    from core.dataset.buckets.batches import Placed


@dataclass(frozen=True)
class Kind:
    """What stands beside images. field: of ImageInfo; word: in messages; code: what those of its problems begin with;
    needed: an image without one cannot train."""

    field: str
    word: str
    code: str
    needed: bool = False


MASK, CONTROL = Kind("conditioning", "mask", "mask"), Kind("control", "control image", "control", needed=True)


@dataclass(frozen=True)
class Paired:
    """images: all that are usable, with the partner where there is one. unusable: key -> why its partner cannot be used."""

    images: list[ImageInfo]
    unusable: dict[tuple[str, str], str]
    problems: list[Problem]


def conditioning_folder(typed: str | None) -> Path | None:
    """The folder of a setting as a path; None when not set."""
    text = (typed or "").strip().strip("\"'")
    return reachable(resolve_path(text)) if text else None


def pair(
    images: Sequence[ImageInfo],
    folder: Path,
    inside: dict[str, str],
    kind: Kind = MASK,
    *,
    memo: Memo | None = None,
    cancel: CancelToken | None = None,
    level: str = "error",
) -> Paired:
    """Pair each image with the file of its name below `folder`: any image extension, any case, same subfolders.
    A painted mask (`painted.py`) is only for the image at the same path: another of its name has none.

    inside   source id -> its path below the folder of the settings ("10_fox"), which the masks may mirror too
    level    of a mask that cannot be read, or of a control image that is missing

    A mask of another size is resized with its image. (sd-scripts refuses it; reference 7.2.)
    """
    shown = printable(folder)
    if not os.path.isdir(folder):
        missing = not os.path.exists(folder)
        what = f"The {kind.word} folder {'does not exist' if missing else 'is a file'}"
        code = "dataset.missing-folder" if missing else "dataset.not-a-folder"
        return Paired(list(images), {}, [Problem(what, shown, "check the path, or leave the setting empty", code=code)])
    found = walk(folder, cancel)
    by_stem: dict[str, list[File]] = defaultdict(list)
    for file in found.files:
        by_stem[os.path.splitext(file.relative)[0].casefold()].append(file)
    partners: dict[tuple[str, str], File] = {}
    painted = is_painted(folder)
    for image in images:
        if match := _partner(image, inside.get(image.source, ""), by_stem, painted):
            partners[image.key] = match
    used = list({file.path: file for file in partners.values()}.values())
    seen = {file.path: header for file, header in headers(used, memo, cancel)}
    unusable: dict[tuple[str, str], str] = {}
    problems = [*found.problems]
    paired: list[ImageInfo] = []
    other_size: list[str] = []
    for image in images:
        partner = partners.get(image.key)
        if partner is None:
            if kind.needed:
                unusable[image.key] = f"has no {kind.word}"
            else:
                paired.append(image)
            continue
        header = seen[partner.path]
        if isinstance(header, str):
            unusable[image.key] = f"has a {kind.word} that {header}"
            problems.append(problem_of(partner.path, BrokenImage(header), level))
            continue
        if (header.width, header.height) != (image.width, image.height):
            other_size.append(f"{image.relative} ({header.width} x {header.height} for {image.width} x {image.height})")
        own: Any = {kind.field: partner.path}
        paired.append(replace(image, **own))
    taken = {file.path for file in used}
    extra = [file.relative for file in found.files if file.path not in taken]
    without = [image for image in images if image.key not in partners]
    problems += _missing(kind, shown, len(images), without, level) if without else []
    return Paired(paired, unusable, [*problems, *_advice(kind, shown, extra, other_size)])


def mask_paths(images: Sequence[ImageInfo]) -> list[Path]:
    """Paths of the images' masks and control images, each once."""
    return list(dict.fromkeys(path for each in images for path, _ in _beside(each)))


def _beside(image: ImageInfo) -> list[tuple[Path, Kind]]:
    both = ((image.conditioning, MASK), (image.control, CONTROL))
    return [(path, kind) for path, kind in both if path is not None]


def unreadable_masks(
    images: Sequence[ImageInfo],
    decode: bool,
    cancel: CancelToken | None = None,
    memo_path: Path | str | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[dict[tuple[str, str], str], int]:
    """{image key: why} of images whose mask or control image cannot be decoded, and the number of masks not decoded yet.
    Results are cached.

    decode   False: nothing is decoded, only cached results are used
    """
    paths = mask_paths(images)
    files = [file_at(path, str(number)) for number, path in enumerate(paths)]
    reasons: dict[Path, str] = {}
    whole: list[ImageInfo] = []
    for file, header in headers(files, Memo(memo_path), cancel):
        if isinstance(header, str):
            reasons[file.path] = header
        else:
            size = (header.width, header.height)
            whole.append(ImageInfo("masks", file.relative, file.path, *size, file.bytes, file.mtime_ns))
    seen = look_at_all(whole, cancel, progress, memo_path) if decode else looks(whole, memo_path)
    reasons |= {each.path: look.reason for each in whole if (look := seen.get(each.key)) and look.reason}
    unreadable = {
        each.key: f"has a {kind.word}, {printable(path.name)}, that {reasons[path]}"
        for each in images
        for path, kind in _beside(each)
        if path in reasons
    }
    return unreadable, len(whole) - len(seen)


def blank_masks(
    placed: Sequence[Placed], looks: Mapping[tuple[str, str], Look], memo_path: Path | str | None
) -> list[Problem]:
    """Warn of images without any loss: their mask is all black or they are fully transparent, as far as they have been
    decoded. looks: of the images themselves."""
    masked = {
        each.image.key: (each.image, each.image.conditioning)
        for each in placed
        if each.concept.images.masked_loss and each.image.conditioning is not None
    }
    files = {path: file_at(path, "") for _, path in masked.values()}
    known = Memo(memo_path).known(FACT, list(files.values()))
    black = [image for image, path in masked.values() if path in known and from_text(known[path]).brightest == 0]
    clear = [
        each.image
        for each in placed
        if each.concept.images.alpha_mask and each.image.key not in masked
        if (look := looks.get(each.image.key)) and look.opaque == 0
    ]
    return [
        Problem(
            f"{len(found)} of the images {words} and do not affect training: {names_of(found)}",
            printable(found[0].path.parent),
            "paint the area to train white in the masks, or remove these images",
            "advice",
            code=code,
        )
        for found, words, code in (
            (black, "have an all-black mask", "mask.all-black"),
            (clear, "are fully transparent", "image.fully-transparent"),
        )
        if found
    ]


def _partner(image: ImageInfo, inside: str, by_stem: dict[str, list[File]], painted: bool) -> File | None:
    """The mask at the same path below the settings' folder, else (not of painted ones) below the image's own folder, else of
    the same name; the same extension first."""
    stem = os.path.splitext(image.relative)[0]
    places = [f"{inside}/{stem}" if inside else stem, stem, stem.rpartition("/")[2]]
    for place in places[:1] if painted else dict.fromkeys(places):
        files = by_stem.get(place.casefold())
        if files:
            ending = extension(image.relative)
            return min(files, key=lambda file: (extension(file.relative) != ending, file.relative))
    return None


def _missing(kind: Kind, shown: str, total: int, missing: Sequence[ImageInfo], level: str) -> list[Problem]:
    what = f"{len(missing)} of {total} images without a {kind.word}"
    if kind.needed:
        fix = f"add a {kind.word} of the same name for each, or remove these images"
    else:
        what, level = f"{what}, trained on the full image", "advice"
        fix = "add the missing masks if parts of these images should be excluded"
    return [Problem(f"{what}: {names_of(missing)}", shown, fix, level, code=f"{kind.code}.missing")]


def _advice(kind: Kind, shown: str, extra: Sequence[str], other_size: Sequence[str]) -> list[Problem]:
    found = []
    if extra:
        what = f"{count(len(extra), 'file')} in the {kind.word} folder match no image: {listed(extra)}"
        fix = "rename them like their images, or ignore this"
        found.append(Problem(what, shown, fix, "advice", code=f"{kind.code}.unmatched"))
    if other_size:
        what = f"{count(len(other_size), kind.word)} will be resized to match the image: {listed(other_size, 3)}"
        fix = "save them at the image's size if the edges must be exact"
        found.append(Problem(what, shown, fix, "advice", code=f"{kind.code}.other-size"))
    return found
