"""Caption files into a fine-tuning metadata JSON, as merge_captions_to_metadata and merge_dd_tags_to_metadata do
(reference: datasets, sections 6.1 and 6.2). The same input gives the same bytes; where they end with an error, the images
are named."""

from __future__ import annotations

import os
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from core.dataset.captions.files import read_caption_file
from core.dataset.captions.history import content_of
from core.dataset.sources.files import CAPTION_EXTENSIONS, printable
from core.dataset.sources.image_info import ImageInfo, listed
from core.record.context import JobContext, Outcome
from core.record.problems import Problem, ProblemsError, limited, raise_if_errors
from core.record.units import count
from core.record.workspace import Workspace, display_path
from core.settings.tools.metadata import MergeCaptionsSettings, MergeSettings, MergeTagsSettings
from core.tools.metadata.files import (
    Image,
    entries_of,
    folders_of,
    images_in,
    one_line,
    output_of,
    saved_words,
    write_entries,
)


def check_merge_captions(asked: MergeCaptionsSettings, workspace: Workspace) -> str:
    return CAPTIONS.check(asked, asked.caption_extension)


def check_merge_tags(asked: MergeTagsSettings, workspace: Workspace) -> str:
    return TAGS.check(asked, asked.tags_extension)


def merge_captions(asked: MergeCaptionsSettings, context: JobContext) -> Outcome:
    return CAPTIONS.merge(asked, asked.caption_extension, context)


def merge_tags(asked: MergeTagsSettings, context: JobContext) -> Outcome:
    return TAGS.merge(asked, asked.tags_extension, context)


@dataclass
class Read:
    """Texts by key, and what was left out. empty: files without a text; missing: images without a file."""

    texts: dict[str, str] = field(default_factory=dict)
    empty: list[str] = field(default_factory=list)
    missing: list[Image] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)


@dataclass(frozen=True)
class Merging:
    """A tool that merges the files of one extension. name: of what an entry gets; extension_setting: names its extension."""

    tool: str
    name: str
    extension_setting: str

    def check(self, asked: MergeSettings, extension: str) -> str:
        """What would be done. Raises ProblemsError with everything that is wrong with the settings."""
        out, folders = self._places(asked, extension)[::2]
        return f"merge the {extension} files of {count(len(folders), 'folder')} into {display_path(out)}"

    def _places(self, asked: MergeSettings, extension: str) -> tuple[Path, Path | None, list[Path]]:
        out, source, problems = output_of(asked, self.tool)
        folders, unfound = folders_of(asked.folders, self.tool)
        problems += unfound
        if asked.recursive and not asked.full_path:
            what = "Subfolders need full paths: names without a folder could refer to several images"
            remedy = f"{self.tool}.full_path"
            problems.append(
                Problem(what, f"{self.tool}.recursive", f"turn on {remedy}", code="metadata.recursive-needs-full-path")
            )
        raise_if_errors(problems)
        return out, source, folders

    def merge(self, asked: MergeSettings, extension: str, context: JobContext) -> Outcome:
        out, source, folders = self._places(asked, extension)
        before = content_of(out)
        entries, advice = entries_of(source) if source is not None else ({}, [])
        images, unopened = images_in(folders, asked.recursive, [extension], context.cancel)
        read = self._read(keys_of(images, asked.full_path, self.tool), extension, context)
        if not read.texts:
            raise self._no_captions(read, extension)
        added = sum(key not in entries for key in read.texts)
        for key, text in read.texts.items():
            entries.setdefault(key, {})[self.name] = text
        lines = [f"{printable(image.path)} has no {extension} file" for image in read.missing]
        facts = {
            "images": len(images),
            "merged": len(read.texts),
            "added": added,
            "entries": len(entries),
            "missing": [printable(image.path) for image in read.missing],
            "empty": read.empty,
        }
        problems = limited([*advice, *unopened, *read.problems])
        facts["problems"] = [problem.to_dict() for problem in problems]
        lines += [str(problem) for problem in problems]
        sentence = f"{len(read.texts):,} of {count(len(images), 'image')} merged, {added:,} of them new"
        if read.empty:
            sentence += f"; {len(read.empty):,} with an empty file"
        if asked.preview is not None:
            shown = [f"{printable(key)}: {one_line(text)}" for key, text in list(read.texts.items())[: asked.preview]]
            return Outcome(lines=[*shown, *lines, f"{sentence}; nothing was written"], facts=facts)
        id = write_entries(context, "Merge into metadata", out, before, entries)
        lines.append(f"{sentence}; {saved_words(out, id, before is not None)}")
        return Outcome(lines=lines, facts=facts | {"file": str(out), "undo": id})

    def _read(self, keys: dict[str, Image], extension: str, context: JobContext) -> Read:
        """The text of each image, in their order. A file that cannot be read is left out and named."""
        read = Read()
        for done, (key, image) in enumerate(keys.items(), 1):
            context.check()
            context.stage("reading captions", done, len(keys))
            file = image.file
            info = ImageInfo("", file.relative, file.path, 0, 0, file.bytes, file.mtime_ns, sidecars=file.sidecars)
            caption = read_caption_file(info, extension)
            if caption.source in ("file", "blank"):
                read.texts[key] = caption.text
            if caption.source == "blank":
                read.empty.append(printable(image.path))
            elif caption.problem is not None:
                read.problems.append(caption.problem)
            elif caption.source == "none":
                read.missing.append(image)
        return read

    def _no_captions(self, read: Read, extension: str) -> ProblemsError:
        """Where other caption files lie there, they are probably meant."""
        if not read.missing:
            return ProblemsError(limited(read.problems))
        endings = [os.path.splitext(name)[1].lower() for image in read.missing for name in image.file.sidecars]
        others = Counter(ending for ending in endings if ending in CAPTION_EXTENSIONS and ending != extension.lower())
        fix = "choose other folders, or write captions first"
        if others:
            ending, number = others.most_common(1)[0]
            fix = f"set {self.tool}.{self.extension_setting} to {ending}, which {number:,} of them have"
        what = f"None of {count(len(read.missing), 'image')} has a {extension} file"
        where = printable(read.missing[0].path.parent)
        return ProblemsError([Problem(what, where, fix, code="metadata.no-captions"), *read.problems])


CAPTIONS = Merging("merge_captions", "caption", "caption_extension")
TAGS = Merging("merge_tags", "tags", "tags_extension")


def keys_of(images: Sequence[Image], full_path: bool, tool: str) -> dict[str, Image]:
    """Each image by its key: full path, or name without extension. Raises ProblemsError for keys that cannot be."""
    keys: dict[str, list[Image]] = defaultdict(list)
    for image in images:
        keys[str(image.path) if full_path else image.path.stem].append(image)
    problems: list[Problem] = []
    shared = [f"{key} ({listed([str(each.path) for each in same], 3)})" for key, same in keys.items() if len(same) > 1]
    if shared:
        what = f"{count(len(shared), 'name')} would refer to several images: {listed(shared, 3)}"
        fix = f"turn on {tool}.full_path, or rename the images"
        problems.append(Problem(what, f"{tool}.folders", fix, code="metadata.shared-key"))
    unwritable = [key for key in keys if not key.isascii() and not _is_unicode(key)]
    if unwritable:
        what = f"{count(len(unwritable), 'name')} cannot be written to JSON, since it is not valid UTF-8: {listed(unwritable, 3)}"
        fix = "rename these files or folders"
        problems.append(Problem(what, f"{tool}.folders", fix, code="metadata.name-not-utf8"))
    raise_if_errors(problems)
    return {key: same[0] for key, same in keys.items()}


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
