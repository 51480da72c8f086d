"""File names of a dataset: images, junk, repeats and words in folder names."""

import os
import re
import stat
import unicodedata
from collections.abc import Iterator
from pathlib import Path

from core.record.image_formats import FORMAT_OF, IMAGE_EXTENSIONS, SAME_FORMATS, UNREAD_IMAGES
from core.record.workspace import is_closed

# Next to images in other programs' datasets, and never images: not worth a word.
_COMPANIONS = frozenset(
    ".json .jsonl .npz .npy .toml .yaml .yml .csv .tsv .parquet .xml .xmp .html .htm .md .ini .cfg .log .py .sh .bat .ps1 .safetensors .pt"
    " .pth .ckpt .db .lnk .url .sha256 .md5 .identifier".split()
)
LISTS = frozenset(".json .jsonl .csv .tsv .parquet".split())
_OWN_LISTS = ("metadata_cache.json",)  # sd-scripts' lists that a setting of their own reads
_UNFINISHED = frozenset(".part .partial .crdownload .download .opdownload .tmp .temp .bak .old .orig".split())
# The first bytes of images, by which those of unknown extensions ("photo.jpg_large") or none are known.
_MARKS = re.compile(
    rb"\x89PNG\r\n\x1a\n|\xff\xd8\xff|RIFF....WEBP|GIF8|II\*\0|MM\0\*|BM....\0\0\0\0|qoif|\xff\x0a|\0\0\0\x0cJXL |\xff\x4f\xff\x51"
    rb"|....jP  \r\n\x87\n|....ftyp(?:avif|avis|heic|heix|heim|mif1|msf1)",
    re.DOTALL,
)
MARK_BYTES = 16
CAPTION_EXTENSIONS = (".txt", ".caption")
MASK_LABEL, CONTROL_LABEL = "-masklabel", "-condlabel"  # OneTrainer's masks and control images: a-masklabel.png
LABELS = (MASK_LABEL, CONTROL_LABEL)
TRASH_FOLDER = "_atelier_trash"
_JUNK_FILES = "thumbs.db|ehthumbs.db|ehthumbs_vista.db|desktop.ini|icon\r|picasa.ini|zbthumbnail.info".split("|")
# Thumbnails, trash and snapshots of network drives (Synology, QNAP, NetApp), Windows, macOS, Linux and notebooks.
_SYSTEM_FOLDERS = (
    "@eadir|@tmp|@sharebin|@sharesnap|@recycle|@recently-snapshot|@__thumb|#recycle|#snapshot|~snapshot|lost+found|$recycle.bin|recycler"
    "|recycled|system volume information|found.000|__macosx|network trash folder|temporary items|__pycache__|node_modules|_gsdata_"
    "|@snapshot|@snapshots|@transcode|trashbox|$windows.~bt|$windows.~ws|ipod photo cache|msocache|config.msi|windowsapps|found.001"
    "|files_trashbin|files_versions|resource.frk|_vti_cnf|venv|site-packages"
).split("|")
# Where ai-toolkit keeps what it makes of the images.
_CACHE_FOLDERS = ("_controls", "_latent_cache", "_t_e_cache", "_clip_vision_cache")
JUNK_NAMES = frozenset((*_JUNK_FILES, *_SYSTEM_FOLDERS, *_CACHE_FOLDERS, TRASH_FOLDER))
_JUNK_BEGINNINGS = ("synofile_thumb_", "synophoto_thumb_", "@syno")
_JUNK_ENDINGS = (".lrdata", "@synoeastream", "@synoresource")  # previews of Lightroom; attributes on Synology's drives
_QUIET_JUNK = ("._", ".tmp-", ".ds_store", ".directory", ".nomedia", ".atelier", ".git", TRASH_FOLDER, *_JUNK_FILES)

# "10_fox". A longer number is a date or a serial number, not repeats.
_REPEATS_AND_WORDS = re.compile(r"([0-9]{1,5})_(.*)", re.DOTALL)
# "10 fox", "10-fox", "10.fox", "10x_fox", and "10fox", but not "3d", "1girl" or "90s"
_NEARLY = re.compile(
    r"\s*[0-4]?\d{1,2}(\s*[xX×]?\s*[-–＿_.\s]\s*[^\W\d_]|(?<=\d\d)[^\W\d_]{3}).*",
    re.DOTALL,
)
MAX_REPEATS = 10000
MANY_REPEATS = 500  # from here the number is more likely a year


def extension(name: str) -> str:
    """Return the extension in lower case with its dot, without trailing spaces: "A.PNG " -> ".png"."""
    return os.path.splitext(name.rstrip())[1].lower()


def name_key(name: str) -> str:
    """Return a form of a name that is equal for names that look alike: in either case, and with letters and accents as one character or
    two (macOS writes two)."""
    return unicodedata.normalize("NFC", name).casefold()


def stem_key(name: str) -> str:
    """Return the `name_key` of a name or path without its extension."""
    return name_key(os.path.splitext(name)[0])


def is_junk(name: str) -> bool:
    """Return whether a name is that of a dot file (macOS' `._x.png`), thumbnail cache, system file or trash folder."""
    lowered = name.lower()
    return (
        name.startswith(".")
        or lowered in JUNK_NAMES
        or lowered.startswith(_JUNK_BEGINNINGS)
        or lowered.endswith(_JUNK_ENDINGS)
    )


def is_quiet_junk(entry: os.DirEntry) -> bool:
    """Return whether junk needs no mention: a system file, or a folder that contains only such files."""
    if has_quiet_name(entry.name):
        return True
    try:
        return all(has_quiet_name(name) for name in os.listdir(entry.path))
    except OSError:  # a file, or a folder that may not be read
        return False


def has_quiet_name(name: str) -> bool:
    """Return whether a name is that of a system file that needs no mention."""
    return name.lower().startswith(_QUIET_JUNK)


def is_folder(entry: os.DirEntry) -> bool:
    """Return whether an entry is a folder; False if the system returns an error (link loops, no permission)."""
    try:
        return entry.is_dir()
    except OSError:
        return False


def is_image_name(name: str) -> bool:
    """Return whether a file name has an image extension."""
    return extension(name) in IMAGE_EXTENSIONS


def is_image(path: str | os.PathLike, name: str) -> bool:
    """Return whether a file is an image by its name or, for an unknown extension, by its first bytes."""
    return is_image_name(name) or (may_be_image(name) and begins_like_image(_first_bytes(path)))


def may_be_image(name: str) -> bool:
    """Return whether a name has no extension or an unknown one, so that the content must be checked."""
    ending = extension(name)
    known = IMAGE_EXTENSIONS | UNREAD_IMAGES | _COMPANIONS | _UNFINISHED
    return ending not in known and ending not in (*CAPTION_EXTENSIONS, ".zip")


def is_reported_unused(name: str) -> bool:
    """Return whether a file that is neither image nor caption is reported as unused: users may expect it to train."""
    return extension(name) not in _COMPANIONS


def may_list_captions(name: str) -> bool:
    """Return whether a file may be one in which other programs keep captions, such as Hugging Face's metadata.jsonl or a.json."""
    return extension(name) in LISTS and name.lower() not in _OWN_LISTS


def begins_like_image(start: bytes) -> bool:
    """Return whether a file's first bytes are those of an image format."""
    return _MARKS.match(start) is not None


def _first_bytes(path: str | os.PathLike) -> bytes:
    """Return the first MARK_BYTES bytes of a file; b"" if it is not a regular file or cannot be read."""
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):
            return b""
        with open(path, "rb") as handle:
            return handle.read(MARK_BYTES)
    except OSError:
        return b""


def identity_of(folder: Path) -> object:
    """Return a value that is equal for all links to a folder. Raises OSError if it does not exist or cannot be read."""
    status = os.stat(folder)
    return (status.st_dev, status.st_ino) if status.st_ino else os.path.realpath(folder)


def walk_folders(root: Path) -> Iterator[tuple[Path, list[str], list[str]]]:
    """Yield (folder, names of its subfolders, names of its files) like os.walk.

    Links are followed, each real folder once, so that loops end; other users' private folders and files are left out. Subfolders
    that the caller removes from the list are skipped.
    """
    visited: set[object] = set()
    for parent, folders, names in os.walk(root, followlinks=True):
        try:
            identity = identity_of(Path(parent))
        except OSError:  # it is gone by now
            continue
        if identity in visited or is_closed(parent):
            folders.clear()
            continue
        visited.add(identity)
        yield Path(parent), folders, [name for name in names if not _is_closed_link(os.path.join(parent, name))]


def _is_closed_link(path: str) -> bool:
    """Return whether a file is a link to another user's private file."""
    return os.path.islink(path) and is_closed(path)


def split_label(stem: str) -> tuple[str, str]:
    """Split a stem into image name and OneTrainer's label of a mask or control image, "" without one.

    Example: "a-masklabel" -> ("a", "-masklabel").
    """
    for label in LABELS:
        if stem.casefold().endswith(label) and len(os.path.basename(stem)) > len(label):
            return stem[: -len(label)], stem[-len(label) :]
    return stem, ""


def is_label(name: str) -> bool:
    """Return whether a file name is that of OneTrainer's mask or control image."""
    return bool(split_label(os.path.splitext(name)[0])[1])


def format_of(name: str) -> str:
    """Return Pillow's name of the extension's image format; "" for an unknown extension."""
    return FORMAT_OF.get(extension(name), "")


def format_if_other(name: str, format: str) -> str:
    """Return the image format if the extension is another format's: ("a.png", "JPEG") -> "JPEG"; else ""."""
    expected = format_of(name) or format.upper()
    held = SAME_FORMATS.get(format.upper(), format.upper())
    return "" if SAME_FORMATS.get(expected, expected) == held else held


def repeats_and_words(folder_name: str) -> tuple[int, str] | None:
    """Parse a `<repeats>_<words>` folder name: "10_sks fox" -> (10, "sks fox"). None for a plain name.

    The words may be empty ("10_") and may contain further underscores, as in sd-scripts. Zero repeats skips the folder.
    A number above 10000 counts as a date.
    """
    match = _REPEATS_AND_WORDS.fullmatch(folder_name)
    if match is None or int(match[1]) > MAX_REPEATS:
        return None
    return int(match[1]), match[2].strip()


def nearly_sets_repeats(folder_name: str) -> bool:
    """Return whether a plain folder's name begins with a number that may be meant as repeats: "10 fox", "10-fox", "10x_fox"."""
    return repeats_and_words(folder_name) is None and _NEARLY.fullmatch(folder_name) is not None


def as_words(folder_name: str) -> str:
    """Convert a plain folder's name to words: "my_red-fox" -> "my red fox"."""
    return " ".join(re.sub(r"[_\-]+", " ", folder_name).split())


def path_ends(path: Path) -> Iterator[str]:
    """Yield the ends of a path, shortest first: "c.png", "b/c.png" ... up to the whole path without drive or root."""
    parts = [part for part in path.parts if part != path.anchor]
    return ("/".join(parts[-most:]) for most in range(1, len(parts) + 1))


_FACE = re.compile(r"(.+)_[0-9]+_[0-9]+_[0-9]+_[0-9]+", re.DOTALL)


def without_face(stem: str) -> str | None:
    """Return the source image's stem for a face crop's: "foo_0123_0200_0080_0080" -> "foo"; None for another name.

    sd-scripts takes any four parts between underscores for the face; here they must be numbers, so that
    `my_long_name_of_image.png` does not get the caption `my.txt`.
    """
    match = _FACE.fullmatch(stem)
    return match[1] if match else None


def printable(text: str | os.PathLike) -> str:
    """Return a path as valid text: bytes that are not UTF-8 (Linux allows them in names) become replacement characters."""
    text = os.fspath(text)
    if text.startswith(_EXTENDED):
        text = plain_form(text)
    return text.encode("utf-8", "surrogateescape").decode("utf-8", "replace")


# ---- long paths on Windows

_EXTENDED, _EXTENDED_SHARE = "\\\\?\\", "\\\\?\\UNC\\"
_LONGEST_PLAIN = 247  # limit of a folder's path: 260 less a file name in the old short form


def reachable(path: Path) -> Path:
    """Return the path in a form that can be opened: Windows accepts more than 260 characters only in its extended form."""
    if os.name != "nt" or len(os.fspath(path)) <= _LONGEST_PLAIN:
        return path
    return Path(extended_form(os.path.abspath(path)))


def extended_form(absolute: str) -> str:
    r"""Convert a Windows path to its extended form: C:\a -> \\?\C:\a and \\server\share -> \\?\UNC\server\share.

    Source: Microsoft, Maximum Path Length Limitation.
    """
    if absolute.startswith(_EXTENDED):
        return absolute
    text = absolute.replace("/", "\\")
    return _EXTENDED_SHARE + text[2:] if text.startswith("\\\\") else _EXTENDED + text


def plain_form(extended: str) -> str:
    """Convert an extended Windows path to its ordinary form; other paths are returned unchanged."""
    if extended.startswith(_EXTENDED_SHARE):
        return "\\\\" + extended[len(_EXTENDED_SHARE) :]
    return extended[len(_EXTENDED) :] if extended.startswith(_EXTENDED) else extended
