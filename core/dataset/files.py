"""File names of a dataset: which are pictures, which are junk, what a folder's name says."""

from __future__ import annotations

import os
import re

# Formats that Pillow reads here, by what it calls them. A closed list: other readers run outside programs (EPS) or
# take minutes (PDF), and a file's content, not its name, chooses the reader. (JPEG includes the MPO of phones.)
PICTURE_FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "DIB", "GIF", "TIFF", "AVIF")
PICTURE_EXTENSIONS = frozenset((".png", ".jpg", ".jpeg", ".jfif", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".avif"))
CAPTION_EXTENSIONS = (".txt", ".caption")
TRASH_FOLDER = "_atelier_trash"
JUNK_NAMES = frozenset(("thumbs.db", "desktop.ini", "ehthumbs.db", "icon\r", "__macosx", "$recycle.bin", TRASH_FOLDER))

# "10_fox". A longer number is a date or a serial number rather than a count.
_REPEATS_AND_WORDS = re.compile(r"([0-9]{1,5})_(.*)", re.DOTALL)
MAX_REPEATS = 10000


def extension(name: str) -> str:
    """The extension in lower case, with its dot: "A.PNG" -> ".png"."""
    return os.path.splitext(name)[1].lower()


def is_junk(name: str) -> bool:
    """Dot files (macOS writes `._x.png` beside `x.png`), what else Windows and macOS leave behind, our own trash."""
    return name.startswith(".") or name.lower() in JUNK_NAMES


def is_picture_name(name: str) -> bool:
    return extension(name) in PICTURE_EXTENSIONS


def repeats_and_words(folder_name: str) -> tuple[int, str] | None:
    """What the name of a `<repeats>_<words>` folder says: "10_sks fox" -> (10, "sks fox"). None for a plain name.

    The words may be empty ("10_") and may hold further underscores, as in sd-scripts. Zero repeats is a count too: the
    folder is left out. A number above 10000 is taken for a date.
    """
    match = _REPEATS_AND_WORDS.fullmatch(folder_name)
    if match is None or int(match[1]) > MAX_REPEATS:
        return None
    return int(match[1]), match[2].strip()


def words_of(folder_name: str) -> str:
    """A plain folder's name as words: "my_red-fox" -> "my red fox"."""
    return " ".join(re.sub(r"[_\-]+", " ", folder_name).split())


def printable(text: str | os.PathLike) -> str:
    """A path that any file and screen takes: bytes that are no UTF-8 (Linux allows them in names) become a mark."""
    return os.fspath(text).encode("utf-8", "surrogateescape").decode("utf-8", "replace")
