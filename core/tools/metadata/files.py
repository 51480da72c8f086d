"""Shared code of the tools for fine-tuning metadata: checks, reads and writes files and folders."""

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from core.dataset.captions.history import Change, History, only_one_writes
from core.dataset.sources.files import CAPTION_EXTENSIONS, printable, split_label
from core.dataset.sources.image_info import about, listed
from core.dataset.sources.metadata import read_values
from core.dataset.sources.walk import File, walk
from core.record.allowed import may_reach
from core.record.cancel import CancelToken
from core.record.context import JobContext, Outcome
from core.record.problems import Problem, ProblemsError, at_setting
from core.record.regular import MissingFile, check_regular
from core.record.units import count
from core.record.workspace import display_path, typed_path
from core.settings.tools.metadata import MetadataOutputSettings

Entries = dict[str, dict[str, Any]]


@dataclass(frozen=True, slots=True)
class Image:
    """An image of a folder. `path`: absolute, as sd-scripts' --full_path."""

    path: Path
    file: File

    @property
    def caption_base(self) -> str:
        """The path without extension, which is equal for images that share a caption file."""
        return os.path.splitext(self.path)[0]


# ---- settings


def output_of(settings: MetadataOutputSettings, tool: str) -> tuple[Path, Path | None, list[Problem]]:
    """Return (file to write, file to start from or None, problems). `tool`: name of the settings group."""
    out, source = typed_path(settings.out_json), typed_path(settings.in_json)
    where = f"{tool}.out_json"
    if out is None:
        fix = "enter a file, such as outputs/meta.json"
        return Path(), source, [Problem("No metadata file is given", where, fix, code="metadata.no-file-given")]
    problems = []
    if out.suffix.lower() != ".json" or "\0" in str(out):
        fix = "use a name that ends in .json"
        problems.append(Problem("The metadata file is not a .json", where, fix, code="metadata.not-json-name"))
    elif out.is_dir():
        fix = "choose a file in it"
        what = f"The metadata file '{printable(out)}' is a folder"
        problems.append(Problem(what, where, fix, code="metadata.is-folder"))
    if source is None and os.path.lexists(out):
        source = out
    elif source is not None:
        problems += source_problems(source, tool)
    return out, source, problems


def source_problems(path: Path, tool: str) -> list[Problem]:
    """Return problems of a metadata file that can be found without reading it."""
    where = f"{tool}.in_json"
    try:
        check_regular(path)
    except MissingFile:
        fix = "check the path, or choose another file"
        what = f"The metadata file '{printable(path)}' does not exist"
        return [Problem(what, where, fix, code="metadata.missing-file")]
    except ProblemsError as error:
        return at_setting(where, error.problems)
    return []


# ---- images


def images_in(
    folders: Sequence[Path], recursive: bool, extensions: Sequence[str], cancel: CancelToken
) -> tuple[list[Image], list[Problem]]:
    """Return (images, advice): each image once, by folder and then in sd-scripts' order (by path components).

    Masks are left out; so are, with advice, images that a shared page may not read. Raises ProblemsError if there are no images.

    extensions   of caption files
    """
    images: dict[Path, Image] = {}
    problems: list[Problem] = []
    endings = tuple(dict.fromkeys((*CAPTION_EXTENSIONS, *(each.lower() for each in extensions))))
    for folder in folders:
        walked = walk(folder, cancel, endings=endings, recursive=recursive)
        problems += walked.problems
        folder_images = [Image(folder / file.relative, file) for file in walked.files]
        for image in sorted(folder_images, key=lambda each: each.path):
            if not split_label(image.path.stem)[1]:
                images.setdefault(image.path, image)
    denied = [path for path in images if not may_reach(path)]  # behind a link in an open folder
    what, where = "{n} not accessible from a shared page: {names}", printable(denied[0].parent) if denied else ""
    fix = "copy them into the folder, or start the page with --allow FOLDER"
    problems += about([path.name for path in denied], what, fix, "metadata.no-access", where=where)
    for path in denied:
        del images[path]
    if not images:
        names = listed([str(folder) for folder in folders])
        raise ProblemsError.one("The folders contain no images", names, "choose other folders", "tools.no-images")
    return list(images.values()), problems


# ---- the file


def entries_of(path: Path) -> tuple[Entries, list[Problem]]:
    """Return (all entries of a metadata file, advice). Raises ProblemsError for a damaged file and entries that are not objects."""
    values, advice = read_values(path)
    invalid = [key for key, value in values.items() if not isinstance(value, dict)]
    if invalid:
        what = f"{count(len(invalid), 'entry', 'entries')} of the metadata file are not objects: {listed(invalid)}"
        fix = 'use the form {"name": {"caption": "..."}, ...}'
        raise ProblemsError.one(what, printable(path), fix, "metadata.invalid-values")
    return values, advice


def write_entries(
    context: JobContext, title: str, path: Path, before: bytes | None, entries: Entries, outcome: Outcome
) -> Outcome:
    """Write the file in sd-scripts' format; return `outcome` with the file, the id for undo ("" if nothing changed) and a text on both in
    its last line.
    before: content of the file when it was read, None if it did not exist. Raises ProblemsError if it has changed since"""
    change = Change(path, before, json.dumps(entries, indent=2).encode())
    with only_one_writes(context):
        history = History(context.workspace.captions, context.workspace.person)
        id = history.write_file(title, change, "metadata file", "metadata.changed-since")
    saved = f"saved in {display_path(path)}" if id else f"{display_path(path)} is unchanged"
    saved += "; the caption history keeps the earlier file" if id and before is not None else ""
    lines = [*outcome.lines[:-1], f"{outcome.lines[-1]}; {saved}"]
    return replace(outcome, lines=lines, facts={**outcome.facts, "file": str(path), "undo": id})


def one_line(text: str) -> str:
    """Return the text as one line, with line breaks escaped."""
    return printable(text).replace("\n", "\\n")
