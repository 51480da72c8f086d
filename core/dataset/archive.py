"""A zip of pictures -> a folder: nothing is written outside it, and it is there whole or not at all."""

from __future__ import annotations

import errno
import os
import re
import shutil
import stat
import tempfile
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from core.dataset.caption_encodings import decode_text
from core.dataset.files import (
    CAPTION_EXTENSIONS,
    PICTURE_EXTENSIONS,
    extension,
    is_junk,
    is_picture_name,
    printable,
    repeats_and_words,
)
from core.record.atomic import remove_folder, replace
from core.record.cancel import CancelToken
from core.record.problems import ProblemsError, unwritten

KEPT_EXTENSIONS = PICTURE_EXTENSIONS | set(CAPTION_EXTENSIONS) | {".json", ".jsonl", ".toml", ".npz"}
MAX_FILES = 200_000
MAX_BYTES = 200 << 30
# A packed text may shrink 1000 times; 64 MB that unpack from under a thousandth of it are a zip made to fill the disk.
MAX_RATIO, RATIO_FROM_BYTES = 1000, 64 << 20
SPARE_BYTES = 200 << 20
_CHUNK = 1 << 20
_NOT_IN_NAMES = re.compile(r'[<>:"|?*\x00-\x1f]')  # Windows allows none of them
_DEVICES = re.compile(r"(con|prn|aux|nul|com[0-9]|lpt[0-9])(\..*)?", re.IGNORECASE)


@dataclass(frozen=True)
class _Entry:
    info: zipfile.ZipInfo
    parts: tuple[str, ...]


def unpack_zip(zip_path: Path | str, datasets_dir: Path | str, cancel: CancelToken | None = None) -> Path:
    """Unpack the pictures, captions and dataset files of a zip into a new folder below `datasets_dir`; return it.

    The folder has the zip's name, numbered when that exists. A single plain folder around everything is taken off.
    ProblemsError says what is wrong with a zip that is damaged, encrypted, too large, hostile or without pictures.
    """
    zip_path, datasets_dir = Path(zip_path), Path(datasets_dir)
    where = printable(zip_path.name)
    try:
        archive = zipfile.ZipFile(zip_path)
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as error:
        raise ProblemsError.one(
            "This is not a zip file that can be read.", where, "Pack the pictures again as .zip."
        ) from error
    datasets_dir.mkdir(parents=True, exist_ok=True)
    with archive:
        entries = _entries(archive, where)
        _refuse_too_large(entries, datasets_dir, where)
        temporary = Path(tempfile.mkdtemp(prefix=".tmp-", dir=datasets_dir))
        try:
            _write(archive, entries, temporary, where, cancel)
            os.chmod(temporary, 0o755)
            return _give_name(temporary, datasets_dir, _safe_name(zip_path.stem) or "pictures")
        finally:
            remove_folder(temporary)


def _entries(archive: zipfile.ZipFile, where: str) -> list[_Entry]:
    """What is to be unpacked, with safe names that do not collide."""
    entries: list[_Entry] = []
    taken: set[tuple[str, ...]] = set()
    for info in archive.infolist():
        if info.is_dir() or stat.S_ISLNK(info.external_attr >> 16):
            continue
        raw = PurePosixPath(_name(info).replace("\\", "/"))
        if ".." in raw.parts:
            raise ProblemsError.one(
                "The zip names a file outside its own folder, so nothing was unpacked.",
                f"{where}, {raw}",
                "Do not trust this file.",
            )
        parts = [part for part in raw.parts if part != "/" and not re.fullmatch(r"[A-Za-z]:", part)]
        if not parts or any(is_junk(part) for part in parts) or extension(parts[-1]) not in KEPT_EXTENSIONS:
            continue
        if info.flag_bits & 1:
            raise ProblemsError.one(
                "The zip is protected by a password.", where, "Pack the pictures again without one."
            )
        entries.append(_Entry(info, _free(tuple(_safe_name(part) for part in parts), taken)))
    if not any(is_picture_name(entry.parts[-1]) for entry in entries):
        raise ProblemsError.one("There is no picture in the zip.", where, "Pack .png, .jpg, .webp or other pictures.")
    return _without_outer_folder(entries)


def _name(info: zipfile.ZipInfo) -> str:
    """Zips made on older Windows hold names in the local encoding and do not say which; zipfile reads them as cp437."""
    if info.flag_bits & 0x800:
        return info.filename
    try:
        decoded = decode_text(info.filename.encode("cp437"))
    except UnicodeEncodeError:
        return info.filename
    # Western Windows packs in its DOS page, which is what zipfile took it for.
    return info.filename if decoded.encoding in ("cp1252", "latin-1") else decoded.text


def _safe_name(part: str) -> str:
    name = _NOT_IN_NAMES.sub("_", part).strip().rstrip(".")[-150:]
    return f"_{name}" if _DEVICES.fullmatch(name) else name or "_"


def _free(parts: tuple[str, ...], taken: set[tuple[str, ...]]) -> tuple[str, ...]:
    """A name that no earlier file has, on file systems that know no case too."""
    stem, ending = os.path.splitext(parts[-1])
    number, free = 1, parts
    while tuple(part.casefold() for part in free) in taken:
        number += 1
        free = (*parts[:-1], f"{stem}-{number}{ending}")
    taken.add(tuple(part.casefold() for part in free))
    return free


def _without_outer_folder(entries: list[_Entry]) -> list[_Entry]:
    """A zip of one folder: its files directly. A `<repeats>_<words>` folder stays, its name says something."""
    tops = {entry.parts[0] for entry in entries}
    if len(tops) != 1 or any(len(entry.parts) == 1 for entry in entries) or repeats_and_words(next(iter(tops))):
        return entries
    return [_Entry(entry.info, entry.parts[1:]) for entry in entries]


def _refuse_too_large(entries: list[_Entry], folder: Path, where: str) -> None:
    total = sum(entry.info.file_size for entry in entries)
    free = shutil.disk_usage(folder).free
    if len(entries) > MAX_FILES or total > MAX_BYTES:
        most = f"{MAX_FILES} files and {MAX_BYTES >> 30} GB"
        what = f"The zip holds {len(entries)} files of {total / 2**30:.1f} GB; the most is {most}."
        raise ProblemsError.one(what, where, "Unpack it yourself and give the folder.")
    for entry in entries:
        if entry.info.file_size > RATIO_FROM_BYTES and entry.info.file_size > MAX_RATIO * max(
            entry.info.compress_size, 1
        ):
            raise ProblemsError.one(
                "The zip is made to fill the disk, so nothing was unpacked.",
                f"{where}, {entry.info.filename}",
                "Do not trust it.",
            )
    if total + SPARE_BYTES > free:
        what = f"Unpacking needs {total / 2**30:.2f} GB and {free / 2**30:.2f} GB are free."
        raise ProblemsError.one(what, str(folder), "Free some space, or start with --outputs on another disk.")


def _write(
    archive: zipfile.ZipFile, entries: list[_Entry], folder: Path, where: str, cancel: CancelToken | None
) -> None:
    for entry in entries:
        if cancel:
            cancel.check()
        target = folder.joinpath(*entry.parts)
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            with archive.open(entry.info) as packed, open(target, "xb") as out:
                _copy(packed, out, entry.info.file_size)
        except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, ValueError, RuntimeError) as error:
            what = "The zip is damaged; nothing was kept of it."
            raise ProblemsError.one(what, f"{where}, {'/'.join(entry.parts)}", "Copy or download it again.") from error
        except OSError as error:
            kept = "nothing was kept of the zip"
            raise unwritten(error, "The zip could not be unpacked", str(folder.parent), kept) from error


def _copy(packed, out, promised: int) -> None:
    """At most as many bytes as the zip's table promised: the limits above were checked against them."""
    written = 0
    while chunk := packed.read(_CHUNK):
        written += len(chunk)
        if written > promised:
            raise zipfile.BadZipFile("more bytes than its table says")
        out.write(chunk)


def _give_name(temporary: Path, parent: Path, name: str) -> Path:
    number = 1
    while True:
        target = parent / (name if number == 1 else f"{name}-{number}")
        if not target.exists():
            # `replace` would silently take the place of an empty folder; a folder that appears meanwhile is not empty.
            try:
                replace(temporary, target)
            except OSError as error:
                if error.errno not in (errno.EEXIST, errno.ENOTEMPTY):
                    raise
            else:
                return target
        number += 1
