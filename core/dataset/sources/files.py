"""File names of a dataset: which are images, which are junk, repeats and words in folder names."""

from __future__ import annotations

import os
import re
from pathlib import Path

# Formats to read, by Pillow's names. An allowlist: other decoders run external programs (EPS) or take minutes (PDF), and
# a file's content, not its name, selects the decoder. (JPEG includes the MPO of phones.)
IMAGE_FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "DIB", "GIF", "TIFF", "AVIF")
PLUGIN_EXTENSIONS = {".heic": "HEIF", ".heif": "HEIF", ".hif": "HEIF", ".jxl": "JXL"}  # read by optional packages
IMAGE_EXTENSIONS = frozenset(
    (".png", ".jpg", ".jpeg", ".jfif", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".avif", *PLUGIN_EXTENSIONS)
)
# Extensions other than the format's own name, and formats that count as the same.
_SAME = {"JPG": "JPEG", "JFIF": "JPEG", "MPO": "JPEG", "TIF": "TIFF", "DIB": "BMP", "HEIC": "HEIF", "HIF": "HEIF"}
CAPTION_EXTENSIONS = (".txt", ".caption")
TRASH_FOLDER = "_atelier_trash"
JUNK_NAMES = frozenset(("thumbs.db", "desktop.ini", "ehthumbs.db", "icon\r", "__macosx", "$recycle.bin", TRASH_FOLDER))

# "10_fox". A longer number is a date or a serial number, not repeats.
_REPEATS_AND_WORDS = re.compile(r"([0-9]{1,5})_(.*)", re.DOTALL)
MAX_REPEATS = 10000


def extension(name: str) -> str:
    """The extension in lower case, with its dot: "A.PNG" -> ".png"."""
    return os.path.splitext(name)[1].lower()


def is_junk(name: str) -> bool:
    """Dot files (macOS writes `._x.png` next to `x.png`), other Windows and macOS leftovers, our own trash."""
    return name.startswith(".") or name.lower() in JUNK_NAMES


def is_folder(entry: os.DirEntry) -> bool:
    """Whether an entry is a folder; False also where the system returns an error (link loops, no permission)."""
    try:
        return entry.is_dir()
    except OSError:
        return False


def is_image_name(name: str) -> bool:
    return extension(name) in IMAGE_EXTENSIONS


def real_kind(name: str, format: str) -> str:
    """The image format where it differs from the extension: ("a.png", "JPEG") -> "JPEG"; else empty."""
    said, held = extension(name)[1:].upper(), format.upper()
    return "" if _SAME.get(said, said) == _SAME.get(held, held) else _SAME.get(held, held)


def repeats_and_words(folder_name: str) -> tuple[int, str] | None:
    """Repeats and words of a `<repeats>_<words>` folder name: "10_sks fox" -> (10, "sks fox"). None for a plain name.

    The words may be empty ("10_") and may contain further underscores, as in sd-scripts. Zero repeats skips the folder.
    A number above 10000 counts as a date.
    """
    match = _REPEATS_AND_WORDS.fullmatch(folder_name)
    if match is None or int(match[1]) > MAX_REPEATS:
        return None
    return int(match[1]), match[2].strip()


def words_of(folder_name: str) -> str:
    """A plain folder's name as words: "my_red-fox" -> "my red fox"."""
    return " ".join(re.sub(r"[_\-]+", " ", folder_name).split())


_FACE = re.compile(r"(.+)_[0-9]+_[0-9]+_[0-9]+_[0-9]+", re.DOTALL)


def without_face(stem: str) -> str | None:
    """The source image of a face crop: "foo_0123_0200_0080_0080" -> "foo", whose caption it may share.

    sd-scripts takes any four parts between underscores for the face; here they must be numbers, so that
    `my_long_name_of_image.png` does not get the caption `my.txt`.
    """
    match = _FACE.fullmatch(stem)
    return match[1] if match else None


def printable(text: str | os.PathLike) -> str:
    """A path as valid text: bytes that are not UTF-8 (Linux allows them in names) become replacement characters."""
    text = os.fspath(text)
    if text.startswith(_EXTENDED):
        text = plain_form(text)
    return text.encode("utf-8", "surrogateescape").decode("utf-8", "replace")


# ---- long paths on Windows

_EXTENDED, _EXTENDED_SHARE = "\\\\?\\", "\\\\?\\UNC\\"
_LONGEST_PLAIN = 247  # limit of a folder's path: 260 less a file name in the old short form


def reachable(path: Path) -> Path:
    """The path in a form that can be opened: Windows accepts more than 260 characters only in its extended form."""
    if os.name != "nt" or len(os.fspath(path)) <= _LONGEST_PLAIN:
        return path
    return Path(extended_form(os.path.abspath(path)))


def extended_form(absolute: str) -> str:
    r"""C:\a -> \\?\C:\a and \\server\share -> \\?\UNC\server\share. (Microsoft: Maximum Path Length Limitation.)"""
    if absolute.startswith(_EXTENDED):
        return absolute
    text = absolute.replace("/", "\\")
    return _EXTENDED_SHARE + text[2:] if text.startswith("\\\\") else _EXTENDED + text


def plain_form(extended: str) -> str:
    """The ordinary form of an extended path."""
    if extended.startswith(_EXTENDED_SHARE):
        return "\\\\" + extended[len(_EXTENDED_SHARE) :]
    return extended[len(_EXTENDED) :] if extended.startswith(_EXTENDED) else extended
