"""Masks and control images: pairing of each image with the file of the same name in another folder."""

from __future__ import annotations

import os
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from core.dataset.images.look import Look, known_looks, look_at_all, looks
from core.dataset.images.opening import BrokenImage, problem_of
from core.dataset.sources.files import (
    CONTROL_LABEL,
    MASK_LABEL,
    extension,
    name_key,
    printable,
    reachable,
    split_label,
    stem_key,
)
from core.dataset.sources.image_info import ImageInfo, about, listed
from core.dataset.sources.memo import Memo
from core.dataset.sources.painted import is_painted, replaced_folders
from core.dataset.sources.walk import File, file_at, headers, image_of, walk
from core.record.cancel import CancelToken
from core.record.problems import Problem
from core.record.units import count
from core.record.workspace import resolve_path
from core.settings.dataset.concepts import Concept
from core.settings.dataset.images import ImageSettings

_MASK_NAME = re.compile(r"(.+)(?:[_.-]mask|-masklabel[1-9])", re.DOTALL)
_IN_MASKS = re.compile(r"(.*/|)masks?/([^/]+)", re.DOTALL)

if TYPE_CHECKING:
    from core.dataset.buckets.batches import Placed


@dataclass(frozen=True)
class PartnerKind:
    """A kind of partner file: mask or control image.

    field    of ImageInfo that has the file
    word     name in messages
    code     prefix of its problems' codes
    label    suffix of OneTrainer's file names
    needed   whether an image without a partner cannot train
    """

    field: str
    word: str
    code: str
    label: str
    needed: bool = False


DARK = 16  # levels of 255 below which a mask counts as almost black, such as one with values of 0 and 1
MASK = PartnerKind("conditioning", "mask", "mask", MASK_LABEL)
CONTROL = PartnerKind("control", "control image", "control", CONTROL_LABEL, needed=True)


@dataclass(frozen=True)
class Paired:
    """Images paired with their partners, masks or control images.

    images     usable images, with their partner if they have one
    unusable   image key -> why the image cannot be used
    """

    images: list[ImageInfo]
    unusable: dict[tuple[str, str], str]
    problems: list[Problem]


def conditioning_folder(setting: str | None) -> Path | None:
    """Convert a folder setting to a path; None if it is empty."""
    return reachable(resolve_path(setting)) if setting else None


def mask_folders(concept: Concept) -> list[Path]:
    """Return the folder of a concept's masks or control images, and those that it replaced. Their files are not images to train."""
    folder = conditioning_folder(concept.images.conditioning_data_dir)
    return [folder, *replaced_folders(folder)] if folder else []


@dataclass(frozen=True)
class Partners:
    """Files that may be the masks or control images of images.

    where   their folder, for messages
    files   all of them
    find    (image) -> the files with its name, of which the first is used
    others  those of images without one of these
    """

    where: str
    files: Sequence[File]
    find: Callable[[ImageInfo], Sequence[File]]
    problems: Sequence[Problem] = ()
    others: Partners | None = None


def folder_partners(
    folder: Path,
    subfolders: Mapping[str, str],
    kind: PartnerKind,
    suffix: str | None = None,
    cancel: CancelToken | None = None,
) -> Partners | Problem:
    """Return the partners in a folder, found by the images' names, or the problem if it is not a folder.

    Names match with any image extension, in any case, in the same subfolders. A painted mask (`painted.py`) only matches the image
    at the same path, not images of the same name in other folders, and has no suffix.

    subfolders   source id -> its path below the dataset folder ("10_fox"), which the partners' folder may mirror too
    suffix       of the partners' names, after the image's name; None for none
    """
    where = printable(folder)
    if not os.path.isdir(folder):
        missing = not os.path.exists(folder)
        what = f"The {kind.word} folder {'does not exist' if missing else 'is a file'}"
        code = "dataset.missing-folder" if missing else "dataset.not-a-folder"
        return Problem(what, where, "check the path, or leave the setting empty", code=code)
    walked = walk(folder, cancel)
    painted = is_painted(folder)
    by_stem = _by_stem(walked.files, None if painted else suffix, kind)
    return Partners(
        where, walked.files, lambda image: _partners_by_name(image, subfolders, by_stem, painted), walked.problems
    )


def sidecar_partners(files: Mapping[str, Sequence[File]], where: str) -> Partners:
    """Return partners that are in the image folders themselves.

    files   source id -> its partner files, renamed to the images' names
    where   the image folder, for messages
    """
    by_name = {source: _by_stem(members, None) for source, members in files.items()}

    def find(image: ImageInfo) -> Sequence[File]:
        return by_name.get(image.source, {}).get(stem_key(image.relative), ())

    return Partners(where, [file for members in files.values() for file in members], find)


def without_suffix(files: Sequence[File], suffix: str) -> tuple[list[File], list[File]]:
    """Split files into (images, partners): partners' names end with `suffix` and are returned without it."""
    images: list[File] = []
    partners: list[File] = []
    for file in files:
        stem, ending = os.path.splitext(file.relative)
        if stem.casefold().endswith(suffix.casefold()) and len(stem.rpartition("/")[2]) > len(suffix):
            partners.append(replace(file, relative=stem[: -len(suffix)] + ending))
        else:
            images.append(file)
    return images, partners


def unused_labels(files: Sequence[File], concept: Concept, folder: Path) -> list[Problem]:
    """Return advice about OneTrainer's masks and control images (a-masklabel.png, a-condlabel.png) that are not used.

    files    such files in an image folder
    folder   the image folder, for messages
    """
    problems = []
    for kind in (MASK, CONTROL):
        names = [file.path.name for file in files if split_label(file.path.stem)[1].casefold() == kind.label]
        fix, field = "ignore this; they are not trained", ""
        if concept.control and kind is CONTROL:
            fix = f"enter {kind.label} as '{ImageSettings.title_of('conditioning_suffix')}'"
            field = "dataset.conditioning_suffix"
        elif kind is MASK and not concept.images.masked_loss and not concept.control:
            fix, field = f"turn on '{ImageSettings.title_of('masked_loss')}' to use them", "dataset.masked_loss"
        if names:
            what = f"{count(len(names), kind.word)} next to the images ({kind.label}) not used: {listed(names)}"
            problems.append(Problem(what, printable(folder), fix, "advice", field, code=f"{kind.code}.not-used"))
    return problems


def like_masks(files: Sequence[File], folder: Path) -> list[Problem]:
    """Return advice about images that are named like masks of others: a_mask.png, a.mask, a-masklabel1.png or masks/a.png next to
    a.png.

    files    the images that train
    folder   the image folder, for messages
    """
    names_and_endings = [(file.relative, *os.path.splitext(file.relative)) for file in files]
    stems = {name_key(name if end.lower() == ".mask" else stem): name for name, stem, end in names_and_endings}
    names = []
    for stem, name in stems.items():
        by_name, by_folder = _MASK_NAME.fullmatch(stem), _IN_MASKS.fullmatch(stem)
        if (by_name and by_name[1] in stems) or (by_folder and by_folder[1] + by_folder[2] in stems):
            names.append(printable(name))
    suffix, masked = (ImageSettings.title_of(each) for each in ("conditioning_suffix", "masked_loss"))
    fix = f"set '{suffix}' (_mask) or choose the mask folder, with '{masked}'; else move them out of the folder"
    what = "{n} {is} trained as images and named like masks of others: {names}"
    return about(names, what, fix, "mask.trained", where=printable(folder), noun="file")


def metadata_partners(paths: Mapping[Path, Path], where: str) -> Partners:
    """Return partners that a metadata file lists.

    paths   image -> its partner
    where   the metadata file, for messages
    """
    files = {image: file_at(path, path.name) for image, path in paths.items()}
    return Partners(where, list(files.values()), lambda image: [files[image.path]] if image.path in files else [])


def pair(
    images: Sequence[ImageInfo],
    partners: Partners,
    kind: PartnerKind = MASK,
    *,
    memo: Memo | None = None,
    cancel: CancelToken | None = None,
    level: str = "error",
    alpha: bool = False,
) -> Paired:
    """Pair each image with its mask or control image.

    level   severity of the problems of an unreadable partner or a missing control image
    alpha   whether transparency is a mask too; missing masks are then reported by `unmasked_advice` once images are decoded

    A mask of another size is resized with its image, a control image of the same aspect ratio too. (sd-scripts refuses both;
    reference 7.2.)
    """
    others = partners.others
    matches = {image.key: partners.find(image) or (others.find(image) if others else ()) for image in images}
    used = list({files[0].path: files[0] for files in matches.values() if files}.values())
    header_of = {file.path: header for file, header in headers(used, memo, cancel)}
    unusable: dict[tuple[str, str], str] = {}
    problems = [*partners.problems, *(others.problems if others else ())]
    paired: list[ImageInfo] = []
    for image in images:
        if not matches[image.key]:
            if kind.needed:
                unusable[image.key] = f"has no {kind.word}"
            else:
                paired.append(image)
            continue
        partner = matches[image.key][0]
        header = header_of[partner.path]
        if isinstance(header, str):
            unusable[image.key] = f"has a {kind.word} that {header}"
            problems.append(problem_of(partner.path, BrokenImage(header), level))
            continue
        change: Any = {kind.field: partner.path}
        paired.append(replace(image, **change))
    unpaired = [image for image in images if not matches[image.key]]
    problems += [] if alpha else _missing(kind, partners.where, len(images), unpaired, level)
    problems += _size_problems(kind, partners.where, paired, header_of, level)
    problems += _animated(kind, partners.where, used, header_of)
    problems += _exchanged_problem(partners.where, images, used) if kind.needed else []
    return Paired(paired, unusable, problems)


def _by_stem(files: Sequence[File], suffix: str | None, kind: PartnerKind | None = None) -> dict[str, list[File]]:
    """Return {image's path without extension, see `name_key`: its partner files}.

    Files are recognized by the suffix; without a suffix by OneTrainer's label (if `kind` is given), else by the plain name.
    """
    by_stem: dict[str, list[File]] = defaultdict(list)
    if kind and not suffix:
        unlabelled, labelled = without_suffix(files, kind.label)
        labelled_stems = {stem_key(file.relative) for file in labelled}
        files = [*labelled, *(file for file in unlabelled if stem_key(file.relative) not in labelled_stems)]
    for file in without_suffix(files, suffix)[1] if suffix else files:
        by_stem[stem_key(file.relative)].append(file)
    return by_stem


def mask_paths(images: Sequence[ImageInfo]) -> list[Path]:
    """Return the paths of the images' masks and control images, each once."""
    return list(dict.fromkeys(path for each in images for path, _ in _partner_files(each)))


def _partner_files(image: ImageInfo) -> list[tuple[Path, PartnerKind]]:
    """Return (path, kind) of an image's mask and control image, without missing ones."""
    both = ((image.conditioning, MASK), (image.control, CONTROL))
    return [(path, kind) for path, kind in both if path is not None]


def unreadable_masks(
    images: Sequence[ImageInfo],
    decode: bool,
    cancel: CancelToken | None = None,
    memo_path: Path | str | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[dict[tuple[str, str], str], int]:
    """Return ({image key: why its mask or control image cannot be decoded}, number of masks and control images not decoded yet).

    decode      False decodes nothing and uses earlier results only
    memo_path   where results are stored
    progress    called with (done, total)
    """
    paths = mask_paths(images)
    files = [file_at(path, str(number)) for number, path in enumerate(paths)]
    reasons: dict[Path, str] = {}
    with_header: list[ImageInfo] = []
    for file, header in headers(files, Memo(memo_path), cancel):
        if isinstance(header, str):
            reasons[file.path] = header
        else:
            with_header.append(image_of("masks", file, header))
    measured = look_at_all(with_header, cancel, progress, memo_path) if decode else looks(with_header, memo_path)
    reasons |= {each.path: look.reason for each in with_header if (look := measured.get(each.key)) and look.reason}
    unreadable = {
        each.key: f"has a {kind.word}, {printable(path.name)}, that {reasons[path]}"
        for each in images
        for path, kind in _partner_files(each)
        if path in reasons
    }
    return unreadable, len(with_header) - len(measured)


def blank_mask_advice(
    placed: Sequence[Placed], looks: Mapping[tuple[str, str], Look], memo_path: Path | str | None
) -> list[Problem]:
    """Return advice about images without any loss, as far as decoded: with an all-black mask, or fully transparent.
    looks: image key -> measurements of the image"""
    masked = {
        each.image.key: (each.image, each.image.conditioning)
        for each in placed
        if each.concept.images.masked_loss and each.image.conditioning is not None
    }
    files = {path: file_at(path, "") for _, path in masked.values()}
    mask_looks = known_looks(Memo(memo_path), list(files.values()))
    brightest = {path: look.brightest for path, look in mask_looks.items()}
    black = [image for image, path in masked.values() if brightest.get(path) == 0]
    dark = [image for image, path in masked.values() if 0 < brightest.get(path, 0) < DARK]
    transparent = [
        each.image
        for each in placed
        if each.concept.images.alpha_mask and each.image.key not in masked
        if (look := looks.get(each.image.key)) and look.opaque == 0
    ]
    without_loss = len(black) + len(transparent)
    level = "error" if without_loss == len(placed) else "warning" if 2 * without_loss > len(placed) else "advice"
    fix = "paint the area to train white in the masks, or remove these images"
    dark_fix = "save the masks with values from 0 to 255, where 255 is white"
    return [
        *about(
            black, "{n} {has} an all-black mask and {do} not affect training: {names}", fix, "mask.all-black", level
        ),
        *about(dark, "{n} {has} a mask that is almost black everywhere: {names}", dark_fix, "mask.dark", "warning"),
        *about(
            transparent,
            "{n} {is} fully transparent and {do} not affect training: {names}",
            fix,
            "image.fully-transparent",
            level,
        ),
    ]


def unmasked_advice(placed: Sequence[Placed], looks: Mapping[tuple[str, str], Look]) -> list[Problem]:
    """Return advice about images with neither mask nor transparency, as far as decoded: in folders that use both, or if no image has any.
    looks: image key -> measurements of the image"""
    by_folder: dict[int, list[Placed]] = defaultdict(list)
    for each in placed:
        if each.concept.images.alpha_mask and not each.concept.control:
            by_folder[each.concept.number].append(each)
    problems: list[Problem] = []
    opaque_of = {
        number: [
            each.image
            for each in members
            if each.image.conditioning is None
            if (look := looks.get(each.image.key)) and not look.transparent
        ]
        for number, members in by_folder.items()
    }
    for number, members in by_folder.items():
        images = members[0].concept.images
        if images.masked_loss and (folder := conditioning_folder(images.conditioning_data_dir)):
            problems += _missing(MASK, printable(folder), len(members), opaque_of[number], "advice")
    if by_folder and not problems and sum(map(len, opaque_of.values())) == sum(map(len, by_folder.values())):
        what, fix = "Alpha mask is on, but no image has transparency", "save images with transparency, or turn it off"
        problems.append(Problem(what, "dataset.alpha_mask", fix, "warning", code="mask.no-transparency"))
    return problems


def _partners_by_name(
    image: ImageInfo, subfolders: Mapping[str, str], by_stem: Mapping[str, Sequence[File]], painted: bool
) -> Sequence[File]:
    """Return the partner files of an image, those with its extension first; [] if there are none.

    They are at the image's path below the dataset folder, else (unless `painted`) at its path below its source folder, else have
    its file name.

    subfolders   source id -> its path below the dataset folder
    by_stem      see `_by_stem`
    """
    stem = os.path.splitext(image.relative)[0]
    folder = subfolders.get(image.source, "")
    candidates = [f"{folder}/{stem}" if folder else stem, stem, stem.rpartition("/")[2]]
    for candidate in candidates[:1] if painted else dict.fromkeys(candidates):
        files = by_stem.get(name_key(candidate))
        if files:
            ending = extension(image.relative)
            return sorted(files, key=lambda file: (extension(file.relative) != ending, file.relative))
    return []


def _missing(kind: PartnerKind, where: str, total: int, missing: Sequence[ImageInfo], level: str) -> list[Problem]:
    """Return the problem of images without a partner, of `level` if the kind needs one, else advice, or a warning if none has one.

    where   the partners' folder
    total   number of all images
    """
    what = f"{len(missing)} of {total} images without a {kind.word}"
    if kind.needed:
        fix = f"add a {kind.word} of the same name for each, or remove these images"
        if len(missing) == total:
            fix = f"choose a folder with a {kind.word} of the same name for each, or enter the suffix of their names"
    else:
        what, level = f"{what}, trained on the full image", "warning" if len(missing) == total else "advice"
        fix = "add the missing masks if parts of these images should be excluded"
    return about(missing, f"{what}: {{names}}", fix, f"{kind.code}.missing", level, where=where)


def extra_problems(
    kind: PartnerKind, where: str, partners: Iterable[File], matches: Iterable[Sequence[File]]
) -> Iterator[Problem]:
    """Yield advice about unused partner files: several for one image, and those that match no image.
    matches: for each image of all folders with these partners, the partner files with its name"""
    nonempty = [files for files in matches if files]
    used = {files[0].path for files in nonempty}
    duplicates = {file.path: files[0] for files in nonempty for file in files[1:] if file.path not in used}
    pairs = [f"{path.name} (next to {first.path.name})" for path, first in duplicates.items()]
    what, fix = "{n} of a name that is taken already will not be used: {names}", "keep one file for each image"
    yield from about(pairs, what, fix, f"{kind.code}.doubled", where=where, noun=kind.word)
    paths = dict.fromkeys(file.path for file in partners)
    extra = [path.name for path in paths if path not in used and path not in duplicates]
    match = "matches" if len(extra) == 1 else "match"
    what = f"{{n}} among the {kind.word}s {match} no image: {{names}}"
    fix = "rename them like their images, or ignore this"
    yield from about(extra, what, fix, f"{kind.code}.unmatched", where=where, noun="file")


def _size_problems(
    kind: PartnerKind, where: str, paired: Sequence[ImageInfo], header_of: Mapping[Path, Any], level: str
) -> list[Problem]:
    """Return problems of masks of another size, or control images of another aspect ratio, than their images.
    header_of: path of a partner -> its header"""
    other = []
    for image in paired:
        header = header_of[path] if (path := getattr(image, kind.field)) else image
        size, image_size = (header.width, header.height), (image.width, image.height)
        if size != image_size and not (kind.needed and same_aspect_ratio(size, image_size)):
            other.append(f"{image.relative} ({size[0]} x {size[1]} for {image.width} x {image.height})")
    what = "{n} will be resized to match the image: {names}"
    fix, code = "save them at the image's size if the edges must be exact", f"{kind.code}.other-size"
    if kind.needed:
        what = "{n} of another aspect ratio than the image: {names}"
        fix, code = "make them again from the images, or crop both alike", f"{kind.code}.other-aspect-ratio"
    level = level if kind.needed else "advice"
    return about(other, what, fix, code, level, where=where, noun=kind.word, most=3)


def _animated(kind: PartnerKind, where: str, used: Sequence[File], header_of: Mapping[Path, Any]) -> list[Problem]:
    """Return advice about animated masks or control images, of which only the first frame is used."""
    animated = [file.path.name for file in used if getattr(header_of[file.path], "animated", False)]
    what, fix = "{n}: only the first frame is used ({names})", "save the frame that fits the image"
    return about(animated, what, fix, f"{kind.code}.animated", where=where, noun=f"animated {kind.word}")


def same_aspect_ratio(first: tuple[int, int], second: tuple[int, int]) -> bool:
    """Return whether two (width, height) have the same aspect ratio, up to rounding a side of the smaller to whole pixels."""
    (width, height), (larger_width, larger_height) = sorted((first, second))
    return abs(width * larger_height - height * larger_width) <= max(larger_width, larger_height)


def _exchanged_problem(where: str, images: Sequence[ImageInfo], used: Sequence[File]) -> Iterator[Problem]:
    """Yield a warning that the folders are exchanged if captions are next to the control images and none next to the images.
    used: the control images"""
    described = sum(bool(file.sidecars) for file in used)
    if described > len(used) / 2 and not any(image.sidecars or image.metadata_caption for image in images):
        what = (
            "The captions lie next to the control images, and none next to the images: the folders seem to be exchanged"
        )
        fix = "choose the folder with the captions as the image folder, and the other one for the control images"
        yield Problem(what, where, fix, "warning", code="control.exchanged")
