"""Folders -> pictures: what lies there, how large it is, how often it is shown; everything that is wrong, by name.

Headers only: nothing is decoded and no model is loaded. Any folder works: plain, with sub-folders, `<repeats>_<words>`,
or a parent of such folders (reference: the folder convention of sd-scripts, which refuses all but the last).
"""

from __future__ import annotations

import os
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

from core.dataset.files import (
    CAPTION_EXTENSIONS,
    extension,
    is_junk,
    is_picture_name,
    printable,
    repeats_and_words,
    words_of,
)
from core.dataset.images import BrokenPicture, Header, problem_of, read_header
from core.record.cancel import CancelToken
from core.record.problems import Problem
from core.record.workspace import resolve_path
from core.settings.dataset import DatasetSettings, Source

HEADER_THREADS = 4  # they wait for disks and network drives, not for the processor
MANY_REPEATS = 500  # above it the number in a folder's name is more likely a year


@dataclass(frozen=True, slots=True)
class Picture:
    """One picture that can be read, as its header tells.

    source     id of its folder (base name, made unique)     relative   path below that folder, with "/"
    width, height   pixels, after the rotation its EXIF asks for
    repeats    how often it is shown in an epoch             words      what is said about it without a caption file
    sidecars   names of the caption files beside it
    concept    number of the folder's settings (settings/concepts.py)
    given      its caption from a metadata file or a dataset class; None: captions lie beside the picture
    conditioning   its mask or control picture             own_bucket   the size that metadata gives it
    """

    source: str
    relative: str
    path: Path
    width: int
    height: int
    bytes: int
    mtime_ns: int
    repeats: int = 1
    words: str = ""
    sidecars: tuple[str, ...] = ()
    animated: bool = False
    rotated: bool = False
    concept: int = 0
    given: str | None = None
    conditioning: Path | None = None
    own_bucket: tuple[int, int] | None = None

    @property
    def key(self) -> tuple[str, str]:
        """The picture's address in random draws: never its content or absolute path."""
        return (self.source, self.relative)


@dataclass(frozen=True, slots=True)
class Broken:
    """A file that is named like a picture and cannot train."""

    source: str
    relative: str
    path: Path
    reason: str


@dataclass(frozen=True, slots=True)
class Folder:
    """A folder that pictures were taken from. named: its name gave the repeats and words."""

    id: str
    path: Path
    repeats: int
    words: str
    named: bool
    pictures: int


@dataclass(frozen=True)
class Scan:
    """Pictures sorted by folder and path; broken ones apart; problems are errors and advice, for a person."""

    pictures: tuple[Picture, ...]
    broken: tuple[Broken, ...]
    folders: tuple[Folder, ...]
    problems: tuple[Problem, ...]


@dataclass(frozen=True)
class _Root:
    """A folder to walk: one source, or one `<repeats>_<words>` folder of it."""

    path: Path
    repeats: int
    words: str
    named: bool = False
    left_out: frozenset[str] = frozenset()  # names of direct sub-folders that are roots of their own


@dataclass(frozen=True, slots=True)
class _File:
    relative: str
    path: Path
    bytes: int
    mtime_ns: int
    sidecars: tuple[str, ...]
    gone: str = ""  # why its size could not be read


@dataclass
class _Walk:
    """What a walk found."""

    files: list[_File] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)
    folders: int = 0
    others: Counter[str] = field(default_factory=Counter)


def scan(settings: DatasetSettings, cancel: CancelToken | None = None) -> Scan:
    """Read every enabled folder of the settings. Problems are returned, not raised; only a cancel raises."""
    pictures: list[Picture] = []
    broken: list[Broken] = []
    folders: list[Folder] = []
    problems: list[Problem] = []
    ids: Counter[str] = Counter()
    seen: set[str] = set()
    sources = settings.all_sources()
    if not sources:
        problems.append(
            Problem(
                "No picture folder is chosen.", "dataset.folder", "Choose the folder that holds the pictures to learn."
            )
        )
    for source in sources:
        roots, found = _roots(source, seen)
        problems += found
        empty: list[_Walk] = []
        for root in roots:
            walk = _walk(root, cancel)
            problems += walk.problems
            if not walk.files:
                empty.append(walk)
                continue
            folder_id = _unique_id(printable(root.path.name) or "pictures", ids)
            good, bad = _read_headers(walk.files, folder_id, root, cancel)
            pictures += good
            broken += bad
            folders.append(Folder(folder_id, root.path, root.repeats, root.words, root.named, len(good)))
        if roots and len(empty) == len(roots):
            problems.append(_empty_folder(source, empty))
    level = "advice" if settings.skip_broken else "error"
    problems += [problem_of(each.path, BrokenPicture(each.reason), level) for each in broken]
    problems += _advice(pictures)
    return Scan(tuple(pictures), tuple(broken), tuple(folders), tuple(problems))


def recognise(folder: str | os.PathLike) -> str:
    """One sentence about a folder's layout: "24 pictures in one folder", "2 folders with repeats: 10_fox, 5_style"."""
    roots, problems = _roots(Source(folder=os.fspath(folder)), set())
    if not roots:
        return problems[0].what if problems else "no pictures found"
    walks = [(root, _walk(root, None)) for root in roots]
    named = [(root, walk) for root, walk in walks if root.named and walk.files]
    plain = [(root, walk) for root, walk in walks if not root.named and walk.files]
    if not named and not plain:
        return "no pictures found"
    loose = sum(len(walk.files) for _, walk in plain)
    if not named:
        inside = sum(walk.folders for _, walk in plain)
        return f"{_count(loose, 'picture')} in " + ("one folder" if inside <= 1 else f"{inside} folders")
    names = ", ".join(printable(root.path.name) for root, _ in named[:6]) + (", ..." if len(named) > 6 else "")
    total = sum(len(walk.files) for _, walk in named)
    said = f"{_count(len(named), 'folder')} with repeats: {names} ({_count(total, 'picture')})"
    return said + (f", and {_count(loose, 'picture')} beside" if loose else "")


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" + ("" if number == 1 else "s")


# ---- which folders


def _roots(source: Source, seen: set[str]) -> tuple[list[_Root], list[Problem]]:
    """The folders of one source. A parent of `<repeats>_<words>` folders gives one each, itself for the rest."""
    if not source.folder.strip().strip("\"'"):  # it would mean the project's own folder
        return [], [Problem("A folder of the dataset has no name.", "dataset", "Choose a folder, or remove the entry.")]
    path = resolve_path(source.folder)
    if not os.path.isdir(path):  # a pasted path often comes in quotation marks, or with a space at its end
        path = resolve_path(source.folder.strip().strip("\"'"))
    shown = printable(path)
    problem = _not_a_folder(path, shown)
    if problem:
        return [], [problem]
    real = os.path.realpath(path)
    if real in seen:
        return [], [
            Problem(
                "This folder is given twice; it trains once.", shown, "Remove one entry, or set its repeats.", "advice"
            )
        ]
    seen.add(real)
    name = path.name or os.path.basename(real)
    own = repeats_and_words(name)
    if own:
        return _named_root(path, own, source)
    roots: list[_Root] = []
    problems: list[Problem] = []
    try:
        children = sorted(entry.name for entry in os.scandir(path) if entry.is_dir() and not is_junk(entry.name))
    except OSError as error:
        return [], [
            Problem("The picture folder cannot be opened.", shown, f"Check its permissions ({error.strerror}).")
        ]
    named = {child: said for child in children if (said := repeats_and_words(child))}
    words = source.class_tokens if source.class_tokens is not None else words_of(printable(name))
    roots.append(_Root(path, source.num_repeats or 1, words, left_out=frozenset(named)))
    for child, said in named.items():
        found, wrong = _named_root(path / child, said, source)
        roots += found
        problems += wrong
    return roots, problems


def _named_root(path: Path, said: tuple[int, str], source: Source) -> tuple[list[_Root], list[Problem]]:
    """A `<repeats>_<words>` folder; what the source sets itself comes first."""
    repeats = source.num_repeats or said[0]
    words = source.class_tokens if source.class_tokens is not None else said[1]
    if repeats == 0:
        fix = "Rename the folder, or give it repeats, if its pictures should train."
        return [], [Problem("A folder's name says 0 repeats, so it is left out.", printable(path), fix, "advice")]
    problems = []
    if repeats >= MANY_REPEATS and source.num_repeats is None:
        what = f"Each picture of {printable(path.name)} would be shown {repeats} times an epoch, as its name says."
        problems.append(
            Problem(
                what, printable(path), "If the number is a year or a count, set this folder's repeats to 1.", "advice"
            )
        )
    return [_Root(path, repeats, words, named=True)], problems


def _not_a_folder(path: Path, shown: str) -> Problem | None:
    if os.path.isdir(path):
        return None
    if not os.path.exists(path):
        return Problem("The picture folder does not exist.", shown, "Check the spelling, or choose another folder.")
    if path.suffix.lower() == ".zip":
        return Problem(
            "A zip file was given where a folder is needed.", shown, "Drop the zip on the Dataset tab, or unpack it."
        )
    return Problem(
        "A file was given where a folder is needed.", shown, f"Give the folder that holds it: {printable(path.parent)}"
    )


def _unique_id(name: str, ids: Counter[str]) -> str:
    """The folder's name; the second of that name gets " #2"."""
    ids[name] += 1
    return name if ids[name] == 1 else f"{name} #{ids[name]}"


# ---- which files


def _walk(root: _Root, cancel: CancelToken | None) -> _Walk:
    """Every picture below a folder, in a fixed order. Links are followed, each real folder once, so loops end."""
    walk = _Walk()
    visited: set[object] = set()
    waiting: list[tuple[Path, str]] = [(root.path, "")]
    while waiting:
        if cancel:
            cancel.check()
        folder, prefix = waiting.pop()
        try:
            identity = _identity(folder)
            if identity in visited:
                continue
            visited.add(identity)
            entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
        except OSError as error:
            fix = "Allow reading it, or move it elsewhere."
            walk.problems.append(
                Problem(f"A folder cannot be opened ({error.strerror}).", printable(folder), fix, "advice")
            )
            continue
        before = len(walk.files)
        subfolders = _sort_out(entries, folder, prefix, walk, root.left_out if not prefix else frozenset())
        walk.folders += len(walk.files) > before
        waiting += reversed(subfolders)
    walk.files.sort(key=lambda each: each.relative)
    return walk


def _identity(folder: Path) -> object:
    found = os.stat(folder)
    return (found.st_dev, found.st_ino) if found.st_ino else os.path.realpath(folder)


def _sort_out(
    entries: Sequence[os.DirEntry], folder: Path, prefix: str, walk: _Walk, left_out: frozenset[str]
) -> list[tuple[Path, str]]:
    """Put a folder's pictures into the walk; return its sub-folders. A caption may differ from its picture in case."""
    sidecars: dict[str, list[str]] = defaultdict(list)
    for entry in entries:
        stem, ending = os.path.splitext(entry.name)
        if ending.lower() in CAPTION_EXTENSIONS and not is_junk(entry.name):
            sidecars[stem.casefold()].append(entry.name)
    subfolders: list[tuple[Path, str]] = []
    for entry in entries:
        if is_junk(entry.name) or entry.name in left_out:
            continue
        if entry.is_dir():
            subfolders.append((folder / entry.name, f"{prefix}{entry.name}/"))
        elif is_picture_name(entry.name):
            stem = os.path.splitext(entry.name)[0]
            beside = sidecars.get(stem.casefold(), ())
            beside = [name for name in beside if os.path.splitext(name)[0] == stem] or beside
            walk.files.append(_file(entry, folder, prefix, tuple(beside)))
        else:
            walk.others[extension(entry.name) or entry.name] += 1
    return subfolders


def _file(entry: os.DirEntry, folder: Path, prefix: str, sidecars: tuple[str, ...]) -> _File:
    relative, path = prefix + entry.name, folder / entry.name
    try:
        found = entry.stat()
    except OSError as error:
        reason = "is a link that leads nowhere" if entry.is_symlink() else f"cannot be read ({error.strerror})"
        return _File(relative, path, 0, 0, sidecars, reason)
    return _File(relative, path, found.st_size, found.st_mtime_ns, sidecars)


def _empty_folder(source: Source, walks: Iterable[_Walk]) -> Problem:
    others: Counter[str] = Counter()
    for walk in walks:
        others.update(walk.others)
    kinds = ", ".join(f"{number} {kind}" for kind, number in others.most_common(4))
    what = "There is no picture in the folder." + (f" It holds other files: {kinds}." if kinds else " It is empty.")
    return Problem(
        what,
        printable(resolve_path(source.folder)),
        "Choose a folder with .png, .jpg, .webp, .bmp, .gif, .tif or .avif files.",
    )


# ---- headers


def _read_headers(
    files: Sequence[_File], folder_id: str, root: _Root, cancel: CancelToken | None
) -> tuple[list[Picture], list[Broken]]:
    good: list[Picture] = []
    bad: list[Broken] = []
    for file, header in _headers(files, cancel):
        relative = file.relative
        if isinstance(header, str):
            bad.append(Broken(folder_id, relative, file.path, header))
            continue
        good.append(
            Picture(
                source=folder_id,
                relative=relative,
                path=file.path,
                width=header.width,
                height=header.height,
                bytes=file.bytes,
                mtime_ns=file.mtime_ns,
                repeats=root.repeats,
                words=root.words,
                sidecars=file.sidecars,
                animated=header.animated,
                rotated=header.rotated,
            )
        )
    return good, bad


def _headers(files: Sequence[_File], cancel: CancelToken | None) -> Iterator[tuple[_File, Header | str]]:
    """Each file with its header, or with the reason why it has none."""
    if len(files) < 64:
        for file in files:
            yield file, _header_or_reason(file)
        return
    remaining = iter(files)
    with ThreadPoolExecutor(HEADER_THREADS) as pool:
        while chunk := list(islice(remaining, 512)):
            if cancel:
                cancel.check()
            yield from zip(chunk, pool.map(_header_or_reason, chunk, chunksize=32), strict=True)


def _header_or_reason(file: _File) -> Header | str:
    if file.gone:
        return file.gone
    if file.bytes == 0:
        return "is empty (0 bytes)"
    try:
        return read_header(file.path)
    except BrokenPicture as error:
        return str(error)


# ---- advice


def _advice(pictures: Sequence[Picture]) -> list[Problem]:
    """Findings that do not block a start."""
    return [*_shared_stems(pictures), *_animated(pictures)]


def names_of(pictures: Sequence[Picture], most: int = 5) -> str:
    """ "a.png, b.png and 12 more"."""
    names = ", ".join(printable(picture.relative) for picture in pictures[:most])
    return names + (f" and {len(pictures) - most} more" if len(pictures) > most else "")


def _shared_stems(pictures: Sequence[Picture]) -> list[Problem]:
    """a.png and a.jpg share the caption a.txt."""
    stems: dict[tuple[str, str], list[Picture]] = defaultdict(list)
    for picture in pictures:
        stems[picture.source, os.path.splitext(picture.relative)[0].casefold()].append(picture)
    shared = [group for group in stems.values() if len(group) > 1]
    return [
        Problem(
            f"{names_of(group)} differ only in the extension: they share a caption and may be one picture twice.",
            printable(group[0].path.parent),
            "Rename one of them, or remove it.",
            "advice",
        )
        for group in shared
    ]


def _animated(pictures: Sequence[Picture]) -> list[Problem]:
    moving = [picture for picture in pictures if picture.animated]
    if not moving:
        return []
    what = f"{_count(len(moving), 'animated picture')}: only the first frame trains ({names_of(moving)})."
    return [
        Problem(what, printable(moving[0].path.parent), "Save the frame you want as a picture of its own.", "advice")
    ]
