"""Merges caption files into a fine-tuning metadata JSON, as merge_captions_to_metadata and merge_dd_tags_to_metadata do.

Reference: datasets, sections 6.1 and 6.2. The output is byte-identical. Where those scripts fail, the images are named.
"""

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
from core.tools.files import image_folders
from core.tools.metadata.files import (
    Image,
    entries_of,
    images_in,
    one_line,
    output_of,
    write_entries,
)

# The settings of a tool -> its name, what an entry gets from a file, the setting that names its extension
TOOLS: dict[type[MergeSettings], tuple[str, str, str]] = {
    MergeCaptionsSettings: ("merge_captions", "caption", "caption_extension"),
    MergeTagsSettings: ("merge_tags", "tags", "tags_extension"),
}


@dataclass(frozen=True)
class Plan:
    """The files and folders of a merge.

    name        "caption" or "tags": the key of the texts
    extension   of the caption files
    out         file to write
    source      file to start from, or None
    """

    tool: str
    name: str
    extension_setting: str
    extension: str
    out: Path
    source: Path | None
    folders: list[Path]

    def __str__(self) -> str:
        folders = count(len(self.folders), "folder")
        return f"merge the {self.extension} files of {folders} into {display_path(self.out)}"


@dataclass
class Texts:
    """Texts by key. `empty`: images with an empty file; `missing`: images without a file."""

    texts: dict[str, str] = field(default_factory=dict)
    empty: list[str] = field(default_factory=list)
    missing: list[Image] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)


def plan(settings: MergeSettings, workspace: Workspace) -> Plan:
    """Check the file and folders, and return the plan. Raises ProblemsError with all problems."""
    tool, name, extension_setting = TOOLS[type(settings)]
    out, source, problems = output_of(settings, tool)
    folders, folder_problems = image_folders(settings.folders, f"{tool}.folders")
    problems += folder_problems
    if settings.recursive and not settings.full_path:
        what = "Subfolders need full paths: names without a folder could refer to several images"
        remedy = f"{tool}.full_path"
        problems.append(
            Problem(what, f"{tool}.recursive", f"turn on {remedy}", code="metadata.recursive-needs-full-path")
        )
    raise_if_errors(problems)
    return Plan(tool, name, extension_setting, getattr(settings, extension_setting), out, source, folders)


def do(settings: MergeSettings, plan: Plan, context: JobContext) -> Outcome:
    """Add the text of each image's caption file to its entry, and write the file; a preview only lists the texts. Raises ProblemsError if
    no image has a caption file."""
    out, source, extension = plan.out, plan.source, plan.extension
    before = content_of(out)
    entries, advice = entries_of(source) if source is not None else ({}, [])
    images, unopened = images_in(plan.folders, settings.recursive, [extension], context.cancel)
    texts = _read(keys_of(images, settings.full_path, plan.tool), extension, context)
    if not texts.texts:
        raise _no_captions(texts, plan)
    added = sum(key not in entries for key in texts.texts)
    for key, text in texts.texts.items():
        entries.setdefault(key, {})[plan.name] = text
    lines = [f"{printable(image.path)} has no {extension} file" for image in texts.missing]
    facts = {
        "images": len(images),
        "merged": len(texts.texts),
        "added": added,
        "entries": len(entries),
        "missing": [printable(image.path) for image in texts.missing],
        "empty": texts.empty,
    }
    problems = limited([*advice, *unopened, *texts.problems])
    facts["problems"] = [problem.to_dict() for problem in problems]
    lines += [str(problem) for problem in problems]
    sentence = f"{len(texts.texts):,} of {count(len(images), 'image')} merged, {added:,} of them new"
    if texts.empty:
        sentence += f"; {len(texts.empty):,} with an empty file"
    if settings.preview is not None:
        preview_lines = [
            f"{printable(key)}: {one_line(text)}" for key, text in list(texts.texts.items())[: settings.preview]
        ]
        return Outcome(lines=[*preview_lines, *lines, f"{sentence}; nothing was written"], facts=facts)
    outcome = Outcome(lines=[*lines, sentence], facts=facts)
    return write_entries(context, "Merge into metadata", out, before, entries, outcome)


def _read(keys: dict[str, Image], extension: str, context: JobContext) -> Texts:
    """Read the text of each image, in order. Unreadable files are skipped and reported."""
    texts = Texts()
    for done, (key, image) in enumerate(keys.items(), 1):
        context.check()
        context.stage("reading captions", done, len(keys))
        file = image.file
        info = ImageInfo("", file.relative, file.path, 0, 0, file.bytes, file.mtime_ns, sidecars=file.sidecars)
        caption = read_caption_file(info, extension)
        if caption.source in ("file", "blank"):
            texts.texts[key] = caption.text
        if caption.source == "blank":
            texts.empty.append(printable(image.path))
        elif caption.problem is not None:
            texts.problems.append(caption.problem)
        elif caption.source == "none":
            texts.missing.append(image)
    return texts


def _no_captions(texts: Texts, plan: Plan) -> ProblemsError:
    """Return the error that no image has a caption file; it names another extension that the folders have."""
    extension = plan.extension
    if not texts.missing:
        return ProblemsError(limited(texts.problems))
    endings = [os.path.splitext(name)[1].lower() for image in texts.missing for name in image.file.sidecars]
    others = Counter(ending for ending in endings if ending in CAPTION_EXTENSIONS and ending != extension.lower())
    fix = "choose other folders, or write captions first"
    if others:
        ending, number = others.most_common(1)[0]
        fix = f"set {plan.tool}.{plan.extension_setting} to {ending}, which {number:,} of them have"
    what = f"None of {count(len(texts.missing), 'image')} has a {extension} file"
    where = printable(texts.missing[0].path.parent)
    return ProblemsError([Problem(what, where, fix, code="metadata.no-captions"), *texts.problems])


def keys_of(images: Sequence[Image], full_path: bool, tool: str) -> dict[str, Image]:
    """Return {key: image}: the full path, or the file name without extension. Raises ProblemsError for duplicate and invalid keys."""
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
    """Return whether a text is valid Unicode."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
