"""Changes to the captions of many images: pure functions from text to text, one for each kind of change."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from core.captioning.combining import comparable, parts_of, pattern_problems, removed
from core.captioning.words import name_words, tag_words
from core.record.problems import Problem, ProblemsError
from core.settings.caption_edits import EDITS, CaptionEditSettings


@dataclass(frozen=True)
class Subject:
    """A caption to change, and what names can become one."""

    text: str
    name: str = ""
    folder: str = ""


def editor(settings: CaptionEditSettings, texts: Iterable[str]) -> Callable[[Subject], str]:
    """The function that makes this change to a caption. Raises ProblemsError where the settings are not complete.

    texts   of all chosen captions, for orders by frequency
    """
    problems = edit_problems(settings)
    if problems:
        raise ProblemsError(problems)
    counts: Counter[str] = Counter()
    if settings.edit == "sort" and settings.order == "frequency":
        counts.update(comparable(part) for text in texts for part in _tags(text, settings))
    rules = _rules(settings.implications) if settings.edit == "imply" else []
    if settings.edit == "replace" and settings.match != "tag":
        return lambda subject: _replace(subject, settings)
    if settings.edit in _TEXTS:
        return lambda subject: _TEXTS[settings.edit](subject, settings)
    change = _TAGS[settings.edit]
    return lambda subject: _by_lines(subject.text, settings, lambda tags: change(tags, settings, counts, rules))


def edit_problems(settings: CaptionEditSettings) -> list[Problem]:
    """What is missing from the settings, or wrong."""
    found: list[Problem] = []

    def need(name: str, what: str) -> None:
        if not str(getattr(settings, name)).strip():
            fix = "fill it in"
            found.append(
                Problem(f"{EDITS[settings.edit]} needs {what}", f"edit_captions.{name}", fix, code="edit.incomplete")
            )

    if not settings.separator.strip():
        what, fix = "A separator of spaces alone cannot divide tags", 'use ", "'
        found.append(Problem(what, "edit_captions.separator", fix, code="edit.blank-separator"))
    if settings.edit in ("add", "remove", "front", "prefix", "suffix"):
        need("tags", "tags" if settings.edit in ("add", "remove", "front") else "a text")
    if settings.edit == "add" and settings.place == "after":
        need("after", "the tag to add after")
    if settings.edit == "replace":
        need("find", "a text to find")
        if settings.match == "regex":
            found += pattern_problems([settings.find], "edit_captions.find")
    if settings.edit == "imply":
        if not settings.implications:
            fix = "write one, such as: blue dress -> dress"
            found.append(
                Problem("There are no implications", "edit_captions.implications", fix, code="edit.incomplete")
            )
        found += [
            Problem(
                f"'{line}' is not an implication",
                "edit_captions.implications",
                "write: blue dress -> dress",
                code="edit.bad-rule",
            )
            for line in settings.implications
            if line.strip() and _rule(line) is None
        ]
    return found


# ---- by tags, line by line

Tags = list[str]
Rule = tuple[str, str, bool]  # what is there, what it implies, whether that takes its place


def _tags(text: str, settings: CaptionEditSettings) -> Tags:
    return parts_of(text, settings.separator)


def _by_lines(text: str, settings: CaptionEditSettings, change: Callable[[Tags], Tags]) -> str:
    """Each line is a caption of its own; one that does not change keeps its spelling to the letter."""
    lines = []
    for line in text.split("\n") if text else [""]:
        before = _tags(line, settings)
        after = change(list(before))
        lines.append(line if after == before else settings.separator.join(after))
    return "\n".join(lines)


def _has(tags: Sequence[str], tag: str) -> bool:
    return comparable(tag) in {comparable(each) for each in tags}


def _add(tags: Tags, settings: CaptionEditSettings, counts: Counter[str], rules: Sequence[Rule]) -> Tags:
    new = [tag for tag in _tags(settings.tags, settings) if not _has(tags, tag)]
    at = len(tags)
    if settings.place == "start":
        at = 0
    elif settings.place == "after":
        places = [number for number, tag in enumerate(tags, 1) if comparable(tag) == comparable(settings.after)]
        at = places[0] if places else at
    return [*tags[:at], *new, *tags[at:]]


def _remove(tags: Tags, settings: CaptionEditSettings, counts: Counter[str], rules: Sequence[Rule]) -> Tags:
    gone = _tags(settings.tags, settings)
    return [tag for tag in tags if not _has(gone, tag)]


def _front(tags: Tags, settings: CaptionEditSettings, counts: Counter[str], rules: Sequence[Rule]) -> Tags:
    """In the order in which they are given; those that are not there are not added."""
    first = [tag for wanted in _tags(settings.tags, settings) for tag in tags if comparable(tag) == comparable(wanted)]
    return [*first, *(tag for tag in tags if tag not in first)]


def _sort(tags: Tags, settings: CaptionEditSettings, counts: Counter[str], rules: Sequence[Rule]) -> Tags:
    first, rest = tags[: settings.keep_first], tags[settings.keep_first :]
    if settings.order == "frequency":
        return [*first, *sorted(rest, key=lambda tag: (-counts[comparable(tag)], comparable(tag)))]
    return [*first, *sorted(rest, key=comparable)]


def _deduplicate(tags: Tags, settings: CaptionEditSettings, counts: Counter[str], rules: Sequence[Rule]) -> Tags:
    first: dict[str, str] = {}
    for tag in tags:
        first.setdefault(comparable(tag), tag)
    return list(first.values())


def _imply(tags: Tags, settings: CaptionEditSettings, counts: Counter[str], rules: Sequence[Rule]) -> Tags:
    """Until nothing more follows: implications may chain."""
    seen: set[tuple[str, ...]] = set()
    while tuple(tags) not in seen:
        seen.add(tuple(tags))
        for there, implied, instead in rules:
            if not _has(tags, there) or comparable(there) == comparable(implied):
                continue
            if instead:
                tags = _deduplicate(
                    [implied if comparable(tag) == comparable(there) else tag for tag in tags], settings, counts, rules
                )
            elif not _has(tags, implied):
                tags = [*tags, implied]
    return tags


def _rule(line: str) -> Rule | None:
    """`a -> b`: a implies b; `a = b`: b is written for a."""
    found = re.fullmatch(r"\s*(.+?)\s*(->|=)\s*(.+?)\s*", line)
    return (found[1], found[3], found[2] == "=") if found else None


def _rules(lines: Sequence[str]) -> list[Rule]:
    return [rule for line in lines if (rule := _rule(line)) is not None]


def _each(change: Callable[[str], str]) -> Callable[[Tags, CaptionEditSettings, Counter[str], Sequence[Rule]], Tags]:
    return lambda tags, settings, counts, rules: [change(tag) for tag in tags]


def _replaced_tags(tags: Tags, settings: CaptionEditSettings, counts: Counter[str], rules: Sequence[Rule]) -> Tags:
    wanted, new = comparable(settings.find), _tags(settings.replace_with, settings)
    return [part for tag in tags for part in (new if comparable(tag) == wanted else [tag])]


_TAGS: dict[str, Callable[[Tags, CaptionEditSettings, Counter[str], Sequence[Rule]], Tags]] = {
    "add": _add,
    "remove": _remove,
    "front": _front,
    "sort": _sort,
    "deduplicate": _deduplicate,
    "imply": _imply,
    "replace": _replaced_tags,
    "spaces": _each(tag_words),
    "underscores": _each(lambda tag: re.sub(r"\s+", "_", tag)),
    "escape": _each(lambda tag: re.sub(r"(?<!\\)([()])", r"\\\1", tag)),
    "unescape": _each(lambda tag: re.sub(r"\\([()])", r"\1", tag)),
    "lower": _each(str.lower),
}


# ---- of the whole text


def _replace(subject: Subject, settings: CaptionEditSettings) -> str:
    if settings.match == "text":
        return subject.text.replace(settings.find, settings.replace_with)
    return removed(settings.find, subject.text, settings.replace_with)


def _joined(subject: Subject, settings: CaptionEditSettings) -> str:
    return settings.separator.join(
        line.strip().strip(settings.separator.strip()) for line in subject.text.split("\n") if line.strip()
    )


def _fixed(before: bool) -> Callable[[Subject, CaptionEditSettings], str]:
    """A prefix or suffix at each line that has it not yet."""

    def of(subject: Subject, settings: CaptionEditSettings) -> str:
        text, lines = settings.tags.strip(), []
        for line in subject.text.split("\n"):
            there = line.startswith(text) if before else line.endswith(text)
            both = (text, line) if before else (line, text)
            lines.append(line if there else settings.separator.join(part for part in both if part))
        return "\n".join(lines)

    return of


_TEXTS: dict[str, Callable[[Subject, CaptionEditSettings], str]] = {
    "prefix": _fixed(before=True),
    "suffix": _fixed(before=False),
    "one_line": _joined,
    "file_name": lambda subject, settings: name_words(subject.name.rpartition(".")[0]) or subject.text,
    "folder_name": lambda subject, settings: name_words(subject.folder) or subject.text,
}
