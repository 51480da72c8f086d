"""Captions from the names of files and folders, by a pattern."""

import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from core.captioning.combining import parts_of, pattern_problems
from core.captioning.described import CaptionResult, from_text, skipped
from core.captioning.report import Row
from core.dataset.captions.words import name_words, number_of
from core.dataset.sources.files import printable
from core.dataset.sources.folders import folder_of
from core.dataset.sources.image_info import ImageInfo
from core.record.context import JobContext
from core.record.patterns import Pattern
from core.record.problems import Problem, raise_if_errors
from core.record.workspace import Workspace
from core.settings.caption import CaptionerJob
from core.settings.captioning.sources import NamesSettings
from core.settings.dataset.concepts import concepts
from core.settings.dataset.validation import ValidationSettings

FIELDS = ("name", "folder", "number", "words")
_FIELD = re.compile(r"\{(\w+)\}")


def check(settings: NamesSettings, workspace: Workspace) -> None:
    """Raise ProblemsError for an invalid pattern or regular expression."""
    problems = pattern_problems([settings.expression], "caption_names.expression")
    if not settings.pattern.strip():
        what, fix = "The pattern is empty", "write one, such as {name}"
        problems.append(Problem(what, "caption_names.pattern", fix, code="names.no-pattern"))
    if not problems:
        known = [*FIELDS, *Pattern(settings.expression, "caption_names.expression").groups]
        fix = (
            f"use {', '.join('{' + name + '}' for name in known)}, or name a group of the regular expression like that"
        )
        problems += [
            Problem(f"The pattern has an unknown {{{name}}}", "caption_names.pattern", fix, code="names.unknown-field")
            for name in dict.fromkeys(_FIELD.findall(settings.pattern))
            if name not in known
        ]
    raise_if_errors(problems)


def describe(
    job: CaptionerJob, rows: Sequence[Row], settings: NamesSettings, context: JobContext
) -> Iterator[CaptionResult]:
    """Yield each image's caption: the pattern filled in from its file and folder names. Raises ProblemsError for invalid settings."""
    check(settings, context.workspace)
    context.stage("reading names")
    folders = [folder_of(each.source)[0] for each in concepts(job.dataset, job.captions, ValidationSettings())]
    expression = Pattern(settings.expression, "caption_names.expression")
    for row in rows:
        yield _caption_of(row.image, folders[row.image.concept], settings, expression, job.captioning.separator)


def _caption_of(
    image: ImageInfo, folder: Path | None, settings: NamesSettings, expression: Pattern, separator: str
) -> CaptionResult:
    """Return the caption of an image, or why there is none.
    folder: dataset folder; the regular expression is matched against the image's path relative to it"""
    path, relative = image.path, image.relative
    if folder is not None and path.is_relative_to(folder):
        relative = path.relative_to(folder).as_posix()
    match = expression.first(relative)
    if match is None:
        what = f"The regular expression does not match {printable(relative)}"
        return skipped(path, what, "change the expression, or write its caption by hand", "names.no-match")
    names = {"name": path.stem, "folder": path.parent.name} | match.groupdict("")
    options = {"leading": settings.leading_numbers, "trailing": settings.trailing_numbers}
    values = {name: name_words(text, replaced=settings.replaced, **options) for name, text in names.items()}
    values = {"number": number_of(path.stem), "words": image.class_tokens} | values
    used = _FIELD.findall(settings.pattern)
    nothing = skipped(
        path,
        f"The name {printable(path.name)} leaves no text for a caption",
        "rename it, keep numbers, or write its caption by hand",
        "names.no-text",
    )
    if used and not any(values[name] for name in used):
        return nothing
    text = _FIELD.sub(lambda field: values[field[1]], settings.pattern)
    return from_text(path, separator.join(parts_of(text, separator)), nothing)
