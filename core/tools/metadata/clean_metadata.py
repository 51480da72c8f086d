"""Cleans tags and captions of a metadata JSON, as clean_captions_and_tags does (reference: datasets, section 6.3)."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from core.dataset.captions.encodings import decode_text
from core.dataset.captions.history import content_of
from core.dataset.sources.files import printable
from core.dataset.sources.image_info import listed
from core.record.context import JobContext, Outcome
from core.record.problems import Problem, ProblemsError, at_setting, raise_if_errors
from core.record.regular import read_regular
from core.record.units import count
from core.record.workspace import Workspace, display_path, typed_path
from core.settings.tools.metadata import CleanMetadataSettings
from core.tools.metadata.files import Entries, entries_of, one_line, output_of, write_entries
from core.tools.metadata.rules import (
    EndlessReplacement,
    Replacement,
    TagRules,
    clean_tags,
    clean_tags_as_sd_scripts,
    cleaner_of_captions,
    endless_replacements,
    read_replacements,
)

MAX_LIST_BYTES = 1 << 20
Clean = Callable[[str], str]


@dataclass(frozen=True)
class Plan:
    """The file to write (`out`), the file to clean (`source`), and replacements in captions."""

    out: Path
    source: Path
    replacements: list[Replacement]

    def __str__(self) -> str:
        replacements = count(len(self.replacements), "replacement")
        return f"clean {display_path(self.source)} with {replacements} into {display_path(self.out)}"


@dataclass
class Cleaned:
    """The result of cleaning.

    changes   (key, "tags" or "caption", text before, text after)
    without   number of entries without tags and without caption
    """

    changes: list[tuple[str, str, str, str]] = field(default_factory=list)
    without: dict[str, int] = field(default_factory=lambda: {"tags": 0, "caption": 0})

    def changed(self, name: str) -> int:
        """Return how many entries changed in `name`: "tags" or "caption"."""
        return sum(each[1] == name for each in self.changes)


def do(settings: CleanMetadataSettings, plan: Plan, context: JobContext) -> Outcome:
    """Clean every entry and write the file; a preview only lists the changes."""
    out, before_run = plan.out, content_of(plan.out)
    entries, advice = entries_of(plan.source)
    cleaned = _clean(entries, _cleaners(settings, plan.replacements), plan.source, context)
    facts = {
        "entries": len(entries),
        "changed": {name: cleaned.changed(name) for name in cleaned.without},
        "without": cleaned.without,
        "problems": [problem.to_dict() for problem in advice],
    }
    lines = [str(problem) for problem in advice]
    for key, name, before, after in cleaned.changes[: settings.preview or 0]:
        lines += [f"{printable(key)}, {name}", f"  before: {one_line(before)}", f"  after:  {one_line(after)}"]
    tags, captions = cleaned.changed("tags"), cleaned.changed("caption")
    sentence = f"tags of {tags:,} and captions of {captions:,} of {count(len(entries), 'entry', 'entries')} changed"
    without = [f"{number:,} have no {name}" for name, number in cleaned.without.items() if number]
    sentence += f" ({', '.join(without)})" if without else ""
    if settings.preview is not None:
        return Outcome(lines=[*lines, f"{sentence}; nothing was written"], facts=facts)
    outcome = Outcome(lines=[*lines, sentence], facts=facts)
    return write_entries(context, "Clean metadata", out, before_run, entries, outcome)


def _clean(entries: Entries, cleaners: dict[str, Clean], source: Path, context: JobContext) -> Cleaned:
    """Clean the entries in place, and return the changes. Raises ProblemsError for values that are not text, and for a replacement that
    never ends.
    cleaners: {"tags" or "caption": function from text to cleaned text}"""
    invalid = [
        f"{name} of {key}"
        for key, entry in entries.items()
        for name in cleaners
        if not isinstance(entry.get(name), str | None)
    ]
    if invalid:
        what = f"{count(len(invalid), 'value')} of the metadata file are not text: {listed(invalid)}"
        raise ProblemsError.one(what, printable(source), "fix or remove them", "metadata.invalid-values")
    cleaned = Cleaned()
    for done, (key, entry) in enumerate(entries.items(), 1):
        context.check()
        context.stage("cleaning", done, len(entries))
        for name, clean in cleaners.items():
            before = entry.get(name)
            if before is None:
                cleaned.without[name] += 1
                continue
            try:
                entry[name] = clean(before)
            except EndlessReplacement as error:
                raise _endless_error(error.replacement, f"{printable(source)}, caption of {printable(key)}") from None
            if entry[name] != before:
                cleaned.changes.append((key, name, before, entry[name]))
    return cleaned


def _cleaners(settings: CleanMetadataSettings, replacements: list[Replacement]) -> dict[str, Clean]:
    """Return the cleaning functions of the settings: {"tags", "caption": function from text to cleaned text}."""
    rules = TagRules(
        settings.clean_underscores, settings.clean_ratings, settings.clean_people, settings.clean_contained
    )
    by_word = settings.clean_rules == "words"
    clean_of_tags = clean_tags if by_word else clean_tags_as_sd_scripts
    return {"tags": lambda text: clean_of_tags(text, rules), "caption": cleaner_of_captions(replacements, by_word)}


# ---- the settings


def plan(settings: CleanMetadataSettings, workspace: Workspace) -> Plan:
    """Check the files and replacements, and return the plan. Raises ProblemsError with all problems."""
    out, source, problems = output_of(settings, "clean_metadata")
    if source is None and not problems:
        what, fix = "No metadata file is given", "choose the metadata file to clean"
        problems.append(Problem(what, "clean_metadata.in_json", fix, code="metadata.missing-file"))
    replacements, invalid = _replacements(settings)
    problems += invalid
    for each in endless_replacements(replacements, settings.clean_rules == "words"):
        problems += _endless_error(each, "clean_metadata.replacements").problems
    raise_if_errors(problems)
    return Plan(out, source or out, replacements)


def _replacements(settings: CleanMetadataSettings) -> tuple[list[Replacement], list[Problem]]:
    """Return (replacements of the settings and their file, problems)."""
    lines = [
        (f"clean_metadata.replacements, line {number}", line) for number, line in enumerate(settings.replacements, 1)
    ]
    file, unread = typed_path(settings.replacements_file), []
    if file is not None:
        try:
            text = decode_text(read_regular(file, MAX_LIST_BYTES)).text
            lines += [(f"{printable(file)}, line {number}", line) for number, line in enumerate(text.splitlines(), 1)]
        except ProblemsError as error:
            unread = at_setting("clean_metadata.replacements_file", error.problems)
    replacements, invalid = read_replacements(lines)
    return replacements, [*unread, *invalid]


def _endless_error(replacement: Replacement, where: str) -> ProblemsError:
    """Return the error for a replacement that never ends."""
    what = f"The replacement {replacement} never ends: its result is replaced again"
    fix = "make sure that its result does not contain the text it replaces, and that no other line reverses it"
    return ProblemsError.one(what, where, fix, "metadata.endless-replacement")
