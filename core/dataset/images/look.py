"""Measurements of decoded images, for finding near duplicates, blurry and framed images."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
from PIL import Image

from core.dataset.images.colors import BLACK, WHITE
from core.dataset.images.opening import BrokenImage, UnreachableImage, open_decoded, remarks
from core.dataset.sources.image_info import ImageInfo
from core.dataset.sources.memo import FileFacts, Memo
from core.record.bounded_json import json_or_none
from core.record.cancel import CancelToken

MEASURED_SIDE = 256  # pixels of the longer side that everything is measured at, so that images of any size compare
MEMO_KIND = "look 2"  # kind of entry in the memo; raised when a measure changes
_EVEN = 8  # levels of 255 within which an edge row still counts as one color (JPEG leaves some noise)


@dataclass(frozen=True, slots=True)
class Look:
    """Measurements of a decoded image.

    reason        why the image cannot be decoded, as predicate of "the image ..."; "" if it can. Broken images have no measures
    remark        damage that the decoder skipped, such as bad metadata; "" for none
    transparent   whether at least one pixel is not opaque
    dhash         16 hex digits, 64 bits, of which few differ between near duplicates; all zeros for an image of one color
    blur          variance of the Laplacian, levels of 255 squared; sharp photographs have hundreds, blurry ones a few
    brightest     maximum of the red channel on black, 0 to 255 (the maximum of a mask)
    opaque        maximum of alpha, 0 to 255
    border        fraction of the area in edge rows and columns of one color, 0 to 1
    """

    reason: str = ""
    transparent: bool = False
    dhash: str = ""
    blur: float = 0.0
    border: float = 0.0
    brightest: int = 255
    opaque: int = 255
    remark: str = ""


def measure(image: Image.Image, transparent: bool = False) -> Look:
    """Return the measurements of a decoded image (RGB, upright), except those of the decoder and of single channels.
    transparent: whether the file has alpha"""
    small = _small(image)
    gray = np.asarray(small.convert("L"), dtype=np.float32)
    return Look("", transparent, difference_hash(small), laplacian_variance(gray), border_share(np.asarray(small)))


def looks(images: Sequence[ImageInfo], memo: Memo | Path | str | None) -> dict[tuple[str, str], Look]:
    """Return {image key: measurements} of the images that were decoded before (`look_at_all`); decodes nothing.
    memo: where measurements are stored; None: nowhere, so the result is empty"""
    stored = known_looks(memo if isinstance(memo, Memo) else Memo(memo), images)
    return {image.key: stored[image.path] for image in images if image.path in stored}


def known_looks(memo: Memo, files: Sequence[FileFacts]) -> dict[Path, Look]:
    """Return {path: measurements} of the files that were decoded before; damaged rows of the memo are left out."""
    looks = {path: from_text(text) for path, text in memo.known(MEMO_KIND, files).items()}
    return {path: look for path, look in looks.items() if look is not None}


def to_text(look: Look) -> str:
    """Return measurements as JSON, to store them."""
    return json.dumps(asdict(look))


def from_text(text: str) -> Look | None:
    """Parse measurements stored by `to_text`; None for other text."""
    try:
        return Look(**json_or_none(text))
    except TypeError:
        return None


# ---- measures


def _small(image: Image.Image) -> Image.Image:
    """Return the image with a longer side of at most 256 pixels, reduced by area averaging."""
    longer = max(image.size)
    if longer <= MEASURED_SIDE:
        return image
    size = tuple(max(1, round(side * MEASURED_SIDE / longer)) for side in image.size)
    return image.resize((size[0], size[1]), Image.Resampling.BOX, reducing_gap=2.0)


def difference_hash(image: Image.Image) -> str:
    """Return the dHash (N. Krawetz, 2013): for 9 x 8 gray pixels, whether each is darker than its right neighbor.

    64 bits row by row as 16 hex digits.
    """
    gray = np.asarray(image.convert("L").resize((9, 8), Image.Resampling.LANCZOS))
    bits = (gray[:, 1:] > gray[:, :-1]).ravel()
    return f"{int(''.join('1' if bit else '0' for bit in bits), 2):016x}"


def laplacian_variance(gray_HW: np.ndarray) -> float:
    """Return the variance of the second differences (Pech-Pacheco et al. 2000): kernel 0 1 0 / 1 -4 1 / 0 1 0.

    Only inner pixels count; 0 for an image of less than 3 x 3 pixels.
    """
    if min(gray_HW.shape) < 3:
        return 0.0
    middle = gray_HW[1:-1, 1:-1]
    around = gray_HW[:-2, 1:-1] + gray_HW[2:, 1:-1] + gray_HW[1:-1, :-2] + gray_HW[1:-1, 2:]
    return float(np.var(around - 4 * middle))


def border_share(pixels_HWC: np.ndarray) -> float:
    """Return the fraction of the area in edge rows and columns of one color, that of the outermost; 0 to 1.

    pixels_HWC   uint8 [H, W, 3]
    Rows and columns are removed in turn while they match, each side in the color it started with, so that a gradual sky
    does not count as a border. An image of one color is all border (1.0).
    """
    inner, area = pixels_HWC, pixels_HWC.shape[0] * pixels_HWC.shape[1]
    colors: dict[tuple[int, bool], np.ndarray] = {}  # of the sides removed before
    removed = True
    while removed:
        removed = False
        for axis in (0, 1):  # rows, then (turned) columns
            counts = []
            for side, lines in ((False, inner), (True, inner[::-1])):
                color = colors.get((axis, side), lines[0].astype(np.float32).mean(axis=0))
                counts.append(_even_lines(lines, color))
                if counts[-1]:
                    colors[axis, side] = color
            if sum(counts) >= len(inner):
                return 1.0
            removed = removed or sum(counts) > 0
            inner = inner[counts[0] : len(inner) - counts[1]].transpose(1, 0, 2)
    return 1.0 - inner.shape[0] * inner.shape[1] / area


def _even_lines(pixels: np.ndarray, color: np.ndarray) -> int:
    """Return how many of the first lines of `pixels` [N, M, C] have this color [C], within _EVEN levels."""
    even = (np.abs(pixels.astype(np.float32) - color) <= _EVEN).all(axis=(1, 2))
    return len(even) if even.all() else int(np.argmin(even))


# ---- decoding every image once


MOST_REMARK = 200  # letters
ImageKey = tuple[str, str]


def look_at_all(
    images: Sequence[ImageInfo],
    cancel: CancelToken | None = None,
    progress: Callable[[int, int], None] | None = None,
    memo_path: Path | str | None = None,
    threads: int = 4,
) -> dict[ImageKey, Look]:
    """Decode every image whose measurements are not stored yet; return {image key: measurements, or why it is broken} of all.

    A header can be valid where the rest is truncated. Results are stored in `memo_path` by path, size and time, also
    after a cancel, except errors that may pass while the file stays the same (permissions, memory, missing decoders).

    progress   called with (done, total) images
    """
    results = Memo(memo_path).facts(
        MEMO_KIND,
        images,
        _look_at,
        cancel.check if cancel else None,
        progress,
        to_text=lambda look: to_text(look) if isinstance(look, Look) else None,
        from_text=from_text,
        threads=max(1, threads),
        at_once=8 * threads,
    )
    looks = ((image.key, results[image.path]) for image in images)
    return {key: look if isinstance(look, Look) else Look(str(look)) for key, look in looks}


def _look_at(image: ImageInfo) -> Look | UnreachableImage:
    """Decode one image and return its measurements, or an error that may pass while the file stays the same."""
    try:
        with remarks() as warnings:
            opened = open_decoded(image.path, enough=(2 * MEASURED_SIDE, 2 * MEASURED_SIDE))
        if opened.size != (image.width, image.height):
            return Look("has a different size than its header states")
        red = opened.on(BLACK).getchannel("R")
        look = measure(opened.on(WHITE), transparent=opened.alpha is not None)
        opaque = 255 if opened.alpha is None else int(opened.alpha.getextrema()[1])  # type: ignore[arg-type]
        remark = warnings[0].strip()[:MOST_REMARK] if warnings else ""
        return replace(look, brightest=int(red.getextrema()[1]), opaque=opaque, remark=remark)  # type: ignore[arg-type]
    except UnreachableImage as error:
        return error
    except BrokenImage as error:
        return Look(str(error))


def reasons_of(looks: Mapping[ImageKey, Look]) -> dict[ImageKey, str]:
    """Return {image key: reason} of the images that cannot be decoded."""
    return {key: look.reason for key, look in looks.items() if look.reason}
