"""Edits of captions: a pure function from text to text for each kind of edit."""

import re
from collections import Counter
from collections.abc import Callable, Iterable
from typing import Protocol

from core.captioning.combining import parts_of, pattern_problems, tag_test, without_separators
from core.dataset.captions.words import comparable, name_words, tag_words
from core.record.patterns import Pattern
from core.record.problems import Problem, raise_any
from core.settings.captioning.edits import CaptionEditSettings


class Edit(Protocol):
    """A function that edits a caption."""

    def __call__(self, text: str, name: str = "", folder: str = "") -> str:
        """Return the edited caption. `name` and `folder` of the image are used by edits that make them the caption."""


def editor(settings: CaptionEditSettings, texts: Iterable[str]) -> Edit:
    """Return the function that applies the edit of the settings to a caption. Raises ProblemsError for incomplete settings.
    texts: all captions to edit, for sorting by frequency"""
    raise_any(edit_problems(settings))
    if settings.edit in _NAMES:
        from_names = _NAMES[settings.edit]
        return lambda text, name="", folder="": from_names(name, folder) or text
    if settings.edit in _TEXTS and (settings.edit != "replace" or settings.match != "tag"):
        change = _TEXTS[settings.edit](settings)
    else:
        change = _by_lines(settings, _TAGS[settings.edit](settings, texts))
    return lambda text, name="", folder="": change(text)


_TAGS_NEEDED, _TEXT_NEEDED = {"tags": "one or more tags"}, {"tags": "a text"}
_NEEDED = {  # change -> {setting that must be filled in: what it is}
    "add": _TAGS_NEEDED,
    "remove": _TAGS_NEEDED,
    "front": _TAGS_NEEDED,
    "prefix": _TEXT_NEEDED,
    "suffix": _TEXT_NEEDED,
    "separator": {"new_separator": "the new separator"},
    "replace": {"find": "a text to find"},
}


def edit_problems(settings: CaptionEditSettings) -> list[Problem]:
    """Return the problems of the settings: missing or invalid values."""

    def problem(what: str, name: str, fix: str, code: str) -> Problem:
        """Return the problem of the setting `name`."""
        return Problem(what, f"edit_captions.{name}", fix, code=f"edit.{code}")

    problems: list[Problem] = []
    if not settings.separator.strip():
        problems += [problem("A separator cannot consist of spaces only", "separator", 'use ", "', "blank-separator")]
    after = {"after": "the tag to add after"} if settings.edit == "add" and settings.place == "after" else {}
    for name, what in (_NEEDED.get(settings.edit, {}) | after).items():
        if not getattr(settings, name).strip():
            problems.append(problem(f"Enter {what}", name, "fill in this field", "incomplete"))
    if settings.edit == "replace" and settings.match == "regex":
        places = "edit_captions.find", "edit_captions.replace_with"
        problems += pattern_problems([settings.find], places[0], settings.replace_with, places[1])
    if settings.edit == "imply":
        if not settings.implications:
            fix = "write one, such as: blue dress -> dress"
            problems.append(problem("Enter one or more implications", "implications", fix, "incomplete"))
        problems += [
            problem(f"'{line}' is not an implication", "implications", "write: blue dress -> dress", "bad-rule")
            for line in settings.implications
            if line.strip() and _rule(line) is None
        ]
    return problems


# ---- by tags, line by line: each maker prepares once what all captions need

Tags = list[str]
Change = Callable[[Tags], Tags]
Rule = tuple[str, str, bool]  # what is there, what it implies, whether that takes its place
Test = Callable[[str], bool]


def _tags(text: str, settings: CaptionEditSettings) -> Tags:
    """Return the tags of a text, split at the setting's separator."""
    return parts_of(text, settings.separator)


def _by_lines(settings: CaptionEditSettings, change: Change) -> Callable[[str], str]:
    """Return an edit of text that applies `change` to the tags of each line. A line whose tags stay equal keeps its exact spelling."""

    def changed(line: str) -> str:
        """Return one line with the change applied to its tags."""
        before = _tags(line, settings)
        after = change(list(before))
        return line if after == before else settings.separator.join(after)

    return _each_line(changed)


def _each_line(change: Callable[[str], str]) -> Callable[[str], str]:
    """Return an edit of text that applies `change` to each line. Blank lines are kept, unless the whole text is blank."""
    return lambda text: "\n".join(
        change(line) if line.strip() or not text.strip() else line for line in text.split("\n")
    )


def _add(settings: CaptionEditSettings, texts: Iterable[str]) -> Change:
    """Return the change that adds missing tags to a caption: at its start, at its end or after a tag."""
    wanted = {comparable(tag): tag for tag in reversed(_tags(settings.tags, settings))}
    ordered, is_after = list(reversed(wanted.items())), tag_test([settings.after])

    def change(tags: Tags) -> Tags:
        known = {comparable(tag) for tag in tags}
        new = [tag for form, tag in ordered if form not in known]
        position = len(tags)
        if settings.place == "start":
            position = 0
        elif settings.place == "after":
            position = next((index + 1 for index, tag in enumerate(tags) if is_after(tag)), position)
        return [*tags[:position], *new, *tags[position:]]

    return change


def _remove(settings: CaptionEditSettings, texts: Iterable[str]) -> Change:
    """Return the change that removes the setting's tags, in which * matches any text."""
    is_removed = tag_test(_tags(settings.tags, settings))
    return lambda tags: [tag for tag in tags if not is_removed(tag)]


def _front(settings: CaptionEditSettings, texts: Iterable[str]) -> Change:
    """Return the change that moves the setting's tags to the front, in the setting's order. Missing tags are not added."""
    tests = [tag_test([tag]) for tag in _tags(settings.tags, settings)]
    return lambda tags: sorted(
        tags, key=lambda tag: next((index for index, test in enumerate(tests) if test(tag)), len(tests))
    )


def _sort(settings: CaptionEditSettings, texts: Iterable[str]) -> Change:
    """Return the change that sorts all tags but the first `keep_first`: by frequency in `texts`, most frequent first, or by name."""
    counts: Counter[str] = Counter()
    if settings.order == "frequency":
        counts.update(
            comparable(part) for text in texts for part in _tags(text.replace("\n", settings.separator), settings)
        )
    keep = settings.keep_first
    return lambda tags: [
        *tags[:keep],
        *sorted(tags[keep:], key=lambda tag: (-counts[comparable(tag)], comparable(tag))),
    ]


def _deduplicated(tags: Iterable[str]) -> Tags:
    """Return each tag once, at its first position and in its first spelling."""
    first: dict[str, str] = {}
    for tag in tags:
        first.setdefault(comparable(tag), tag)
    return list(first.values())


def _imply(settings: CaptionEditSettings, texts: Iterable[str]) -> Change:
    """Return the change that applies the implications repeatedly until nothing changes. Each tag triggers its rules once, so cycles end."""
    rules = [rule for line in settings.implications if (rule := _rule(line)) is not None]
    by_tag: dict[str, list[int]] = {}
    for number, (left, right, _) in enumerate(rules):
        if comparable(left) != comparable(right):
            by_tag.setdefault(comparable(left), []).append(number)
    tested = [(tag_test([left]), right, replaces) for left, right, replaces in rules]
    wildcards = [(tested[numbers[0]][0], numbers) for tag, numbers in by_tag.items() if "*" in tag]

    def change(tags: Tags) -> Tags:
        done: set[str] = set()
        while new := {comparable(tag) for tag in tags} - done:
            done |= new
            matching = {number for tag in new for number in by_tag.get(tag, ())}
            matching |= {number for test, numbers in wildcards if any(map(test, new)) for number in numbers}
            tags = _with_rules(tags, [tested[number] for number in sorted(matching)])
        return tags

    return change


def _with_rules(tags: Tags, rules: Iterable[tuple[Test, str, bool]]) -> Tags:
    """Return the tags after applying (test, right tag, replaces) in order, each if a tag passes its test."""
    for test, right, replaces in rules:
        if not any(map(test, tags)):
            continue
        if replaces:
            tags = _deduplicated(right if test(tag) else tag for tag in tags)
        elif comparable(right) not in map(comparable, tags):
            tags = [*tags, right]
    return tags


def _rule(line: str) -> Rule | None:
    """Parse a rule: `a -> b` adds b where a is, `a = b` replaces a by b. None for other text, such as `a -> b -> c`.

    Returns (a, b, whether b replaces a).
    """
    match = re.fullmatch(r"\s*(.+?)\s*(->|=)\s*(.+?)\s*", line)
    return (match[1], match[3], match[2] == "=") if match and not re.search(r"->|\s=\s", match[3]) else None


def _each_tag(change: Callable[[str], str]) -> Callable[[CaptionEditSettings, Iterable[str]], Change]:
    """Return the edit that applies `change` to each tag."""
    return lambda settings, texts: lambda tags: [change(tag) for tag in tags]


def _replaced_tags(settings: CaptionEditSettings, texts: Iterable[str]) -> Change:
    """Return the change that replaces a tag, which may contain *, by the tags of `replace_with`, each once in a caption."""
    test, new = tag_test([settings.find]), _tags(settings.replace_with, settings)
    forms = set(map(comparable, new))

    def change(tags: Tags) -> Tags:
        if not any(map(test, tags)):
            return tags
        replaced: Tags = []
        for part in (part for tag in tags for part in (new if test(tag) else [tag])):
            if comparable(part) not in forms.intersection(map(comparable, replaced)):
                replaced.append(part)
        return replaced

    return change


_TAGS: dict[str, Callable[[CaptionEditSettings, Iterable[str]], Change]] = {
    "add": _add,
    "remove": _remove,
    "front": _front,
    "sort": _sort,
    "deduplicate": lambda settings, texts: _deduplicated,
    "imply": _imply,
    "replace": _replaced_tags,
    "spaces": _each_tag(tag_words),
    "underscores": _each_tag(lambda tag: re.sub(r"\s+", "_", tag)),
    "escape": _each_tag(lambda tag: re.sub(r"(?<!\\)([()])", r"\\\1", tag)),
    "unescape": _each_tag(lambda tag: re.sub(r"\\([()])", r"\1", tag)),
    "lower": _each_tag(str.lower),
}


# ---- of the whole text

_BOUND = r"(?:(?<![\w-])|(?![\w-]))"  # where no word goes on, a hyphenated one neither


def _with_replacement(settings: CaptionEditSettings) -> Callable[[str], str]:
    """Return the edit that replaces a text or the matches of a regular expression."""
    if settings.match == "text":
        return lambda text: text.replace(settings.find, settings.replace_with)
    pattern = Pattern(settings.find, "edit_captions.find")
    return lambda text: pattern.replaced(text, settings.replace_with)


def _with_separator(settings: CaptionEditSettings) -> Callable[[str], str]:
    """Return the edit that replaces the separator; a line with a single tag does not change."""

    def change(line: str) -> str:
        return settings.new_separator.join(tags) if len(tags := _tags(line, settings)) > 1 else line

    return _each_line(change)


def _on_one_line(settings: CaptionEditSettings) -> Callable[[str], str]:
    """Return the edit that joins all lines by the separator."""
    mark = rf"(?:{_BOUND}{re.escape(settings.separator.strip())}{_BOUND}|\s)+"
    edges = re.compile(rf"\A{mark}|{mark}\Z")
    return lambda text: settings.separator.join(filter(None, (edges.sub("", line) for line in text.split("\n"))))


def _with_affix(settings: CaptionEditSettings) -> Callable[[str], str]:
    """Return the edit that adds a prefix or suffix to each line without it. Whole words count: "foxglove" does not start with "fox"."""
    affix, before = without_separators(settings.tags, settings.separator), settings.edit == "prefix"
    pattern = re.compile(rf"{re.escape(affix)}{_BOUND}" if before else rf"{_BOUND}{re.escape(affix)}\Z")
    has_affix = pattern.match if before else pattern.search

    def change(line: str) -> str:
        both = (affix, line) if before else (line, affix)
        return line if has_affix(line) else settings.separator.join(part for part in both if part)

    return _each_line(change)


_TEXTS: dict[str, Callable[[CaptionEditSettings], Callable[[str], str]]] = {
    "replace": _with_replacement,
    "prefix": _with_affix,
    "suffix": _with_affix,
    "separator": _with_separator,
    "one_line": _on_one_line,
}
_NAMES: dict[str, Callable[[str, str], str]] = {
    "file_name": lambda name, folder: name_words(name.rpartition(".")[0]),
    "folder_name": lambda name, folder: name_words(folder),
}
