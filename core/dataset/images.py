"""Pictures as arrays: opened the right way up, in sRGB, on white, resized and cropped to their bucket."""

from __future__ import annotations

import hashlib
import io
import math
import os
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import (  # the readers register themselves when imported
    AvifImagePlugin,  # noqa: F401
    BmpImagePlugin,  # noqa: F401
    GifImagePlugin,  # noqa: F401
    Image,
    ImageCms,
    ImageFile,
    JpegImagePlugin,  # noqa: F401
    PngImagePlugin,
    TiffImagePlugin,  # noqa: F401
    WebPImagePlugin,  # noqa: F401
)

from core.dataset.files import PICTURE_FORMATS, printable
from core.dataset.memo import Memo
from core.record.atomic import open_atomic
from core.record.cancel import CancelToken
from core.record.problems import Problem

if TYPE_CHECKING:
    from core.dataset.buckets import Placement
    from core.dataset.scan import Picture

# Above twice its limit Pillow raises, which is reported by name; its warning at the limit itself helps nobody.
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)
warnings.filterwarnings("ignore", message="Corrupt EXIF data")  # the picture is then taken as stored, as viewers do
# Pillow refuses a PNG whose text chunk is above 1 MB. Programs that draw pictures store whole workflows there.
PngImagePlugin.MAX_TEXT_CHUNK = PngImagePlugin.MAX_TEXT_MEMORY = 256 << 20

_ORIENTATION = 0x0112
_SIDEWAYS = (5, 6, 7, 8)
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


class BrokenPicture(Exception):
    """A picture that cannot be read. Its text says why, to be put after "the picture"."""


@dataclass(frozen=True, slots=True)
class Header:
    """What a picture's first bytes tell. width, height: pixels, the right way up."""

    width: int
    height: int
    format: str
    mode: str
    rotated: bool
    animated: bool


# ---- reading


def read_header(path: Path | str) -> Header:
    """Size and kind without decoding (about 0.1 ms). BrokenPicture says what is wrong with a file that has none."""
    with _open(path) as image:
        turn = _orientation(image)
        width, height = image.size
        if turn in _SIDEWAYS:
            width, height = height, width
        animated = image.format != "MPO" and bool(getattr(image, "is_animated", False))
        return Header(width, height, image.format or "", image.mode, turn in _TURNS, animated)


def open_rgb(path: Path | str, draft: tuple[int, int] | None = None) -> Image.Image:
    """The whole picture, decoded: RGB, sRGB, the right way up, on white where it was transparent, first frame.

    draft   (width, height) that will do: a JPEG is then decoded at the nearest larger eighth, which is faster
    """
    with _open(path) as image:
        turn = _orientation(image)  # before load(): the size that was planned came from the header alone
        if draft is not None:
            image.draft("RGB" if image.mode == "RGB" else image.mode, draft)
        try:
            image.load()
            rgb = _to_srgb(image)
        except MemoryError as error:
            raise BrokenPicture(f"of {image.width} x {image.height} pixels does not fit in memory") from error
        except Exception as error:  # decoders raise OSError, SyntaxError, ValueError, struct.error, EOFError ...
            raise BrokenPicture(_plain_reason(error)) from error
    return rgb.transpose(_TURNS[turn]) if turn in _TURNS else rgb


def _open(path: Path | str) -> ImageFile.ImageFile:
    try:
        return Image.open(path, formats=PICTURE_FORMATS)
    except Image.DecompressionBombError as error:
        limit = 2 * (Image.MAX_IMAGE_PIXELS or 0) // 1_000_000
        raise BrokenPicture(
            f"says it has more than {limit} million pixels, which is more than is safe to open"
        ) from error
    except FileNotFoundError as error:
        raise BrokenPicture("is gone, or is a link that leads nowhere") from error
    except PermissionError as error:
        raise BrokenPicture("may not be read (no permission)") from error
    except Exception as error:
        raise BrokenPicture(_what_it_is_instead(path) or _plain_reason(error)) from error


def _what_it_is_instead(path: Path | str) -> str:
    """Common contents of files that are named like pictures and are none."""
    try:
        with open(path, "rb") as handle:
            start = handle.read(512)
    except OSError:
        return ""
    if not start:
        return "is empty (0 bytes)"
    text = start.lstrip().lower()
    if text.startswith((b"<!doctype html", b"<html")):
        return "is a web page that was saved under a picture's name"
    if text.startswith(b"version https://git-lfs"):
        return "is a Git LFS pointer; the picture itself was not downloaded"
    if start[4:12] in (b"ftypheic", b"ftypheix", b"ftypmif1", b"ftyphevc"):
        return "is a HEIC picture, which is not read here"
    if not start.strip(b"\0"):
        return "holds only zeros (an unfinished copy or download)"
    return "is not a picture that can be read"


def _plain_reason(error: Exception) -> str:
    text = str(error)
    if "truncated" in text.lower() or isinstance(error, EOFError):
        return "is cut off (truncated)"
    return f"is damaged ({text or type(error).__name__})"


def _orientation(image: Image.Image) -> int:
    """The EXIF (or XMP) orientation, 1 to 8, from what was read at opening.

    Image.Image.getexif and not the PNG reader's own, which decodes the whole picture to look for a tag at its end.
    """
    info = image.info
    if image.format == "TIFF":  # its reader turns the picture itself and gives the turned size
        return 1
    if not ("exif" in info or "xmp" in info or "Raw profile type exif" in info or "XML:com.adobe.xmp" in info):
        return 1
    try:
        return int(Image.Image.getexif(image).get(_ORIENTATION, 1))
    except Exception:  # damaged EXIF: viewers show such a picture unturned
        return 1


# ---- colours


def _to_srgb(image: Image.Image) -> Image.Image:
    """Any mode -> RGB in sRGB, composited on white."""
    profile = image.info.get("icc_profile")
    if image.mode.startswith("I") or image.mode == "F":
        image = _to_eight_bits(image)
    if image.mode == "P" or "transparency" in image.info:
        image = image.convert("RGBA")
    if image.mode in ("La", "RGBa"):
        image = image.convert({"La": "LA", "RGBa": "RGBA"}[image.mode])
    if image.mode in ("LA", "PA", "RGBA"):
        colours = image.convert("RGBA")
        alpha = colours.getchannel("A")
        base = image.getchannel("L") if image.mode == "LA" else colours.convert("RGB")
        return _on_white(_from_profile(base, profile), alpha)
    return _from_profile(image, profile)


def _to_eight_bits(image: Image.Image) -> Image.Image:
    """16-bit, 32-bit and float grey -> 8 bit by scaling. (Pillow's own conversion clips 16 bits to white.)"""
    values = np.asarray(image).astype(np.float64)
    if image.mode == "F":
        top = 1.0 if values.max(initial=0) <= 1 else 255.0
    else:
        top = 65535.0 if image.mode.startswith("I;16") or values.max(initial=0) > 255 else 255.0
    return Image.fromarray(np.rint(np.clip(values / top, 0, 1) * 255).astype(np.uint8))


def _from_profile(image: Image.Image, profile: bytes | None) -> Image.Image:
    """Colours by their ICC profile to sRGB; without one, or with one that does not fit, Pillow's plain conversion."""
    if not profile or image.mode not in ("L", "RGB", "CMYK"):
        return image.convert("RGB")
    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        converted = ImageCms.profileToProfile(image, source, ImageCms.createProfile("sRGB"), outputMode="RGB")
    except (ImageCms.PyCMSError, OSError, ValueError):
        return image.convert("RGB")
    return converted if converted is not None else image.convert("RGB")


def _on_white(rgb: Image.Image, alpha: Image.Image) -> Image.Image:
    white = Image.new("RGB", rgb.size, (255, 255, 255))
    return Image.composite(rgb, white, alpha)


# ---- sizes


def resize(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    """RGB picture at exactly `size` (width, height): area average where neither side grows, else Lanczos.

    The choice is sd-scripts' (INTER_AREA or Pillow's LANCZOS), so that a picture trains as it does there.
    """
    if image.size == size:
        return image
    if size[0] <= image.width and size[1] <= image.height:
        return Image.fromarray(area_average(np.asarray(image), size))
    return image.resize(size, Image.Resampling.LANCZOS)


def area_average(pixels_HWC: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Each new pixel is the mean of the area it covers, shares of pixels included: what OpenCV calls INTER_AREA.

    Pillow's BOX counts a pixel wholly or not at all, which shifts edges by up to half a pixel at odd ratios.
    pixels_HWC   uint8 [H, W, C];  size (width, height), neither above the picture's;  returns uint8 [height, width, C]
    """
    width, height = size
    rows = _average_rows(pixels_HWC, height)
    columns = _average_rows(np.ascontiguousarray(rows.transpose(1, 0, 2)), width)
    return np.rint(columns.transpose(1, 0, 2)).clip(0, 255).astype(np.uint8)


def _average_rows(pixels: np.ndarray, count: int) -> np.ndarray:
    """[N, W, C] -> float32 [count, W, C]: the mean over N / count rows each, the first and last of them by their share.

    New row j takes the old rows first[j], first[j] + 1, ...: all new rows' k-th old row at once, weighed by its share.
    """
    n = pixels.shape[0]
    if count == n:
        return pixels.astype(np.float32)
    flat, step = pixels.reshape(n, -1), n / count
    low = np.arange(count) * step
    high = np.minimum(low + step, n)
    first = np.floor(low + 1e-9).astype(np.intp)
    result: np.ndarray = np.zeros((count, flat.shape[1]), np.float32)
    for k in range(math.ceil(step - 1e-9) + 1):
        row = first + k
        share = (np.minimum(row + 1, high) - np.maximum(row, low)).clip(0) / step
        if share.any():
            result += share.astype(np.float32)[:, None] * flat[np.minimum(row, n - 1)]
    return result.reshape(count, *pixels.shape[1:])


def load_bucketed(path: Path | str, placement: Placement, flip: bool = False) -> Image.Image:
    """The picture as it trains: RGB at the bucket's size. BrokenPicture when unreadable or of a changed size."""
    image = open_rgb(path)
    if image.size != placement.picture:
        was, now = "{} x {}".format(*placement.picture), "{} x {}".format(*image.size)
        raise BrokenPicture(f"was {was} pixels when the folder was read and is {now} now")
    image = resize(image, placement.resized)
    left, top = placement.crop
    image = image.crop((left, top, left + placement.bucket[0], top + placement.bucket[1]))
    return image.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if flip else image


def load_pixels(path: Path | str, placement: Placement, flip: bool = False) -> np.ndarray:
    """float32 [3, H, W] in [-1, 1], H and W the bucket's: what the VAE encodes."""
    pixels = np.asarray(load_bucketed(path, placement, flip), dtype=np.float32)
    return np.ascontiguousarray(pixels.transpose(2, 0, 1)) / np.float32(127.5) - np.float32(1)


def problem_of(path: Path | str, error: Exception, level: str = "error") -> Problem:
    """A broken picture in the form a person meets."""
    return Problem(
        f"The picture {os.path.basename(printable(path))} {error}.",
        printable(path),
        "Replace or remove it, or turn on 'Leave out broken pictures'.",
        level,
    )


# ---- thumbnails


def thumbnail(path: Path | str, size: int, thumbs_dir: Path | str) -> Path:
    """A small JPEG of the picture, at most `size` pixels a side, made once for each state of the file.

    BrokenPicture when it cannot be read. The name is a hash of path, size and time, so a changed one gets another.
    """
    try:
        found = os.stat(path)
    except OSError as error:
        raise BrokenPicture("is gone, or is a link that leads nowhere") from error
    state = f"{os.path.abspath(path)}\x1f{found.st_size}\x1f{found.st_mtime_ns}\x1f{size}"
    name = hashlib.sha256(state.encode("utf-8", "surrogateescape")).hexdigest()[:40]
    target = Path(thumbs_dir) / name[:2] / f"{name}.jpg"
    if target.exists():
        return target
    image = open_rgb(path, draft=(2 * size, 2 * size))
    image.thumbnail((size, size), Image.Resampling.LANCZOS)
    with open_atomic(target) as temporary:
        image.save(temporary, "JPEG", quality=85)
    return target


# ---- full decode


def check_decodes(
    pictures: Sequence[Picture],
    cancel: CancelToken | None = None,
    progress: Callable[[int, int], None] | None = None,
    memo_path: Path | str | None = None,
    threads: int = 4,
) -> dict[tuple[str, str], str]:
    """Decode every picture whole; return {picture key: reason} of those that cannot be.

    A header can be right where the rest is cut off. Each finding is remembered by path, size and time in `memo_path`,
    also when a cancel ends the check early. progress is called with (done, all).
    """
    memo = Memo(memo_path)
    known = memo.known("decodes", pictures)
    open_questions = [picture for picture in pictures if picture.path not in known]
    done = len(pictures) - len(open_questions)
    remaining = iter(open_questions)
    with ThreadPoolExecutor(max(1, threads)) as pool:
        while part := list(islice(remaining, 8 * threads)):
            if cancel:
                cancel.check()
            found = dict(zip((picture.path for picture in part), pool.map(_decode_reason, part), strict=True))
            memo.remember("decodes", found, part)
            known.update(found)
            done += len(part)
            if progress:
                progress(done, len(pictures))
    return {picture.key: known[picture.path] for picture in pictures if known[picture.path]}


def known_broken(pictures: Sequence[Picture], memo_path: Path | str | None) -> dict[tuple[str, str], str]:
    """{picture key: reason} of those that an earlier `check_decodes` found broken; decodes nothing."""
    known = Memo(memo_path).known("decodes", pictures)
    return {picture.key: known[picture.path] for picture in pictures if known.get(picture.path)}


def _decode_reason(picture: Picture) -> str:
    """Why it cannot be decoded; empty when it can."""
    try:
        size = open_rgb(picture.path).size
    except BrokenPicture as error:
        return str(error)
    return "" if size == (picture.width, picture.height) else "has another size than its header says"
