"""Search of a folder for image files with their caption files, and their headers, cached between scans."""

import os
import stat
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from core.dataset.images.opening import BrokenImage, read_header, reason_of
from core.dataset.sources.files import (
    CAPTION_EXTENSIONS,
    MANY_REPEATS,
    extension,
    format_if_other,
    has_quiet_name,
    identity_of,
    is_folder,
    is_image,
    is_junk,
    is_label,
    is_quiet_junk,
    is_reported_unused,
    may_list_captions,
    name_key,
    printable,
    reachable,
    repeats_and_words,
    stem_key,
    without_face,
)
from core.dataset.sources.image_info import ImageInfo, about
from core.dataset.sources.memo import Memo
from core.record.cancel import CancelToken
from core.record.problems import Problem, ProblemsError
from core.record.regular import MissingFile, check_regular
from core.record.stamps import stamp_of
from core.record.workspace import is_closed
from core.settings.dataset.source import Source

HEADERS_PER_WRITE = 1024  # headers between two writes of the cache
_KIND = "header 2"  # kind of entry in the memo; raised when `read_header` returns other facts


@dataclass(frozen=True, slots=True)
class File:
    """An image file.

    relative         path below the walked folder, with "/"
    bytes            size of the file
    sidecars         names of the caption files next to it
    sidecar_states   (bytes, mtime_ns) of each sidecar, and for a face crop of those of its source image
    unreadable       why its size could not be read, else empty
    """

    relative: str
    path: Path
    bytes: int
    mtime_ns: int
    sidecars: tuple[str, ...] = ()
    sidecar_states: tuple[tuple[int, int], ...] = ()
    unreadable: str = ""


@dataclass(frozen=True, slots=True)
class HeaderFacts:
    """Facts from an image's header.

    width, height   pixels, after EXIF rotation
    actual_format   its format if the extension is another one's, else empty
    """

    width: int
    height: int
    rotated: bool
    animated: bool
    actual_format: str = ""  # its format, where the extension is another


@dataclass
class Walk:
    """Result of a walk.

    files     images, sorted by path
    folders   number of folders with images
    others    number of other files by extension
    unread    names of other files that users may expect to train
    ignored   names of system folders and hidden files
    orphans   names of caption files without an image
    lists     names of data files that may list captions
    """

    files: list[File] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)
    folders: int = 0
    others: Counter[str] = field(default_factory=Counter)
    unread: list[str] = field(default_factory=list)
    ignored: list[str] = field(default_factory=list)
    orphans: list[str] = field(default_factory=list)
    lists: list[str] = field(default_factory=list)


# What lies among the images and does not train: field of a walk, word, what is wrong, fix, code.
_UNUSED = (
    (
        "unread",
        "file",
        "cannot be read as an image",
        "save it as PNG if it is an image, unpack it if it is an archive",
        "dataset.unread-files",
    ),
    ("ignored", "system folder or hidden file", "left out", "rename it to train on it", "dataset.ignored-names"),
    (
        "orphans",
        "caption file",
        "that no image uses",
        "name it like its image, or ignore this",
        "caption.without-image",
    ),
    (
        "lists",
        "file",
        "that may have the missing captions {is} not read",
        f"choose a .json or .jsonl of all images as '{Source.title_of('metadata_file')}', or write caption files from one next to each "
        "image with 'From sidecar JSON' on the Captions tab",
        "caption.unread-list",
    ),
)


def unused_files(folder: Path, walks: Sequence[tuple[str, Walk]]) -> list[Problem]:
    """Return advice about files of a folder that do not train, one for each kind.
    walks: (path below the folder, result of its walk)"""
    problems: list[Problem] = []
    captioned = all(file.sidecars or is_label(file.path.name) for _, each in walks for file in each.files)
    for field_, word, what, fix, code in _UNUSED:
        if field_ == "lists" and captioned:
            continue
        names = [
            f"{subfolder}/{name}" if subfolder else name for subfolder, each in walks for name in getattr(each, field_)
        ]
        unique, where = list(dict.fromkeys(names)), printable(folder)
        problems += about(unique, f"{{n}} {what}: {{names}}", fix, code, where=where, noun=word)
    return problems


def unused_repeats(folder: Path, walks: Sequence[tuple[str, Walk]]) -> list[Problem]:
    """Return advice about <repeats>_<words> folders too deep for their repeats to be used, such as img/10_fox of kohya_ss.
    walks: (path below the folder, result of its walk)"""
    paths = [f"{base}/{file.relative}" if base else file.relative for base, each in walks for file in each.files]
    parents = dict.fromkeys(os.path.dirname(path) for path in paths)
    parsed_names = {path: repeats_and_words(os.path.basename(path)) for path in parents if "/" in path}
    deeper = [path for path, parsed in parsed_names.items() if parsed is not None and parsed[0] < MANY_REPEATS]
    fix = f"choose the folder that contains them: {printable(folder / os.path.dirname(deeper[0]))}" if deeper else ""
    what = "The repeats of {n} deeper inside are not used: {names}"
    return about(deeper, what, fix, "dataset.deeper-repeats", where=printable(folder), noun="folder")


def note_unused(walk: Walk, path: str) -> None:
    """Add a file that is not used to the walk's `unread` or `ignored`, by its path with "/"; some junk is not noted."""
    parts = path.split("/")
    junk = next((number for number, part in enumerate(parts) if is_junk(part)), None)
    if any(has_quiet_name(part) for part in parts):
        return
    if junk is not None:
        walk.ignored.append("/".join(parts[: junk + 1]))
    elif is_reported_unused(parts[-1]):
        walk.unread.append(path)


def walk(
    root: Path,
    cancel: CancelToken | None = None,
    left_out: frozenset[str] = frozenset(),
    endings: Sequence[str] = CAPTION_EXTENSIONS,
    excluded: Sequence[Path] = (),
    recursive: bool = True,
) -> Walk:
    """Find every image below a folder, in a fixed order. Links are followed, each real folder once, so loops end.

    left_out    names of direct subfolders to skip
    endings     extensions of caption files, in lower case
    excluded    folders to skip at any depth
    recursive   False: only the folder itself
    """
    result = Walk()
    visited = _identities(excluded)
    waiting: list[tuple[Path, str]] = [(root, "")]
    while waiting:
        if cancel:
            cancel.check()
        folder, prefix = waiting.pop()
        try:
            listing = _listing(folder, prefix, visited, left_out, endings)
        except OSError as error:
            fix = "check its permissions, or move it out of the dataset"
            what = f"A subfolder cannot be opened ({error.strerror})"
            result.problems.append(Problem(what, printable(folder), fix, "advice", code="dataset.unreadable-folder"))
            continue
        before = len(result.files)
        _add_files(listing, result)
        result.folders += len(result.files) > before
        waiting += reversed(listing.subfolders) if recursive else ()
    result.files.sort(key=lambda each: each.relative)
    return result


def _identities(folders: Iterable[Path]) -> set[object]:
    """Return the identities (see `identity_of`) of the folders that exist."""
    identities: set[object] = set()
    for folder in folders:
        with suppress(OSError):
            identities.add(identity_of(folder))
    return identities


@dataclass
class _Listing:
    """A folder's entries by kind.

    prefix       its path below the root, with "/" at the end
    captions     image's stem, see `name_key` -> its caption files
    others       images, and files of other kinds
    subfolders   (path, prefix)
    ignored      names of system folders and hidden files
    """

    folder: Path
    prefix: str
    captions: dict[str, list[os.DirEntry]] = field(default_factory=lambda: defaultdict(list))
    others: list[os.DirEntry] = field(default_factory=list)
    subfolders: list[tuple[Path, str]] = field(default_factory=list)
    ignored: list[str] = field(default_factory=list)

    def file(self, entry: os.DirEntry, used: set[str], shared_stems: Collection[str]) -> File:
        """Return an image with its caption files.

        used           the caption files' names are added to it
        shared_stems   stems, see `name_key`, that several images have (a.png, a.jpg): a.png.txt is then preferred to a.txt
        """
        relative, path = self.prefix + entry.name, reachable(self.folder / entry.name)
        stem = os.path.splitext(entry.name)[0]
        captions = self.captions.get(name_key(stem), [])
        if len(captions) > 1:  # those of the same case first: on Linux a.txt and A.txt are two
            captions = [each for each in captions if each.name.startswith(stem + ".")] or captions
        whole = self.captions.get(name_key(entry.name), [])
        first, second = (whole, captions) if name_key(stem) in shared_stems else (captions, whole)
        endings = {extension(each.name) for each in first}
        captions = first + [each for each in second if extension(each.name) not in endings]
        of_face = without_face(stem)
        shared = self.captions.get(name_key(of_face), []) if of_face else []
        used.update(each.name for each in (*captions, *shared))
        names, states = tuple(each.name for each in captions), tuple(_state(each) for each in (*captions, *shared))
        status = _stat(entry)
        if status is None or not stat.S_ISREG(status.st_mode):
            return File(relative, path, 0, 0, names, states, _why_unreadable(path))
        return File(relative, path, *stamp_of(status), names, states)

    def image(self, entry: os.DirEntry) -> File | None:
        """Return the file of an entry, or None if it is not an image."""
        return self.file(entry, set(), ()) if is_image(entry.path, entry.name) else None


def _listing(
    folder: Path, prefix: str, visited: set[object], left_out: frozenset[str], endings: Sequence[str]
) -> _Listing:
    """Return the entries of a folder, sorted by name; no entries if the folder was visited. Raises OSError.

    visited             identities of folders; the identity of `folder` is added
    left_out, endings   as in `walk`
    """
    listing, identity = _Listing(folder, prefix), identity_of(folder)
    if identity in visited or is_closed(folder):
        return listing
    visited.add(identity)
    for entry in sorted(os.scandir(folder), key=lambda entry: entry.name):
        name = entry.name
        if (name in left_out and not prefix) or (entry.is_symlink() and is_closed(entry.path)):
            continue
        if is_junk(name):
            listing.ignored += () if is_quiet_junk(entry) else (prefix + name,)
        elif is_folder(entry):
            listing.subfolders.append((reachable(folder / name), f"{prefix}{name}/"))
        elif ending := _caption_ending(name, endings):
            listing.captions[name_key(name[: -len(ending)])].append(entry)
        else:
            listing.others.append(entry)
    return listing


def _add_files(listing: _Listing, result: Walk) -> None:
    """Add a folder's images and unused files to the walk. A caption's name may differ from its image's as in `name_key`."""
    result.ignored += listing.ignored
    used: set[str] = set()
    images = {entry.name for entry in listing.others if is_image(entry.path, entry.name)}
    stems = Counter(stem_key(name) for name in images)
    shared = {stem for stem, number in stems.items() if number > 1}
    for entry in listing.others:
        name = entry.name
        if name in images:
            result.files.append(listing.file(entry, used, shared))
            continue
        result.others[extension(name) or name] += 1
        result.unread += (listing.prefix + name,) if is_reported_unused(name) else ()
        result.lists += (listing.prefix + name,) if may_list_captions(name) else ()
        if entry.is_symlink() and not os.path.exists(entry):
            result.problems.append(_dead_link(listing.folder / name))
    captions = [entry.name for files in listing.captions.values() for entry in files]
    result.others.update(extension(name) for name in captions)
    result.orphans += [listing.prefix + name for name in captions if name not in used]


def first_files(
    root: Path,
    most: int,
    left_out: frozenset[str] = frozenset(),
    endings: Sequence[str] = CAPTION_EXTENSIONS,
    excluded: Sequence[Path] = (),
    recursive: bool = True,
) -> list[File]:
    """Return the first `most` images of a `walk`, with the same arguments, without looking at others.

    Unreadable folders are skipped. A caption a.txt is always preferred to a.png.txt, because a.jpg may not be known yet.
    """
    files: list[File] = []
    visited = _identities(excluded)
    waiting: list[tuple[Path, str] | Callable[[], File | None]] = [(root, "")]
    while waiting and len(files) < most:
        each = waiting.pop()
        if not isinstance(each, tuple):
            files += [file] if (file := each()) else []
            continue
        folder, prefix = each
        try:
            listing = _listing(folder, prefix, visited, left_out, endings)
        except OSError:
            continue
        entries: dict[str, Any] = {path: (below, path) for below, path in listing.subfolders if recursive}
        entries |= {prefix + each.name: partial(listing.image, each) for each in listing.others}
        waiting += [entries[path] for path in sorted(entries, reverse=True)]
    return files


def _dead_link(path: Path) -> Problem:
    """Return advice about a broken link: most likely to a drive that is not connected, or to itself, or into an unreadable folder."""
    what = f"The link {printable(path.name)} {_why_unreadable(path)} and is skipped"
    fix = "connect the drive, check its permissions, or remove the link"
    return Problem(what, printable(path), fix, "advice", code="dataset.broken-link")


def _why_unreadable(path: Path) -> str:
    """Return why the path cannot be read, as predicate of "the image ..."; "" if it can."""
    try:
        check_regular(path)
    except MissingFile as error:
        return "is a broken link" if os.path.islink(path) else reason_of(error)
    except ProblemsError as error:
        return reason_of(error)
    return ""


def _caption_ending(name: str, endings: Sequence[str]) -> str:
    """Return the longest of `endings` that a name has; "" if it has none."""
    lowered = name.lower()
    return max((ending for ending in endings if lowered.endswith(ending)), key=len, default="")


def _state(entry: os.DirEntry) -> tuple[int, int]:
    """Return (bytes, mtime_ns) of a file; (-1, -1) for an unreadable file, whose caption is never cached."""
    status = _stat(entry)
    return stamp_of(status) if status is not None and stat.S_ISREG(status.st_mode) else (-1, -1)


def _stat(entry: os.DirEntry) -> os.stat_result | None:
    """Return a file's status, following links (free on Windows); None if the system returns an error."""
    try:
        return entry.stat()
    except (OSError, ValueError):
        return None


def file_at(path: Path, relative: str) -> File:
    """Return the file at a path, without caption files. relative: its name for the result"""
    try:
        return File(relative, path, *stamp_of(check_regular(path)))
    except ProblemsError:
        return File(relative, path, 0, 0, unreadable=_why_unreadable(path))


# ---- headers


def headers(
    files: Sequence[File], memo: Memo | None = None, cancel: CancelToken | None = None
) -> list[tuple[File, HeaderFacts | str]]:
    """Return each file with its header, or with the reason why that cannot be read, in order.

    Headers of unchanged files come from `memo`; errors are not cached, since permissions and links change without changing the
    file.
    """
    facts = (memo or Memo(None)).facts(
        _KIND,
        files,
        _header_or_reason,
        cancel.check if cancel else None,
        to_text=_header_text,
        from_text=_parsed,
        at_once=HEADERS_PER_WRITE,
    )
    return [(file, facts[file.path]) for file in files]


def image_of(source: str, file: File, header: HeaderFacts, **more: Any) -> ImageInfo:
    """Return the ImageInfo of a file and its header.

    source   id of its folder
    more     other fields of ImageInfo
    """
    return ImageInfo(
        source,
        file.relative,
        file.path,
        header.width,
        header.height,
        file.bytes,
        file.mtime_ns,
        animated=header.animated,
        rotated=header.rotated,
        actual_format=header.actual_format,
        **more,
    )


def _header_or_reason(file: File) -> HeaderFacts | str:
    """Return the facts in a file's header, or why it cannot be read, as predicate of "the image ..."."""
    if file.unreadable:
        return file.unreadable
    if file.bytes == 0:
        return "is empty (0 bytes)"
    try:
        header = read_header(file.path)
    except BrokenImage as error:
        return str(error)
    actual_format = format_if_other(file.relative, header.format)
    return HeaderFacts(header.width, header.height, header.rotated, header.animated, actual_format)


def _header_text(header: HeaderFacts | str) -> str | None:
    """Return a header as text for the memo; None for a reason, which is not cached."""
    if isinstance(header, str):
        return None
    return f"{header.width} {header.height} {int(header.rotated)} {int(header.animated)} {header.actual_format}"


def _parsed(text: str) -> HeaderFacts:
    """Parse the text of `_header_text`."""
    width, height, rotated, animated, actual_format = text.split(" ")
    return HeaderFacts(int(width), int(height), rotated == "1", animated == "1", actual_format)
