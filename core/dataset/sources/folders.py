"""The folders to read for a folder in the settings: itself, or each `<repeats>_<words>` folder in it."""

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from core.dataset.sources.files import (
    MANY_REPEATS,
    as_words,
    is_folder,
    is_junk,
    nearly_sets_repeats,
    printable,
    reachable,
    repeats_and_words,
)
from core.record.problems import Problem
from core.record.units import first_of
from core.record.workspace import is_foreign, resolve_path
from core.settings.dataset.source import Source

MOST_NAMED = 5  # folders in a message
_UPLOADS = re.compile(r"images(-\d+)?")


@dataclass(frozen=True)
class Root:
    """A folder to walk: the folder of a source, or one `<repeats>_<words>` folder in it.

    named       whether its name sets repeats and class tokens
    left_out    names of direct subfolders that are separate roots
    subfolder   its path below the source's folder, "" for that folder itself
    """

    path: Path
    repeats: int
    class_tokens: str
    named: bool = False
    left_out: frozenset[str] = frozenset()  # names of direct subfolders that are separate roots
    subfolder: str = ""


def class_tokens_for(source: Source, folder_name: str) -> str:
    """Return the default caption of a folder: its class tokens if set, else identifier and class word, else `folder_name`.

    Regularization images show the class, not the subject, so they do not get the identifier.
    """
    if source.class_tokens is not None:
        return source.class_tokens
    parts = [source.class_word] if source.role == "regularization" else [source.identifier, source.class_word]
    return " ".join(part.strip() for part in parts if part and part.strip()) or folder_name


def _words(path: Path, name: str) -> str:
    """Return a plain folder's name as words; "" for the name given to uploads of single images, which describes nothing."""
    return "" if path.parent.name == "datasets" and _UPLOADS.fullmatch(name) else as_words(printable(name))


def folder_of(source: Source) -> tuple[Path | None, Problem | None]:
    """Return (the folder of a source, None), or (None, the problem) if it cannot be used.

    For a source with only a metadata file, the folder is that of the file.
    """
    if not source.folder:  # it would mean the project's own folder
        if source.metadata_file:  # optional there, as in sd-scripts
            return resolve_path(source.metadata_file).parent, None
        fix = "choose a folder, or remove the entry"
        return None, Problem("A dataset folder is empty", "dataset", fix, code="dataset.empty-folder-setting")
    path = reachable(resolve_path(source.folder))
    problem = _not_a_folder(path, printable(source.folder if is_foreign(source.folder) else path))
    return (None, problem) if problem else (path, None)


def roots_of(source: Source, path: Path) -> tuple[list[Root], list[Problem]]:
    """Return (the folders to walk for a source, problems): each `<repeats>_<words>` folder in it, and itself for other images.

    Only itself if it has such a name or is not recursive.
    """
    where = printable(path)
    name = path.name or os.path.basename(os.path.realpath(path))
    parsed = repeats_and_words(name)
    if parsed:
        return _named_root(path, parsed, source)
    class_tokens = class_tokens_for(source, _words(path, name))
    if not source.recursive:
        return [Root(path, source.num_repeats or 1, class_tokens)], _near_misses(source, path, [name])
    try:
        with os.scandir(path) as entries:
            children = sorted(entry.name for entry in entries if is_folder(entry) and not is_junk(entry.name))
    except OSError as error:
        what = f"The image folder cannot be opened ({error.strerror})"
        return [], [Problem(what, where, "check its permissions", code="dataset.unreadable-folder")]
    repeats_of = {child: parsed for child in children if (parsed := repeats_and_words(child))}
    roots = [Root(path, source.num_repeats or 1, class_tokens, left_out=frozenset(repeats_of))]
    problems = _near_misses(source, path, [name, *children])
    for child, parsed in repeats_of.items():
        child_roots, child_problems = _named_root(path / child, parsed, source, child)
        roots += child_roots
        problems += child_problems
    return roots, problems


def _near_misses(source: Source, path: Path, names: Sequence[str]) -> list[Problem]:
    """Return advice about folder names whose number is not read as repeats; [] if the source sets repeats.
    names: of the source's folder and its subfolders"""
    near = list(dict.fromkeys(printable(each) for each in names if nearly_sets_repeats(each)))
    if source.num_repeats is not None or not near:
        return []
    what = f"No repeats are read from the folder name {first_of(near, MOST_NAMED)}: they are plain digits and an underscore"
    fix = "rename it, as in 10_fox, if the number means repeats"
    return [Problem(what, printable(path), fix, "advice", code="dataset.nearly-repeats")]


def whole_root(source: Source, path: Path) -> Root:
    """Return the folder and everything below as one root, for a source whose images a metadata file lists."""
    parsed = repeats_and_words(path.name) or (1, _words(path, path.name))
    return Root(path, source.num_repeats or max(parsed[0], 1), class_tokens_for(source, parsed[1]))


def _named_root(
    path: Path, parsed: tuple[int, str], source: Source, subfolder: str = ""
) -> tuple[list[Root], list[Problem]]:
    """Return ([the root of a `<repeats>_<words>` folder], advice about its repeats); no root for 0 repeats.

    Repeats set for the source override those in the name.

    parsed   (repeats, words) of its name
    """
    repeats = source.num_repeats or parsed[0]
    if repeats == 0:
        what, fix = "The folder is skipped: its name sets 0 repeats", "rename the folder, or set its repeats, to use it"
        return [], [Problem(what, printable(path), fix, "advice", code="dataset.zero-repeats")]
    problems = []
    if repeats >= MANY_REPEATS and source.num_repeats is None:
        what = f"The folder name {printable(path.name)} sets {repeats} repeats per epoch"
        fix = "set this folder's repeats to 1 if the number is not meant as repeats"
        problems.append(Problem(what, printable(path), fix, "advice", code="dataset.many-repeats"))
    return [Root(path, repeats, class_tokens_for(source, parsed[1]), named=True, subfolder=subfolder)], problems


def _not_a_folder(path: Path, where: str) -> Problem | None:
    """Return the problem of a path that is not an existing folder, else None. where: the path for the problem"""
    if os.path.isdir(path):
        return None
    if not os.path.exists(path):
        fix = "check the path, or choose another folder"
        return Problem("The image folder does not exist", where, fix, code="dataset.missing-folder")
    if path.suffix.lower() == ".zip":
        fix = "drop the zip on the Dataset tab, or unpack it"
        return Problem("The image folder is a zip file", where, fix, code="dataset.zip-as-folder")
    fix = f"choose the folder that contains it: {printable(path.parent)}"
    return Problem("The image folder is a file", where, fix, code="dataset.not-a-folder")
