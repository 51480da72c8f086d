"""Painted masks: the mask that painting starts from, checks of an uploaded mask, and the folder of masks."""

import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

from PIL import Image

from core.dataset.captions.history import Change, History, content_of
from core.dataset.images.colors import BLACK, composite, to_srgb
from core.dataset.images.opening import LARGE_PIXELS, BrokenImage, open_decoded
from core.dataset.sources.files import is_image_name, is_label, printable, reachable, stem_key
from core.dataset.sources.image_info import ImageInfo
from core.dataset.sources.painted import MARK, images_of, sidecar_mask
from core.record import atomic
from core.record.problems import Problem, ProblemsError, write_errors
from core.record.units import size_text

MAX_BYTES = 5 << 20  # of an uploaded mask: it comes as base64 in a message of at most 8 MB


@dataclass(frozen=True)
class InitialMask:
    """The mask that painting starts from.

    mask     L at the image's size, white trains; None for no mask
    origin   "painted", "folder" (the mask folder), "beside" (OneTrainer's), "alpha" (the image's transparency) or ""
    unread   why an existing mask cannot be shown, as predicate of "the mask ..."; else empty
    """

    mask: Image.Image | None = None
    origin: str = ""
    unread: str = ""


def initial_mask(image: ImageInfo, painted: Path | None, may_read: Callable[[Path], bool]) -> InitialMask:
    """Return the painted mask of an image, else that of its mask folder, else a sidecar mask, else the image's transparency.

    painted    file of the painted mask, if any
    may_read   returns whether a mask file may be read; others are skipped
    """
    size = (image.width, image.height)
    paired = image.conditioning
    where = "beside" if paired and is_label(paired.name) and paired.parent == image.path.parent else "folder"
    for origin, path in (("painted", painted), (where, paired), ("beside", sidecar_mask(image))):
        if path is None or not os.path.lexists(path) or not may_read(path):
            continue
        try:
            mask = open_decoded(path, managed=False, enough=size).on(BLACK).getchannel("R")
        except BrokenImage as error:
            return InitialMask(origin=origin, unread=str(error))
        return InitialMask(mask if mask.size == size else mask.resize(size, Image.Resampling.BILINEAR), origin)
    try:
        alpha = open_decoded(image.path, enough=size).alpha
    except BrokenImage:
        return InitialMask()
    return InitialMask(alpha, "alpha") if alpha is not None else InitialMask()


def too_large(size: tuple[int, int], where: str) -> Problem | None:
    """Return the problem of an image that is too large to paint on, else None.

    A browser's canvas takes 4 bytes per pixel, several times.

    size    (width, height)
    where   the image's name, for the problem
    """
    if size[0] * size[1] <= LARGE_PIXELS:
        return None
    what = f"The image has more than {LARGE_PIXELS // 1_000_000} million pixels, too many to paint on"
    fix = "resize a copy on Tools, or choose a folder with masks made elsewhere"
    return Problem(what, where, fix, code="mask.image-too-large")


def decoded_mask(data: bytes, image: ImageInfo) -> Image.Image:
    """Decode an uploaded PNG to a mask (L). Raises ProblemsError unless it has the image's size after EXIF rotation."""
    return decoded_png(data, (image.width, image.height), printable(image.relative)).getchannel("R")


def decoded_png(data: bytes, size: tuple[int, int], where: str) -> Image.Image:
    """Decode an uploaded PNG to RGB, composited on black. Raises ProblemsError unless its size is `size` (width, height).
    where: the image's name, for problems"""
    if len(data) > MAX_BYTES:
        what = f"The mask is larger than {size_text(MAX_BYTES)}"
        fix = "paint with hard edges, or resize the image on Tools"
        raise ProblemsError.one(what, where, fix, "mask.too-many-bytes")
    try:
        with Image.open(BytesIO(data), formats=("PNG",)) as opened:
            mask_size = opened.size
            if mask_size == size:  # else nothing of it is decoded, however large it claims to be
                opened.load()  # the file is closed at the end
                opened.info.pop("icc_profile", None)
                colors, alpha = to_srgb(opened)
                return composite(colors, alpha, BLACK)
    except Exception as error:  # decoders raise OSError, SyntaxError, ValueError, DecompressionBombError ...
        raise ProblemsError.one("The mask is not a PNG image", where, "paint it again", "mask.not-png") from error
    what = f"The mask is {mask_size[0]} x {mask_size[1]}, but the image is {size[0]} x {size[1]}"
    raise ProblemsError.one(what, where, "reload the page and paint it again", "mask.other-size")


def begin_folder(folder: Path, images: Path) -> None:
    """Create a folder for painted masks of the images below `images`, atomically. Raises ProblemsError."""
    with write_errors("The mask folder cannot be created", printable(folder)):
        with atomic.folder_atomic(folder) as temporary:
            atomic.write_json(temporary / MARK, {"images": os.path.realpath(images)})


def record_replaced(folder: Path, replaced: Iterable[Path]) -> None:
    """Record in a folder of painted masks which mask folders it replaces in the settings, that of the other images first. Raises
    ProblemsError."""
    paths = list(dict.fromkeys(map(str, replaced)))
    with write_errors("The mask folder cannot be changed", printable(folder)):
        atomic.write_json(folder / MARK, {"images": images_of(folder), "replaced": paths})


def mask_in(folder: Path, stem: str) -> Path | None:
    """Return an image's mask in a folder of painted masks, or None.
    stem: the image's path below the image folder without its extension"""
    target = reachable(folder / f"{stem}.png")
    if target.is_file():
        return target
    return next(iter(_others(target)), None) if target.parent.is_dir() else None


def write_mask(history: History, folder: Path, stem: str, mask: Image.Image) -> Path:
    """Save a painted mask as PNG and return its path. Raises ProblemsError.

    A mask in another format is deleted; undo restores it.

    stem   the image's path below the image folder without its extension
    """
    target = reachable(folder / f"{stem}.png")
    with write_errors("The mask cannot be saved", printable(target)):
        target.parent.mkdir(parents=True, exist_ok=True)
    png = BytesIO()
    mask.save(png, "PNG")
    changes = [Change(target, content_of(target), png.getvalue())]
    changes += [Change(path, content_of(path), None) for path in _others(target)]
    history.apply("Paint mask", changes)
    return target


def _others(target: Path) -> list[Path]:
    """Return masks of the same image with another extension."""
    masks = (path for path in target.parent.iterdir() if is_image_name(path.name) and path.name != target.name)
    return [path for path in masks if stem_key(path.name) == stem_key(target.name)]
