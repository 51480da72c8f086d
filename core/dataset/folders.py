"""A folder of the settings -> the folders to read: itself, or each `<repeats>_<words>` folder in it, with repeats and words."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from core.dataset.files import is_folder, is_junk, printable, reachable, repeats_and_words, words_of
from core.record.problems import Problem
from core.record.workspace import resolve_path
from core.settings.source import Source

MANY_REPEATS = 500  # above it the number in a folder's name is more likely a year


@dataclass(frozen=True)
class Root:
    """A folder to walk: one source, or one `<repeats>_<words>` folder of it.

    inside   its path below the source's folder, "" for that folder itself
    """

    path: Path
    repeats: int
    words: str
    named: bool = False
    left_out: frozenset[str] = frozenset()  # names of direct sub-folders that are roots of their own
    inside: str = ""


def words_for(source: Source, own: str) -> str:
    """What is said about an image without a caption: the words set for it, identifier and class, else the folder's own.

    Regularization images show the class, not the subject, so the identifier is not theirs.
    """
    if source.class_tokens is not None:
        return source.class_tokens
    parts = [source.class_word] if source.role == "regularization" else [source.identifier, source.class_word]
    return " ".join(part.strip() for part in parts if part and part.strip()) or own


def folder_of(source: Source) -> tuple[Path | None, Problem | None]:
    """The folder as typed, found. A pasted path often comes in quotation marks, or with a space at its end."""
    typed = source.folder
    if not typed.strip().strip("\"'"):  # it would mean the project's own folder
        if source.metadata_file and source.metadata_file.strip():  # sd-scripts lets the folder out there
            return resolve_path(source.metadata_file.strip().strip("\"'")).parent, None
        return None, Problem("A folder of the dataset has no name.", "dataset", "Choose a folder, or remove the entry.")
    path = reachable(resolve_path(typed))
    if not os.path.isdir(path):
        path = reachable(resolve_path(typed.strip().strip("\"'")))
    problem = _not_a_folder(path, printable(path))
    return (None, problem) if problem else (path, None)


def roots_of(source: Source, path: Path) -> tuple[list[Root], list[Problem]]:
    """The folders of one source. A parent of `<repeats>_<words>` folders gives one each, itself for the rest."""
    shown = printable(path)
    name = path.name or os.path.basename(os.path.realpath(path))
    own = repeats_and_words(name)
    if own:
        return _named_root(path, own, source)
    words = words_for(source, words_of(printable(name)))
    if not source.recursive:
        return [Root(path, source.num_repeats or 1, words)], []
    try:
        with os.scandir(path) as entries:
            children = sorted(entry.name for entry in entries if is_folder(entry) and not is_junk(entry.name))
    except OSError as error:
        return [], [Problem("The image folder cannot be opened.", shown, f"Check its permissions ({error.strerror}).")]
    named = {child: said for child in children if (said := repeats_and_words(child))}
    roots = [Root(path, source.num_repeats or 1, words, left_out=frozenset(named))]
    problems: list[Problem] = []
    for child, said in named.items():
        found, wrong = _named_root(path / child, said, source, child)
        roots += found
        problems += wrong
    return roots, problems


def whole_root(source: Source, path: Path) -> Root:
    """The folder and all below it as one, where a list says what trains."""
    own = repeats_and_words(path.name) or (1, words_of(printable(path.name)))
    return Root(path, source.num_repeats or max(own[0], 1), words_for(source, own[1]))


def _named_root(
    path: Path, said: tuple[int, str], source: Source, inside: str = ""
) -> tuple[list[Root], list[Problem]]:
    """A `<repeats>_<words>` folder; what the source sets itself comes first."""
    repeats = source.num_repeats or said[0]
    if repeats == 0:
        fix = "Rename the folder, or give it repeats, if its images should train."
        return [], [Problem("A folder's name says 0 repeats, so it is left out.", printable(path), fix, "advice")]
    problems = []
    if repeats >= MANY_REPEATS and source.num_repeats is None:
        what = f"Each image of {printable(path.name)} would be shown {repeats} times an epoch, as its name says."
        fix = "If the number is a year or a count, set this folder's repeats to 1."
        problems.append(Problem(what, printable(path), fix, "advice"))
    return [Root(path, repeats, words_for(source, said[1]), named=True, inside=inside)], problems


def _not_a_folder(path: Path, shown: str) -> Problem | None:
    if os.path.isdir(path):
        return None
    if not os.path.exists(path):
        return Problem("The image folder does not exist.", shown, "Check the spelling, or choose another folder.")
    if path.suffix.lower() == ".zip":
        return Problem(
            "A zip file was given where a folder is needed.", shown, "Drop the zip on the Dataset tab, or unpack it."
        )
    return Problem(
        "A file was given where a folder is needed.", shown, f"Give the folder that holds it: {printable(path.parent)}"
    )
