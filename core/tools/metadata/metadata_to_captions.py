"""Writes a metadata file's captions and tags to caption files next to the images.

Entries name images by full path, by path within a folder, or by name without extension. Nothing is written outside of the folders
of the settings, whatever the keys are.
"""

import os
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from core.dataset.captions.files import SidecarIndex, caption_change, caption_files, write_captions
from core.dataset.captions.history import MAX_CAPTION_BYTES
from core.dataset.sources.files import is_image_name, printable
from core.dataset.sources.image_info import listed
from core.dataset.sources.metadata import Entry, read_metadata
from core.record.context import JobContext, Outcome
from core.record.problems import Problem, collected, raise_if_errors
from core.record.regular import check_regular
from core.record.units import count
from core.record.workspace import Workspace, display_path, typed_path
from core.settings.dataset.captions import CaptionSettings
from core.settings.named import DRIVE, leads_out
from core.settings.tools.metadata import MetadataToCaptionsSettings
from core.tools.files import image_folders
from core.tools.metadata.files import (
    Image,
    images_in,
    one_line,
    source_problems,
)

TOOL = "metadata_to_captions"


@dataclass(frozen=True)
class Plan:
    """The metadata file (`source`), and the folders with the images."""

    source: Path
    folders: list[Path]

    def __str__(self) -> str:
        folders = count(len(self.folders), "folder")
        return f"write the texts of {display_path(self.source)} next to the images of {folders}"


def do(settings: MetadataToCaptionsSettings, plan: Plan, context: JobContext) -> Outcome:
    """Match every entry to its image and write the caption files; existing ones are kept or replaced by `existing`. A preview writes
    nothing. Raises ProblemsError for an invalid metadata file, and if no text can be written."""
    source, folders = plan.source, plan.folders
    metadata = read_metadata(source)
    raise_if_errors(metadata.problems)
    extensions = [each for each in (settings.captions_to, settings.tags_to) if each]
    images, advice = images_in(folders, settings.recursive, extensions, context.cancel)
    matches = _match(metadata.entries, ImageIndex(images, folders, settings.match_by_name))
    texts = _caption_files(matches, settings)
    problems = [
        *metadata.problems,
        *advice,
        *matches.problems(source, len(metadata.entries), "advice" if texts else "error"),
    ]
    raise_if_errors(problems)
    existing = [text for text in texts if settings.existing == "keep" and text.existing]
    writing = [text for text in texts if settings.existing == "replace" or not text.existing]
    facts: dict[str, Any] = {
        "entries": len(metadata.entries),
        "kept": len(existing),
        "missing": [printable(each.key) for each in matches.missing],
        "outside": [printable(each.key) for each in matches.outside],
        "without_text": [printable(each.key) for each in matches.without_text],
        "problems": [problem.to_dict() for problem in problems],
    }
    lines = [f"no image for {printable(each.key)}" for each in matches.missing]
    lines += [f"outside of the folders: {printable(each.key)}" for each in matches.outside]
    lines += [str(problem) for problem in problems]
    details = f"; {len(existing):,} existing files kept" if existing else ""
    if settings.preview is not None:
        preview_lines = [f"{printable(each.path)}: {one_line(each.text)}" for each in writing[: settings.preview]]
        last = f"{count(len(writing), 'file')} would be written{details}; nothing was written"
        return Outcome(lines=[*preview_lines, *lines, last], facts=facts | {"written": [], "undo": ""})
    sidecars = SidecarIndex()
    changes = [caption_change(each.image, each.text, each.extension, sidecars=sidecars) for each in writing]
    done, left = write_captions(context, "Metadata to captions", changes)
    replaced = sum(each.old is not None and each.path in done.written for each in changes)
    details += f"; the caption history keeps {count(replaced, 'earlier text')}" if replaced else ""
    same = sum(each.old == each.new for each in changes)
    details += f"; {same:,} had the same text" if same else ""
    facts |= {"written": [str(path) for path in done.written], "undo": done.id}
    return Outcome(lines=[*lines, *left, f"{count(len(done.written), 'file')} written{details}"], facts=facts)


def plan(settings: MetadataToCaptionsSettings, workspace: Workspace) -> Plan:
    """Check the metadata file and folders, and return the plan. Raises ProblemsError with all problems."""
    source = typed_path(settings.in_json)
    problems: list[Problem] = []
    if source is None:
        what, fix = "No metadata file is given", "choose a .json or .jsonl file"
        problems.append(Problem(what, f"{TOOL}.in_json", fix, code="metadata.no-file-given"))
    else:
        problems += source_problems(source, TOOL)
    folders, folder_problems = (
        image_folders(settings.folders, f"{TOOL}.folders")
        if settings.folders
        else ([source.parent] if source else [], [])
    )
    problems += folder_problems
    if settings.captions_to is None and settings.tags_to is None:
        fix = "enter an extension for captions, such as .caption, or for tags, such as .txt"
        what = "Neither captions nor tags would be written"
        problems.append(Problem(what, f"{TOOL}.captions_to", fix, code="metadata.nothing-to-write"))
    raise_if_errors(problems)
    assert source is not None
    return Plan(source, folders)


# ---- which image an entry means


class ImageIndex:
    """Index of images for lookup by metadata keys."""

    def __init__(self, images: Sequence[Image], folders: Sequence[Path], by_name: bool):
        """`by_name`: whether a key with a folder also matches an image of its file name in another folder."""
        self.folders, self._match_by_name = folders, by_name
        self._by_path: dict[str, list[Image]] = defaultdict(list)
        self._by_stem: dict[str, list[Image]] = defaultdict(list)
        self._by_name: dict[str, list[Image]] = defaultdict(list)
        for image in images:
            self._by_path[_normalized(image.path)].append(image)
            self._by_stem[_normalized(image.caption_base)].append(image)
            for name in {image.path.name, image.path.stem}:
                self._by_name[name].append(image)

    def find(self, key: str) -> list[Image]:
        """Return the images that a key means, usually one; [] for none.

        By full path or path within a folder, with or without extension; else by file name if the key has no folder or `by_name` is on.
        """
        plain = key.replace("\\", "/")
        paths = [_normalized(folder / form) for folder in self.folders for form in dict.fromkeys((key, plain))]
        for index in (self._by_path, self._by_stem):
            images = {image.path: image for path in paths for image in index.get(path, ())}
            if images:
                return list(images.values())
        if "/" in plain and not self._match_by_name:
            return []
        name = plain.rpartition("/")[2]
        stem = os.path.splitext(name)[0] if is_image_name(name) else name
        return self._by_name.get(name) or self._by_name.get(stem) or []

    def is_outside(self, key: str) -> bool:
        """Return whether a key is a path outside of the folders: in another folder, on another drive, or by ".."."""
        absolute = os.path.isabs(key) or bool(DRIVE.match(key))
        plain = key.replace("\\", "/")
        paths = [_normalized(key)] if absolute else [_normalized(folder / plain) for folder in self.folders]
        inside = (os.path.join(_normalized(folder), "") for folder in self.folders)
        return leads_out(key) and not any(path.startswith(folder) for folder in inside for path in paths)


def _normalized(path: Path | str) -> str:
    """Return an absolute path for comparison."""
    return os.path.normcase(os.path.abspath(path))


@dataclass
class Matches:
    """Entries sorted by the result of the lookup.

    matched     (entry, image)
    ambiguous   (entry, images) with different caption files
    missing     no image
    outside     paths outside of the folders
    conflicts   keys with different texts for one file
    too_long    keys with texts above 1 MB
    not_files   problems of caption files that are not regular files
    """

    matched: list[tuple[Entry, Image]] = field(default_factory=list)
    ambiguous: list[tuple[Entry, list[Image]]] = field(default_factory=list)
    missing: list[Entry] = field(default_factory=list)
    outside: list[Entry] = field(default_factory=list)
    without_text: list[Entry] = field(default_factory=list)
    conflicts: list[str] = field(default_factory=list)
    too_long: list[str] = field(default_factory=list)
    not_files: list[Problem] = field(default_factory=list)

    def problems(self, source: Path, total: int, level: str) -> list[Problem]:
        """Return errors that prevent writing, and problems of entries left out, at `level`.

        source   the metadata file
        total    number of its entries
        """
        where, problems = printable(source), list(self.not_files)

        def add(names: Sequence[str], what: str, fix: str, code: str, level: str) -> None:
            """Append a problem that counts and lists `names`, unless there are none."""
            if names:
                what = f"{len(names):,} of {count(total, 'entry', 'entries')} {what}: {listed(names, 3)}"
                problems.append(Problem(what, where, fix, level, code=f"metadata.{code}"))

        fix = "choose the folders with these images, or remove the entries"
        add([each.key for each in self.missing], "match no image", fix, "no-image", level)
        fix = "add their folder if captions should be written there too"
        add([each.key for each in self.outside], "are outside of the folders", fix, "outside-folder", level)
        several = [f"{entry.key} ({listed([str(image.path) for image in same], 3)})" for entry, same in self.ambiguous]
        fix = "choose fewer folders, or use full paths in the metadata file"
        add(several, "match several images", fix, "ambiguous-key", "error")
        fix = "remove one of them: images with the same name share a caption file"
        add(self.conflicts, "have different texts for the same file", fix, "shared-sidecar", "error")
        add(self.too_long, "have a text of more than 1 MB", "shorten it", "text-too-long", "error")
        fix = "add them, or choose the extension of the other text"
        add([each.key for each in self.without_text], "have no text to write", fix, "no-text", level)
        return problems


def _match(entries: Sequence[Entry], index: ImageIndex) -> Matches:
    """Look up every entry's image."""
    matches = Matches()
    for entry in entries:
        images = index.find(entry.key)
        if len({image.caption_base for image in images}) > 1:
            matches.ambiguous.append((entry, images))
        elif images:
            matches.matched.append((entry, images[0]))
        else:
            (matches.outside if index.is_outside(entry.key) else matches.missing).append(entry)
    return matches


# ---- what is written


@dataclass(frozen=True)
class CaptionFile:
    """A caption file to write. `existing`: whether it exists."""

    image: Path
    extension: str
    path: Path
    text: str
    existing: bool


def _texts_of(entry: Entry, settings: MetadataToCaptionsSettings) -> Iterator[tuple[str, str]]:
    """Yield (extension, text) of the entry's texts that the settings select.

    Caption and tags with the same extension are joined as in training.
    """
    captions, tags = settings.captions_to, settings.tags_to
    texts = [(captions, entry.caption), (tags, entry.tags)]
    if captions and tags and captions.casefold() == tags.casefold() and texts != [(captions, None), (tags, None)]:
        texts = [(captions, entry.text(CaptionSettings()))]
    for extension, text in texts:
        if extension and text is not None:
            yield extension, text.replace("\r\n", "\n").replace("\r", "\n").strip()


def _caption_files(matches: Matches, settings: MetadataToCaptionsSettings) -> list[CaptionFile]:
    """Return the files to write. Conflicts, too long texts and entries without text are added to `matches`."""
    planned: dict[tuple[str, str], CaptionFile] = {}
    for entry, image in matches.matched:
        texts = list(_texts_of(entry, settings))
        if not texts:
            matches.without_text.append(entry)
        for extension, text in texts:
            earlier = planned.get((image.caption_base, extension))
            if earlier is not None and earlier.text != text:
                matches.conflicts.append(entry.key)
            if len(text.encode()) > MAX_CAPTION_BYTES - 1:
                matches.too_long.append(entry.key)
            files = caption_files(image.path, extension, image.file.sidecars)
            path = next((path for path in files if os.path.exists(path)), files[0])
            existing = os.path.exists(path)
            planned[image.caption_base, extension] = CaptionFile(image.path, extension, path, text, existing)
            if existing and settings.existing == "replace":
                collected(matches.not_files, check_regular, path)
    return list(planned.values())
