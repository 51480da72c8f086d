"""Opening picture files: what the header says, the decoded colours and transparency, and why a file cannot be read."""

from __future__ import annotations

import os
import re
import sys
import warnings
from dataclasses import dataclass
from pathlib import Path

from PIL import (  # the readers register themselves when imported
    AvifImagePlugin,  # noqa: F401
    BmpImagePlugin,  # noqa: F401
    GifImagePlugin,  # noqa: F401
    Image,
    ImageFile,
    JpegImagePlugin,  # noqa: F401
    PngImagePlugin,
    TiffImagePlugin,  # noqa: F401
    WebPImagePlugin,  # noqa: F401
)

from core.dataset.colours import WHITE, composite, to_srgb
from core.dataset.files import printable
from core.dataset.plugins import LOADED, plugin_for, readable_formats
from core.record.problems import Problem

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


class UnreachablePicture(BrokenPicture):
    """One that may be readable tomorrow, the file being the same: rights, memory, a reader that is not installed."""


@dataclass(frozen=True, slots=True)
class Header:
    """What a picture's first bytes tell. width, height: pixels, the right way up."""

    width: int
    height: int
    format: str
    mode: str
    rotated: bool
    animated: bool


@dataclass(frozen=True, slots=True)
class Opened:
    """A decoded picture, the right way up.

    colours   RGB in sRGB, also where it is transparent (hidden colours are whatever the file holds there)
    alpha     L, 0 transparent to 255 opaque; None where every pixel is opaque
    """

    colours: Image.Image
    alpha: Image.Image | None

    def on(self, background: tuple[int, int, int]) -> Image.Image:
        """RGB, on this colour where it is transparent."""
        return composite(self.colours, self.alpha, background)


def read_header(path: Path | str) -> Header:
    """Size and kind without decoding (about 0.1 ms). BrokenPicture says what is wrong with a file that has none."""
    with _open(path) as image:
        turn = _orientation(image)
        width, height = image.size
        if turn in _SIDEWAYS:
            width, height = height, width
        # several pictures in one MPO or HEIC file are views and bursts, not the frames of a film
        animated = image.format not in ("MPO", "HEIF") and bool(getattr(image, "is_animated", False))
        return Header(width, height, image.format or "", image.mode, turn in _TURNS, animated)


def open_picture(path: Path | str, draft: tuple[int, int] | None = None, managed: bool = True) -> Opened:
    """The whole picture, decoded: the first frame, the right way up, colours and transparency apart.

    draft     (width, height) that will do: a JPEG is then decoded at the nearest larger eighth, which is faster
    managed   colours are brought to sRGB by the file's profile; False leaves the numbers alone (masks)
    """
    with _open(path) as image:
        turn = _orientation(image)  # before load(): the size that was planned came from the header alone
        if draft is not None:
            image.draft("RGB" if image.mode == "RGB" else image.mode, draft)
        try:
            _scale_transparent_colour(image)
            image.load()
            if not managed:
                image.info.pop("icc_profile", None)
            colours, alpha = to_srgb(image)
        except MemoryError as error:
            size = f"{image.width} x {image.height}"
            raise UnreachablePicture(f"of {size} pixels does not fit in memory") from error
        except Exception as error:  # decoders raise OSError, SyntaxError, ValueError, struct.error, EOFError ...
            if isinstance(error, OSError) and error.errno:  # of the disk or network; those of decoders have none
                raise UnreachablePicture(f"cannot be read ({error.strerror})") from error
            raise BrokenPicture(_plain_reason(error)) from error
    if turn in _TURNS:
        colours, alpha = colours.transpose(_TURNS[turn]), alpha and alpha.transpose(_TURNS[turn])
    return Opened(colours, alpha)


def open_rgb(
    path: Path | str, draft: tuple[int, int] | None = None, background: tuple[int, int, int] = WHITE
) -> Image.Image:
    """The whole picture as RGB, on `background` where it was transparent; see `open_picture`."""
    return open_picture(path, draft).on(background)


def problem_of(path: Path | str, error: Exception, level: str = "error") -> Problem:
    """A broken picture in the form a person meets."""
    fix = "Replace or remove it, or turn on 'Leave out broken pictures'."
    package = re.search(r"pip install ([\w-]+)", str(error))
    if package:
        fix = f'Run "{sys.executable}" -m pip install {package[1]} and start again, or save it as PNG or JPEG.'
    return Problem(f"The picture {os.path.basename(printable(path))} {error}.", printable(path), fix, level)


# ---- what goes wrong


def _open(path: Path | str) -> ImageFile.ImageFile:
    try:
        return Image.open(path, formats=readable_formats())
    except Image.DecompressionBombError as error:
        limit = 2 * (Image.MAX_IMAGE_PIXELS or 0) // 1_000_000
        raise BrokenPicture(
            f"says it has more than {limit} million pixels, which is more than is safe to open"
        ) from error
    except FileNotFoundError as error:
        raise UnreachablePicture("is gone, or is a link that leads nowhere") from error
    except PermissionError as error:
        raise UnreachablePicture("may not be read (no permission)") from error
    except Exception as error:
        start = _start(path)
        plugin = plugin_for(start)
        if plugin is not None and plugin.format not in LOADED:
            raise UnreachablePicture(plugin.missing) from error
        raise BrokenPicture(_what_it_is_instead(start)) from error


def _start(path: Path | str) -> bytes:
    try:
        with open(path, "rb") as handle:
            return handle.read(512)
    except OSError as error:
        raise UnreachablePicture(f"cannot be read ({error.strerror or error})") from error


def _what_it_is_instead(start: bytes) -> str:
    """Common contents of files that are named like pictures and are none, by their first bytes."""
    if not start:
        return "is empty (0 bytes)"
    text = start.lstrip().lower()
    if text.startswith((b"<!doctype html", b"<html")):
        return "is a web page that was saved under a picture's name"
    if text.startswith(b"version https://git-lfs"):
        return "is a Git LFS pointer; the picture itself was not downloaded"
    plugin = plugin_for(start)
    if plugin is not None:
        return f"is a damaged or cut off {plugin.kind} picture"
    if not start.strip(b"\0"):
        return "holds only zeros (an unfinished copy or download)"
    return "is not a picture that can be read"


def _plain_reason(error: Exception) -> str:
    text = str(error)
    if "truncated" in text.lower() or isinstance(error, EOFError):
        return "is cut off (truncated)"
    return f"is damaged ({text or type(error).__name__})"


# ---- what readers leave to us


def _orientation(image: Image.Image) -> int:
    """The EXIF (or XMP) orientation, 1 to 8, from what was read at opening.

    Image.Image.getexif and not the PNG reader's own, which decodes the whole picture to look for a tag at its end.
    """
    info = image.info
    if image.format == "TIFF":  # its reader turns the picture itself and gives the turned size
        return 1
    if image.format == "JXL" and not getattr(image, "jpeg", False):
        return 1  # turned by the decoder, from its own header; a JPEG inside comes out as it was stored
    if not ("exif" in info or "xmp" in info or "Raw profile type exif" in info or "XML:com.adobe.xmp" in info):
        return 1
    try:
        return int(Image.Image.getexif(image).get(_ORIENTATION, 1))
    except Exception:  # damaged EXIF: viewers show such a picture unturned
        return 1


def _scale_transparent_colour(image: ImageFile.ImageFile) -> None:
    """A PNG of 2, 4 or 16 bits names its transparent colour in its own levels, while Pillow gives pixels of 8 bits."""
    value = image.info.get("transparency")
    if image.format != "PNG" or value is None or not image.tile:
        return
    raw = image.tile[0][3]
    raw = raw[0] if isinstance(raw, tuple) else raw
    if raw in ("L;2", "L;4"):
        image.info["transparency"] = value * (85 if raw == "L;2" else 17)
    elif raw == "RGB;16B":
        image.info["transparency"] = tuple(part >> 8 for part in value)
