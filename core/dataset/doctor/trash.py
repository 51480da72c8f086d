"""The dataset's trash folder: images move to `_atelier_trash` and back, and nothing is deleted.

Each action has a folder `_atelier_trash/<time>/` with the files under their names and a record of their original paths. The
record is written before the first file moves, so that even an action interrupted by a power cut can be undone. The numbering
of files (`core/tools/images/number.py`) moves files and records them in the same way.
"""

import errno
import os
import re
import shutil
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

from core.dataset.sources.files import (
    CAPTION_EXTENSIONS,
    TRASH_FOLDER,
    extension,
    is_image,
    is_image_name,
    is_label,
    name_key,
    printable,
    split_label,
    stem_key,
)
from core.record import atomic
from core.record.allowed import may_reach
from core.record.bounded_json import read_json_object
from core.record.former import with_current_names
from core.record.problems import Problem, ProblemsError, limited, raise_if_errors

RECORD = "put_away.json"
_FILES = "files"
# Caches that sd-scripts writes next to an image (a.npz, a_flip.npz, a_te_outputs.npz, a_0512x0768_sdxl.npz).
_CACHE_ENDINGS = re.compile(r"(_flip|_te_outputs|_\d{3,5}x\d{3,5}(_[a-z0-9]+)?)?", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Removal:
    """One action that can be undone.

    token    argument for `put_back`
    when     seconds since 1970
    images   names below the dataset's folder
    files    number of files still in the trash
    """

    token: str
    when: float
    reason: str
    images: tuple[str, ...]
    files: int


def put_away(
    paths: Iterable[Path | str],
    dataset_folder: Path | str,
    reason: str,
    extra: Mapping[Path, Sequence[Path]] | None = None,
) -> str:
    """Move images with their captions, masks and npz caches to the trash; return the token for `put_back`. Raises ProblemsError, also for
    no images or one that is gone.

    reason   why, as text for the list of removals
    extra    image -> files elsewhere that belong to it, such as its mask in a mask folder

    All or nothing: if one file cannot be moved, the others are moved back and ProblemsError names it. Files that
    another image uses too (a.png and a.jpg share a.txt) stay.
    """
    folder = Path(os.path.abspath(dataset_folder))
    images = list(dict.fromkeys(Path(os.path.abspath(path)) for path in paths))
    if not images:
        fix = "select the images to move to the trash"
        raise ProblemsError.one("No images are selected", printable(folder), fix, code="trash.nothing-selected")
    what, fix = "The image no longer exists", "scan the folder again"
    gone = [path for path in images if not os.path.lexists(path)]
    raise_if_errors(Problem(what, printable(path), fix, code="image.missing") for path in gone)
    to_move = [*images, *companions(images)]
    for path in images:
        to_move += [Path(os.path.abspath(other)) for other in (extra or {}).get(path, ()) if os.path.isfile(other)]
    to_move = list(dict.fromkeys(to_move))
    try:
        trash = new_trash_folder(folder)
    except OSError as error:
        what = f"The trash folder cannot be created ({error.strerror}); nothing was moved"
        fix = "check that the folder is writable"
        raise ProblemsError.one(what, printable(folder / TRASH_FOLDER), fix, code="trash.not-created") from error
    files = [{"from": origin, "to": name} for origin, name in _names(to_move, folder)]
    image_names = [each["from"] for each in files[: len(images)]]
    content = {"v": 1, "when": time.time(), "reason": reason, "images": image_names, "files": files}
    try:
        atomic.write_json(trash / RECORD, content)
        move_all([(path, trash / _FILES / each["to"]) for path, each in zip(to_move, files, strict=True)])
    except OSError as error:
        tidy(trash)
        fix = "close programs that use it, check that the folder is writable, and try again"
        what = f"A file could not be moved to the trash ({error.strerror or error}); nothing was moved"
        raise ProblemsError.one(what, printable(error.filename or folder), fix, code="trash.not-moved") from error
    return str(trash / RECORD)


def put_back(token: str) -> tuple[Path, ...]:
    """Restore all files of one action to their original paths and return these; never overwrites a file.

    Files deleted from the trash are skipped. Raises ProblemsError, with nothing moved, if a path is taken.
    """
    record = Path(token)
    _, waiting = _read(record)
    what, fix = "Nothing was restored: another file has this name now", "rename or move that file, then restore again"
    refuse_taken(waiting, what, fix, "trash.name-taken")
    if not waiting:
        what, fix = "The images are no longer in the trash folder; nothing was changed", "restore them from a backup"
        raise ProblemsError.one(what, printable(token), fix, code="trash.empty")
    try:
        move_all(waiting)
    except OSError as error:
        what = f"A file could not be restored ({error.strerror or error}); nothing was moved"
        fix = "close programs that use it, and try again"
        raise ProblemsError.one(what, printable(error.filename), fix, code="trash.not-restored") from error
    tidy(record.parent)
    return tuple(target for _, target in waiting)


def undoable_actions(dataset_folder: Path | str, most: int | None = None) -> list[Removal]:
    """Return the actions that can be undone, newest first. most: limit: only this number of newest actions is looked at; None for all"""
    actions = []
    for record in records(Path(dataset_folder), RECORD)[-most if most else None :]:
        with suppress(ProblemsError):
            content, files = _read(record)
            if files:
                names = tuple(str(name) for name in content["images"])
                actions.append(Removal(str(record), float(content["when"]), str(content["reason"]), names, len(files)))
    return sorted(actions, key=lambda each: -each.when)


def empty(dataset_folder: Path | str) -> tuple[int, int]:
    """Permanently delete this dataset's trashed images; return (files, bytes) deleted. Other trashed files are kept."""
    files = size = 0
    for record in records(Path(dataset_folder), RECORD):
        for parent, _, names in os.walk(record.parent / _FILES):
            files += len(names)
            for name in names:
                with suppress(OSError):
                    size += os.lstat(os.path.join(parent, name)).st_size
        atomic.remove_folder(record.parent)
    return files, size


def companions(images: Sequence[Path]) -> list[Path]:
    """Return captions, masks and npz caches next to these images that no other image uses."""
    leaving: dict[Path, set[str]] = defaultdict(set)
    for path in images:
        leaving[path.parent].add(path.name)
    files: list[Path] = []
    for folder, names in leaving.items():
        entries = sorted(os.listdir(folder))
        others = (name for name in entries if is_image_name(name) and name not in names and not is_label(name))
        staying, stems = set(map(stem_key, others)), set(map(stem_key, names))
        leaving_stems = stems - staying | {name_key(name) for name in names}  # a.png.txt is a.png's caption
        for name in entries:
            if name not in names and _belongs(name, leaving_stems, staying | stems):
                files.append(folder / name)
    return files


def _belongs(name: str, stems: set[str], all_stems: set[str]) -> bool:
    """Return whether a caption, cache or label file belongs to an image with one of `stems`.
    all_stems: stems of all images in the folder: `a_b.npz` is a_b.png's if that exists, not a.png's"""
    stem, ending = os.path.splitext(name)
    stem, ending = name_key(stem), ending.lower()
    if ending in CAPTION_EXTENSIONS:
        return stem in stems
    if ending == ".npz":
        if stem in all_stems:
            return stem in stems
        parts = (stem[:cut] for cut in range(len(stem), 0, -1) if cut == len(stem) or stem[cut] == "_")
        return any(part in stems and _CACHE_ENDINGS.fullmatch(stem[len(part) :]) for part in parts)
    if is_image_name(name):
        return split_label(stem)[1] != "" and split_label(stem)[0] in stems
    return False


# ---- records


def new_trash_folder(folder: Path, ending: str = "") -> Path:
    """Create a folder in the trash folder for one action, named by the time and `ending`. Raises OSError."""
    base = folder / TRASH_FOLDER / f"{time.strftime('%Y-%m-%d_%H-%M-%S')}{ending}"
    for number in count(1):
        trash = base if number == 1 else base.with_name(f"{base.name}-{number:04d}")
        with suppress(FileExistsError):
            trash.mkdir(parents=True)
            break
    return trash


def _names(paths: Sequence[Path], folder: Path) -> Iterator[tuple[str, str]]:
    """Yield (original path, path in the trash) of each file, as stored in the record.

    Both are relative to the dataset's folder, so that it may be moved as a whole. For files elsewhere they are the absolute path
    and `outside-<n>/<name>`.
    """
    outside_folders: dict[Path, int] = {}
    for path in paths:
        if path.is_relative_to(folder):
            name = path.relative_to(folder).as_posix()
            yield name, name
        else:
            yield str(path), f"outside-{outside_folders.setdefault(path.parent, len(outside_folders) + 1)}/{path.name}"


def records(folder: Path, name: str) -> list[Path]:
    """Return the paths of the records with this file name in a dataset's trash folder, oldest first."""
    paths = (path for path in (folder / TRASH_FOLDER).glob(f"*/{name}") if path.is_file())
    return sorted(paths, key=lambda path: path.parent.name)


def _read(record: Path) -> tuple[dict[str, Any], list[tuple[Path, Path]]]:
    """Return a record's content ({"when", "reason", "images": names, "files": [{"from", "to"}]}), and (path in the trash, original path) of
    each of its files that is still there.

    Raises ProblemsError for records outside a trash folder, because tokens come from a page, and for records with files that
    `put_away` does not move, because datasets are downloaded too.
    """
    try:
        if record.name != RECORD or record.parent.parent.name != TRASH_FOLDER or ".." in record.parts:
            raise ValueError
        content = with_current_names(read_json_object(record))
        moves = [(path_in(record.parent / _FILES, each["to"]), each["from"]) for each in content["files"]]
        moves = [
            (source, _origin(source, record.parents[2], name)) for source, name in moves if os.path.lexists(source)
        ]
        if not isinstance(content["images"], list):
            raise ValueError
        float(content["when"]), str(content["reason"])
    except (ProblemsError, ValueError, KeyError, TypeError) as error:
        what = "The trash folder no longer has a record of this; nothing was changed"
        fix = "move the files back manually"
        raise ProblemsError.one(what, printable(record), fix, code="trash.missing-record") from error
    return content, moves


def path_in(folder: Path, name: str) -> Path:
    """Return the path that a record gives relative to `folder`. Raises ValueError if it leads outside."""
    path = Path(name)
    if path.anchor or ".." in path.parts or not may_reach((folder / path).parent):
        raise ValueError(name)
    return folder / path


def _origin(source: Path, folder: Path, name: str) -> Path:
    """Return the original path of a file in the trash, which the record gives as `name`.

    An absolute path must be that of an image, caption or cache; a hidden file must have such an extension. Raises ValueError.
    """
    path = Path(name)
    if not path.is_absolute():
        return path_in(folder, name)
    is_dataset_file = is_image_name(path.name) or extension(path.name) in (*CAPTION_EXTENSIONS, ".npz")
    hidden = any(part.startswith(".") for part in path.parts)
    if not is_dataset_file and (hidden or not is_image(source, path.name)):
        raise ValueError(name)
    return path_in(Path(path.anchor), str(path.relative_to(path.anchor)))


def tidy(folder: Path) -> None:
    """Remove an action's folder if it has no files left, and the trash folder after the last action."""
    if any(names for _, _, names in os.walk(folder / _FILES)):
        return
    with suppress(OSError):
        atomic.remove_folder(folder)
        folder.parent.rmdir()


# ---- moving


def refuse_taken(pairs: Sequence[tuple[Path, Path]], what: str, fix: str, code: str) -> None:
    """Raise ProblemsError with each target that exists, unless that file is moved too.

    pairs            (from, to)
    what, fix, code  of the problems
    """
    leaving = {source for source, _ in pairs}
    occupied = [target for _, target in pairs if os.path.lexists(target) and target not in leaving]
    raise_if_errors(limited([Problem(what, printable(path), fix, code=code) for path in occupied]))


def move_all(pairs: Sequence[tuple[Path, Path]]) -> None:
    """Move all files in this order, or none: raises OSError with the name of a file that cannot be moved. pairs: (from, to)"""
    done: list[tuple[Path, Path]] = []
    try:
        for source, target in pairs:
            _move(source, target)
            done.append((source, target))
    except OSError as error:
        for source, target in reversed(done):
            with suppress(OSError):  # files that cannot be moved back are in the record
                _move(target, source)
        if not error.filename:
            error.filename = str(source)
        raise


def _move(source: Path, target: Path) -> None:
    """Move a file without overwriting; to another disk by a complete copy before the source is removed. Raises OSError."""
    target.parent.mkdir(parents=True, exist_ok=True)
    if os.path.lexists(target):
        raise FileExistsError(errno.EEXIST, "another file is there", str(target))
    try:
        atomic.replace(source, target)
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
        with atomic.open_atomic(target) as temporary:
            shutil.copyfile(source, temporary)
            times = os.stat(source)
            os.utime(temporary, ns=(times.st_atime_ns, times.st_mtime_ns))
        atomic.remove(source)
