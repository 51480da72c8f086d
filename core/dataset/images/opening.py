"""Opening image files: header, decoded colors and alpha, and reasons why a file cannot be read."""

import os
import re
import sys
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeGuard

from PIL import (  # the readers register themselves when imported
    AvifImagePlugin,  # noqa: F401
    BmpImagePlugin,  # noqa: F401
    GifImagePlugin,  # noqa: F401
    IcoImagePlugin,  # noqa: F401
    Image,
    ImageFile,
    Jpeg2KImagePlugin,  # noqa: F401
    JpegImagePlugin,
    PcxImagePlugin,  # noqa: F401
    PngImagePlugin,
    PpmImagePlugin,  # noqa: F401
    QoiImagePlugin,  # noqa: F401
    TgaImagePlugin,  # noqa: F401
    TiffImagePlugin,
    WebPImagePlugin,  # noqa: F401
)

from core.dataset.images.colors import WHITE, composite, to_srgb
from core.dataset.images.plugins import LOADED, plugin_for, readable_formats
from core.dataset.sources.files import printable
from core.record.heap import trim_heap
from core.record.problems import Problem, ProblemsError
from core.record.regular import SPECIAL_FILES, MissingFile, check_regular, retry_open
from core.settings.dataset.dataset import DatasetSettings

# Above twice its limit Pillow raises, which is reported; its warning at the limit itself is useless.
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)
warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.Image$")  # advice for programmers
# Pillow refuses a PNG whose text chunk is above 1 MB. Programs that generate images store whole workflows there.
MAX_TEXT = 48 << 20  # twice that and more is taken while it is decoded
MAX_CHUNKS = 10_000  # that hold no pixels: text, and one for each frame of an animation
PngImagePlugin.MAX_TEXT_CHUNK = PngImagePlugin.MAX_TEXT_MEMORY = MAX_TEXT
LARGE_PIXELS = 32 << 20  # 134 MB as RGB; larger images are decoded one at a time
_large_image_lock = threading.Lock()
_STRIP_PIXELS = 4 << 20


_collected = threading.local()


class _Remarks:
    """Stands in for the module `warnings` in Pillow's decoders, so that damage is reported and not printed to the terminal."""

    @staticmethod
    def warn(message: object, *args: object, **kwargs: object) -> None:
        """Collect a message if `remarks` is active in this thread; other arguments of `warnings.warn` are ignored."""
        if (messages := getattr(_collected, "messages", None)) is not None:
            messages.append(str(message))


for _reader in (JpegImagePlugin, PngImagePlugin, TiffImagePlugin):
    _reader.warnings = _Remarks  # type: ignore[attr-defined]


@contextmanager
def remarks() -> Iterator[list[str]]:
    """Collect the warnings of Pillow's decoders in this thread while the context is open; gives the list of messages."""
    warnings_of_image: list[str] = []
    _collected.messages = warnings_of_image
    try:
        yield warnings_of_image
    finally:
        _collected.messages = None


class _BoundedStream(PngImagePlugin.PngStream):
    """A PNG reader with limits on the length and number of chunks: Pillow reads every non-pixel chunk at each opening."""

    non_pixel_chunks = 0

    def call(self, cid: bytes, pos: int, length: int) -> bytes:
        """Read a chunk. Raises SyntaxError or ValueError for a damaged length, a too long chunk, or too many non-pixel chunks."""
        if cid not in (b"IDAT", b"fdAT"):
            self.non_pixel_chunks += 1
            assert self.fp is not None
            if length > MAX_TEXT and pos + length > self.fp.seek(0, os.SEEK_END):  # a damaged length
                raise SyntaxError("truncated PNG chunk")
            if length > MAX_TEXT or self.non_pixel_chunks > MAX_CHUNKS:
                raise ValueError("Text chunk too large" if length > MAX_TEXT else "Too many text chunks")
        return super().call(cid, pos, length)


PngImagePlugin.PngStream = _BoundedStream  # type: ignore[misc]

SKIP = "dataset.skip_broken"
LEAVE_OUT = f"turn on '{DatasetSettings.title_of('skip_broken')}'"
_SIGNATURES = re.compile(
    rb"(?P<PNG>\x89PNG\r\n\x1a\n)|(?P<JPEG>\xff\xd8\xff)|(?P<GIF>GIF8[79]a)|(?P<WebP>RIFF.{4}WEBP)", re.DOTALL
)
DECODINGS = "decoding 1"  # kind of entry in the memo of `decoding_of`
OTHER_TIFF = "is a TIFF image of a kind that is not supported (its bits, channels or compression), or damaged"
_ORIENTATION = 0x0112
_WHITE_ZERO, _YCBCR = 0, 6  # values of a TIFF's PhotometricInterpretation
_SIDEWAYS = (5, 6, 7, 8)
_ROTATIONS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


class BrokenImage(Exception):
    """An image that cannot be read. The message is the predicate of a sentence about the image."""


class UnreachableImage(BrokenImage):
    """An image that cannot be read now, but may be later without a change to the file: permissions, memory, a missing decoder."""


@dataclass(frozen=True, slots=True)
class Header:
    """An image's header.

    width, height   pixels, after EXIF rotation
    format, mode    as in Pillow
    rotated         whether the EXIF orientation rotates or mirrors the image
    """

    width: int
    height: int
    format: str
    mode: str
    rotated: bool
    animated: bool


@dataclass(frozen=True, slots=True)
class DecodedImage:
    """A decoded image, rotated upright.

    colors   RGB in sRGB, also where the image is transparent
    alpha    L, 0 transparent to 255 opaque; None if every pixel is opaque
    whole    (width, height) of the file, upright, for a large image whose `colors` may be reduced; else None
    """

    colors: Image.Image
    alpha: Image.Image | None
    whole: tuple[int, int] | None = None

    @property
    def size(self) -> tuple[int, int]:
        """(width, height) of the file, upright, in pixels."""
        return self.whole or self.colors.size

    def on(self, background: tuple[int, int, int]) -> Image.Image:
        """Return the image composited on a background color, RGB."""
        return composite(self.colors, self.alpha, background)


def read_header(path: Path | str) -> Header:
    """Read size and format without decoding (about 0.1 ms). Raises BrokenImage for a file without a valid header."""
    with open_image(path) as image:
        orientation = _orientation(image)
        width, height = image.size
        if orientation in _SIDEWAYS:
            width, height = height, width
        # several images in one MPO or HEIC file are views and bursts, not animation frames
        animated = image.format not in ("MPO", "HEIF") and bool(getattr(image, "is_animated", False))
        return Header(width, height, image.format or "", image.mode, orientation in _ROTATIONS, animated)


def decoding_of(path: Path | str) -> str:
    """Return the last change in how images like this one are decoded, part of cache keys; "" if there was none. Raises BrokenImage.

    A change of decoding (levels, orientation, alpha, profiles) must return something new here, for the images it changes only: their
    cached latents, masks and control images are then made again, and all others stay valid. DECODINGS and MEMO_KIND (look.py) rise too.
    """
    with open_image(path) as image:
        changed = _has_levels(image) and (image.mode in ("I", "F") or _photometric(image) == _WHITE_ZERO)
        return "gray levels" if changed else ""


def open_decoded(
    path: Path | str,
    draft: tuple[int, int] | None = None,
    managed: bool = True,
    enough: tuple[int, int] | None = None,
) -> DecodedImage:
    """Decode the first frame of an image file, rotated upright, with colors and alpha separate. Raises BrokenImage.

    draft     (width, height) that is sufficient: a JPEG is then decoded at the nearest larger eighth, which is faster
    enough    the same for images of more than LARGE_PIXELS only, of any format; smaller images are not affected
    managed   convert to sRGB by the file's color profile; False ignores the profile (masks)
    """
    with open_image(path) as image:
        if image.width * image.height <= LARGE_PIXELS:
            return _decoded(image, draft, managed, None)
        with _large_image_lock:
            opened: DecodedImage | None = None
            try:
                opened = _decoded(image, draft, managed, draft or enough)
                return opened
            finally:
                if opened is None or opened.colors is not image:  # RGB in its own size is the decoder's image itself
                    image.close()
                trim_heap()  # else each thread keeps the memory of its largest image


def _decoded(
    image: ImageFile.ImageFile, draft: tuple[int, int] | None, managed: bool, enough: tuple[int, int] | None
) -> DecodedImage:
    """Decode an opened image; arguments as in `open_decoded`. Raises BrokenImage.
    enough: (width, height) to which the image may be reduced; None keeps all pixels"""
    orientation = _orientation(image)  # before load(): the size that was planned came from the header alone
    width, height = image.size
    if enough is not None and orientation in _SIDEWAYS:
        enough = (enough[1], enough[0])
    if size := enough or draft:
        image.draft("RGB" if image.mode == "RGB" else image.mode, size)
    try:
        _scale_transparent_color(image)
        _note_levels(image)
        image.load()
        if not managed:
            image.info.pop("icc_profile", None)
        factor = min(image.width // enough[0], image.height // enough[1]) if enough else 1
        colors, alpha = to_srgb(_reduced(image, factor) if factor > 1 else image)
    except MemoryError as error:
        raise UnreachableImage(f"of {width} x {height} pixels does not fit in memory") from error
    except Exception as error:  # decoders raise OSError, SyntaxError, ValueError, struct.error, EOFError ...
        if isinstance(error, OSError) and error.errno:  # disk or network; decoder errors have no errno
            raise UnreachableImage(f"cannot be read ({error.strerror})") from error
        raise BrokenImage(_plain_reason(error, image)) from error
    if orientation in _ROTATIONS:
        colors, alpha = colors.transpose(_ROTATIONS[orientation]), alpha and alpha.transpose(_ROTATIONS[orientation])
    if enough is None:
        return DecodedImage(colors, alpha)
    return DecodedImage(colors, alpha, (height, width) if orientation in _SIDEWAYS else (width, height))


def _reduced(image: Image.Image, factor: int) -> Image.Image:
    """Downscale an image by a whole factor (box filter), strip by strip, so that no second copy of a large image is made."""
    rows = factor * max(1, _STRIP_PIXELS // (image.width * factor))
    small: Image.Image | None = None
    for top in range(0, image.height, rows):
        strip = _averageable(image.crop((0, top, image.width, min(top + rows, image.height)))).reduce(factor)
        if small is None:
            small = Image.new(strip.mode, (strip.width, -(-image.height // factor)))
            small.info = strip.info
        small.paste(strip, (0, top // factor))
    assert small is not None
    return small


def _averageable(image: Image.Image) -> Image.Image:
    """Convert an image to a mode whose values can be averaged: no palette indices, no color key transparency."""
    if image.mode in ("P", "PA", "La", "RGBa") or ("transparency" in image.info and image.mode in ("1", "L", "RGB")):
        image = image.convert("RGBA")
        image.info.pop("transparency", None)
        return image
    wider = {"1": "L", "I;16": "I", "I;16B": "I", "I;16L": "I"}.get(image.mode)
    return image.convert(wider) if wider else image


def open_rgb(path: Path | str, draft: tuple[int, int] | None = None) -> Image.Image:
    """Decode an image file as RGB composited on white; see `open_decoded`."""
    return open_decoded(path, draft).on(WHITE)


def problem_of(path: Path | str, error: Exception, level: str = "error") -> Problem:
    """Return the Problem of a broken image; with level "advice" the image is skipped.
    error: its message is the predicate of a sentence about the image"""
    fix = "replace it to train on it" if level == "advice" else f"replace or remove it, or {LEAVE_OUT}"
    package = re.search(r"decoder \(([\w-]+)\)", str(error))
    if package:
        fix = f'export it as JPEG or PNG; or run "{sys.executable}" -m pip install {package[1]} and start again'
    skipped = " (skipped)" if level == "advice" else ""
    what = f"The image {os.path.basename(printable(path))} {error}{skipped}"
    return Problem(what, printable(path), fix, level, SKIP, code="image.unreadable")


# ---- what goes wrong


def reason_of(refusal: ProblemsError) -> str:
    """Return why a file cannot be opened, as predicate of a sentence about the image.
    refusal: the error of `check_regular`"""
    if isinstance(refusal, MissingFile):
        return "is missing or a broken link"
    problem = refusal.problems[0]
    kind = SPECIAL_FILES.get(problem.code)
    return f"is {kind}, not a file" if kind else f"cannot be read: {problem.what}"


def open_image(path: Path | str) -> ImageFile.ImageFile:
    """Open an image file with Pillow, reading the header only. Raises BrokenImage."""
    try:
        check_regular(path)
    except ProblemsError as error:
        raise UnreachableImage(reason_of(error)) from error
    try:
        return retry_open(Image.open, path, "r", readable_formats(os.fspath(path)))
    except Image.DecompressionBombError as error:
        limit = 2 * (Image.MAX_IMAGE_PIXELS or 0) // 1_000_000
        raise BrokenImage(f"has more than {limit} million pixels, which is not safe to open") from error
    except PermissionError as error:
        raise UnreachableImage("cannot be read (permission denied)") from error
    except Exception as error:
        start = _first_bytes(path)
        plugin = plugin_for(start)
        if plugin is not None and plugin.format not in LOADED:
            raise UnreachableImage(plugin.missing) from error
        raise BrokenImage(_too_much_text(error) or _what_it_is_instead(start)) from error


def _first_bytes(path: Path | str) -> bytes:
    """Return the first 512 bytes of a file. Raises UnreachableImage."""
    try:
        with open(path, "rb") as handle:
            return handle.read(512)
    except OSError as error:
        raise UnreachableImage(f"cannot be read ({error.strerror or error})") from error


def _what_it_is_instead(start: bytes) -> str:
    """Return what a file with an image extension contains instead, by its first bytes, as predicate of a sentence."""
    if not start:
        return "is empty (0 bytes)"
    text = start.lstrip().lower()
    if text.startswith((b"<!doctype html", b"<html")):
        return "is a web page saved as an image"
    if text.startswith(b"version https://git-lfs"):
        return "is a Git LFS pointer; the image was not downloaded"
    plugin = plugin_for(start)
    kind = plugin.kind if plugin else (match := _SIGNATURES.match(start)) and match.lastgroup
    if kind:
        return f"is a damaged or truncated {kind} image"
    if start.startswith((b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")):
        return OTHER_TIFF
    if not start.strip(b"\0"):
        return "contains only zeros (an incomplete copy or download)"
    return "is not a supported image"


def _too_much_text(error: Exception) -> str:
    """Return the reason if Pillow refused a PNG because its text is longer than MAX_TEXT, else ""."""
    text = str(error)
    if isinstance(error, ValueError) and ("too large" in text or "Too much memory" in text):
        return f"contains more than {MAX_TEXT >> 20} MB of text or metadata; save it without"
    return ""


def _plain_reason(error: Exception, image: Image.Image) -> str:
    """Return why decoding an image failed, as predicate of a sentence about it."""
    if too_much := _too_much_text(error):
        return too_much
    if (
        isinstance(image, TiffImagePlugin.TiffImageFile)
        and _photometric(image) == _YCBCR
        and image.info.get("compression") == "raw"
    ):
        return OTHER_TIFF  # which Pillow reads as RGB with padding, and so reports as truncated
    text = str(error)
    if "truncated" in text.lower() or isinstance(error, EOFError):
        return "is truncated"
    return f"is damaged ({text or type(error).__name__})"


# ---- what Pillow's decoders do not do


def _orientation(image: Image.Image) -> int:
    """Return the EXIF (or XMP) orientation, 1 to 8, as read at opening.

    Uses Image.Image.getexif, not the PNG decoder's own, which decodes the whole image to look for a tag at its end.
    """
    info = image.info
    if image.format == "TIFF":  # its decoder rotates the image and returns the rotated size
        return 1
    if image.format == "JXL" and not getattr(image, "jpeg", False):
        return 1  # rotated by the decoder by its own header; a JPEG inside is returned as stored
    if not ("exif" in info or "xmp" in info or "Raw profile type exif" in info or "XML:com.adobe.xmp" in info):
        return 1
    try:
        return int(Image.Image.getexif(image).get(_ORIENTATION, 1))
    except Exception:  # damaged EXIF: viewers show such an image unrotated
        return 1


def _scale_transparent_color(image: ImageFile.ImageFile) -> None:
    """Scale the transparent color of a 2, 4 or 16-bit PNG to the 8-bit pixels that Pillow returns."""
    value = image.info.get("transparency")
    if image.format != "PNG" or value is None or not image.tile:
        return
    raw = image.tile[0][3]
    raw = raw[0] if isinstance(raw, tuple) else raw
    if raw in ("L;2", "L;4"):
        image.info["transparency"] = value * (85 if raw == "L;2" else 17)
    elif raw == "RGB;16B":
        image.info["transparency"] = tuple(part >> 8 for part in value)


def _note_levels(image: ImageFile.ImageFile) -> None:
    """Note in `info` what the decoder of a gray TIFF of 16 bits and more ignores: whether it is unsigned, its bits, whether 0 is white."""
    if _has_levels(image):
        tags, bits = image.tag_v2, image.tag_v2.get(TiffImagePlugin.BITSPERSAMPLE, (0,))[0]
        unsigned = image.mode == "I" and tags.get(TiffImagePlugin.SAMPLEFORMAT, (1,))[0] == 1
        image.info["levels"] = (unsigned, bits, _photometric(image) == _WHITE_ZERO)


def _has_levels(image: ImageFile.ImageFile) -> TypeGuard[TiffImagePlugin.TiffImageFile]:
    """Return whether an image is a gray TIFF of 16 bits and more."""
    return isinstance(image, TiffImagePlugin.TiffImageFile) and image.mode[0] in "IF"


def _photometric(image: TiffImagePlugin.TiffImageFile) -> int | None:
    """Return a TIFF's PhotometricInterpretation."""
    return image.tag_v2.get(TiffImagePlugin.PHOTOMETRIC_INTERPRETATION)
