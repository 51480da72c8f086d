"""Unpacking a zip of images into a new dataset folder: nothing is written outside it, and it appears whole or not at all."""

import os
import re
import stat
import tempfile
import zipfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from core.dataset.captions.encodings import decode_text
from core.dataset.images.opening import BrokenImage, read_header
from core.dataset.sources.files import (
    CAPTION_EXTENSIONS,
    LISTS,
    MARK_BYTES,
    begins_like_image,
    extension,
    is_image_name,
    is_junk,
    may_be_image,
    printable,
    repeats_and_words,
    split_label,
)
from core.dataset.sources.walk import Walk, note_unused, unused_files
from core.record.atomic import remove_folder, remove_leftovers, rename_to_unused
from core.record.bounded_zip import open_zip
from core.record.cancel import CancelToken
from core.record.image_formats import IMAGE_EXTENSIONS, UNREAD_IMAGES
from core.record.problems import Problem, ProblemsError, unwritten
from core.record.regular import is_special_on_windows, open_regular
from core.record.space import require_space
from core.record.units import size_text

# Images that cannot be read are kept too: a scan of the folder names them.
DATASET_EXTENSIONS = IMAGE_EXTENSIONS | UNREAD_IMAGES | set(CAPTION_EXTENSIONS) | LISTS | {".toml", ".npz"}
MAX_FILES = 200_000
MAX_BYTES = 200 << 30
MAX_LISTING_BYTES = 24_000_000  # of the central directory: 200,000 files with names of 60 letters
# Unpacking stops once this many images cannot be opened, if they are the majority of those seen.
BROKEN_IMAGES = 100
# Text may compress 1000:1; 64 MB and more at a higher ratio is a zip bomb.
MAX_RATIO, RATIO_FROM_BYTES = 1000, 64 << 20
TOTAL_RATIO, TOTAL_FROM_BYTES = 100, 2 << 30  # of all members together: images hardly compress
_CHUNK = 1 << 20
WESTERN = ("cp1252", "latin-1")  # guesses; western Windows uses its DOS code page in zips, which zipfile assumes
MAX_DEPTH = 32  # folders within folders
LONGEST_STEM = 130  # bytes
_SHOWN = 300  # letters of a path that is named
_ENDINGS = re.compile(r"(.*?)((?:\.[^.]{1,10}){0,2})")  # a.png.txt has two
_NOT_IN_NAMES = re.compile(r'[<>:"|?*/\\\x00-\x1f]')  # Windows allows none of them


@dataclass(frozen=True)
class _Entry:
    """A member to unpack, with the parts of its path below the new folder."""

    info: zipfile.ZipInfo
    parts: tuple[str, ...]


def unpack_zip(
    zip_path: Path | str, datasets_dir: Path | str, cancel: CancelToken | None = None, unused: Walk | None = None
) -> Path:
    """Unpack the images, captions and dataset files of a zip into a new folder below `datasets_dir`; return the folder.

    The folder has the zip's name, with a number if that exists. A single plain top-level folder is stripped.

    unused   the names of members that are not unpacked are added to it
    Raises ProblemsError for a zip that is damaged, encrypted, too large, hostile or without images.
    """
    zip_path, datasets_dir = Path(zip_path), Path(datasets_dir)
    where = printable(zip_path.name)
    fix = "pack the images again as .zip, or unpack it yourself and choose the folder"
    with open_regular(zip_path) as handle, open_zip(handle, where, fix, MAX_LISTING_BYTES) as archive:
        datasets_dir.mkdir(parents=True, exist_ok=True)
        entries = _entries(archive, where, Walk() if unused is None else unused)
        remove_leftovers(datasets_dir)  # they may be filling the disk
        _refuse_too_large(entries, os.fstat(handle.fileno()).st_size, datasets_dir, where)
        temporary = Path(tempfile.mkdtemp(prefix=".tmp-", dir=datasets_dir))
        try:
            _write(archive, entries, temporary, where, cancel)
            os.chmod(temporary, 0o755)
            return rename_to_unused(temporary, datasets_dir, _safe_name(zip_path.stem) or "images")
        finally:
            remove_folder(temporary)


def _entries(archive: zipfile.ZipFile, where: str, unused: Walk) -> list[_Entry]:
    """Return the members to unpack, with safe and distinct names. Raises ProblemsError.

    where    the zip, for problems
    unused   other members are added to it
    """
    entries: list[_Entry] = []
    members = [info for info in archive.infolist() if not info.is_dir()]
    for info, name in zip(members, _names(members), strict=True):
        raw = [part.strip() for part in re.split(r"[/\\]", name)]
        if ".." in raw:
            raise ProblemsError.one(
                "The zip contains a path that leads outside its folder; nothing was unpacked",
                f"{where}, {printable('/'.join(raw))}",
                "do not trust this file",
                code="zip.unsafe-path",
            )
        # Without roots of any system: /, //server, C:
        parts = [part for part in raw if part not in ("", ".") and not re.fullmatch(r"[A-Za-z]:", part)]
        link = stat.S_ISLNK(info.external_attr >> 16)
        if not parts or link or any(is_junk(part) for part in parts) or not _is_dataset_file(archive, info, parts[-1]):
            note_unused(unused, "/".join(parts)[-_SHOWN:])
            continue
        if info.flag_bits & 1:
            raise ProblemsError.one(
                "The zip is encrypted", where, "pack the images again without a password", "zip.encrypted"
            )
        # Deeper ones are refused below; no more of a name of thousands of parts is made.
        entries.append(_Entry(info, tuple(_safe_name(part) for part in parts[-MAX_DEPTH - 2 :])))
    if not any(_is_image(entry.parts[-1]) for entry in entries):
        no_images = Problem(
            "The zip contains no images", where, "pack .png, .jpg or .webp images", code="zip.no-images"
        )
        raise ProblemsError([no_images, *unused_files(Path(where), [("", unused)])])
    return _with_distinct_names(_without_outer_folder(entries))


def _is_dataset_file(archive: zipfile.ZipFile, info: zipfile.ZipInfo, name: str) -> bool:
    """Return whether a member belongs to a dataset, by its name or, for an unknown extension, by its first bytes."""
    if extension(name) in DATASET_EXTENSIONS:
        return True
    if not may_be_image(name) or info.flag_bits & 1:
        return False
    try:
        with archive.open(info) as packed:
            return begins_like_image(packed.read(MARK_BYTES))
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, ValueError, RuntimeError, OSError):
        return False


def _is_image(name: str) -> bool:
    """Return whether a dataset file is an image: it has an image extension or none that is known."""
    return is_image_name(name) or may_be_image(name)


def _names(members: Sequence[zipfile.ZipInfo]) -> list[str]:
    """Return the members' names in their real encoding.

    Older Windows zips use the local code page without naming it; zipfile reads these names as cp437. The code page is guessed from all
    names together, since one alone is too short, without extensions, which are ASCII in any.
    """
    local = {info.filename for info in members if not info.flag_bits & 0x800 and not info.filename.isascii()}
    stems = (os.path.splitext(name)[0].encode("cp437", "ignore") for name in sorted(local))
    encoding = decode_text(b"\n".join(stems)).encoding
    return [_decoded(info.filename, encoding) if info.filename in local else info.filename for info in members]


def _decoded(name: str, encoding: str) -> str:
    """Return a name that zipfile has read as cp437, in the encoding of all names; one that is not valid in it, as guessed alone."""
    if encoding in WESTERN:
        return name
    try:
        return name.encode("cp437").decode(encoding)
    except UnicodeEncodeError:
        return name
    except (UnicodeDecodeError, LookupError):
        decoded = decode_text(name.encode("cp437"))
        return name if decoded.encoding in WESTERN else decoded.text


def _safe_name(part: str) -> str:
    """Return a file or folder name that is valid on every system.

    Long names are shortened, in the same way for an image, its caption and its mask.
    """
    name = _NOT_IN_NAMES.sub("_", part).strip().rstrip(". ")
    stem, endings = _ENDINGS.fullmatch(name).groups()  # type: ignore[union-attr]
    stem, label = split_label(stem)
    stem = stem.encode("utf-8", "replace")[-LONGEST_STEM:].decode("utf-8", "ignore").lstrip()
    name = stem + label + endings
    return f"_{name}" if not name or is_special_on_windows(name) else name


def _with_distinct_names(entries: list[_Entry]) -> list[_Entry]:
    """Append a number to names that an earlier entry has, ignoring case as Windows and macOS do."""
    last: dict[tuple[str, ...], int] = {}
    renamed = []
    for entry in entries:
        stem, ending = os.path.splitext(entry.parts[-1])
        lower_case = key = _without_case(entry.parts)
        number, parts = last.get(lower_case, 0), entry.parts
        while number and key in last:
            number += 1
            parts = (*entry.parts[:-1], f"{stem}-{number}{ending}")
            key = _without_case(parts)
        last[lower_case] = max(number, 1)
        last.setdefault(key, 1)
        renamed.append(_Entry(entry.info, parts))
    return renamed


def _without_case(parts: tuple[str, ...]) -> tuple[str, ...]:
    """Return path parts in a form that is equal for names that differ only in case."""
    return tuple(part.casefold() for part in parts)


def _without_outer_folder(entries: list[_Entry]) -> list[_Entry]:
    """Strip a single top-level folder, unless its name `<repeats>_<words>` sets repeats."""
    tops = {entry.parts[0] for entry in entries}
    if len(tops) != 1 or any(len(entry.parts) == 1 for entry in entries) or repeats_and_words(next(iter(tops))):
        return entries
    return [_Entry(entry.info, entry.parts[1:]) for entry in entries]


def _refuse_too_large(entries: list[_Entry], packed: int, folder: Path, where: str) -> None:
    """Raise ProblemsError for too many files, bytes or folders, a zip bomb, or too little disk space.
    packed: size of the zip in bytes"""
    total = sum(entry.info.file_size for entry in entries)
    if len(entries) > MAX_FILES or total > MAX_BYTES:
        limit = f"{MAX_FILES} files and {size_text(MAX_BYTES)}"
        what = f"The zip has {len(entries)} files with {size_text(total)}; the limit is {limit}"
        raise ProblemsError.one(what, where, "unpack it yourself and choose the folder", "zip.too-large")
    folders = {entry.parts[:-1] for entry in entries}
    if max(map(len, folders)) > MAX_DEPTH or sum(map(len, folders)) > MAX_FILES:
        what = f"The zip's folders are nested more than {MAX_DEPTH} deep, or there are more than {MAX_FILES}"
        raise ProblemsError.one(what, where, "unpack it yourself and choose the folder", "zip.too-deep")
    bombs = [
        entry.info.filename
        for entry in entries
        if entry.info.file_size > max(RATIO_FROM_BYTES, MAX_RATIO * entry.info.compress_size)
    ]
    # Measured against the zip's own size: members can claim the same bytes of it.
    if bombs or total > max(TOTAL_FROM_BYTES, TOTAL_RATIO * packed):
        raise ProblemsError.one(
            "The zip expands to far more than images do (zip bomb); nothing was unpacked",
            ", ".join([where, *map(printable, bombs[:1])]),
            "do not trust this file",
            code="zip.bomb",
        )
    require_space(folder, total, "Unpacking", "free some space, or start with --outputs on another disk")


def _write(
    archive: zipfile.ZipFile, entries: list[_Entry], folder: Path, where: str, cancel: CancelToken | None
) -> None:
    """Unpack the members into a folder. Raises ProblemsError for a damaged zip, a failed write, or mostly broken images."""
    images = broken = 0
    for entry in entries:
        if cancel:
            cancel.check()
        target = folder.joinpath(*entry.parts)
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            with archive.open(entry.info) as packed, open(target, "xb") as out:
                _copy(packed, out, entry.info.file_size)
        except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, ValueError, RuntimeError) as error:
            what, location = "The zip is damaged; nothing was unpacked", f"{where}, {'/'.join(entry.parts)}"
            raise ProblemsError.one(what, location, "copy or download it again", "zip.damaged") from error
        except (FileExistsError, NotADirectoryError) as error:
            what = "The zip has a file and a folder of the same name; nothing was unpacked"
            location = f"{where}, {'/'.join(entry.parts)}"
            raise ProblemsError.one(what, location, "unpack it yourself", "zip.name-clash") from error
        except OSError as error:
            consequence = "nothing was unpacked"
            raise unwritten(error, "The zip could not be unpacked", str(folder.parent), consequence) from error
        if _is_image(target.name):
            images, reason = images + 1, _why_broken(target)
            broken += bool(reason)
            if broken > max(BROKEN_IMAGES, images / 2):
                what = f"{broken} of the first {images} images in the zip cannot be opened; nothing was unpacked: the last one {reason}"
                location = f"{where}, {'/'.join(entry.parts)}"
                raise ProblemsError.one(what, location, "pack the images again", "zip.broken-images")


def _why_broken(image: Path) -> str:
    """Return why the image's header cannot be read (takes 0.1 ms), else "". The scan decodes the image later."""
    try:
        read_header(image)
    except BrokenImage as error:
        return str(error)
    return ""


def _copy(packed, out, stated_bytes: int) -> None:
    """Copy a member. Raises BadZipFile beyond `stated_bytes`, the size in the zip's directory that passed the limits."""
    written = 0
    while chunk := packed.read(_CHUNK):
        written += len(chunk)
        if written > stated_bytes:
            raise zipfile.BadZipFile("more bytes than its table says")
        out.write(chunk)
