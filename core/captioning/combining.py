"""Clean a captioner's text and combine it with the existing caption. Pure functions."""

from collections.abc import Callable, Iterable, Sequence
from fnmatch import fnmatchcase

from core.dataset.captions.words import comparable
from core.record.patterns import Pattern
from core.record.problems import Problem, ProblemsError
from core.settings.caption import CaptioningSettings


def combined(existing: str, new: str, settings: CaptioningSettings, separator: str = "") -> str:
    """Return the caption to write: `new`, cleaned, combined with `existing` as the settings say.

    existing    caption in the file, "" if there is none; returned unchanged if nothing is added
    separator   of the new caption, "" for the setting
    """
    separator = separator or settings.separator
    new = cleaned(new, settings, separator)
    mode = settings.existing
    if not existing or mode in ("missing", "keep", "replace"):
        return new
    if mode == "line":
        lines = existing.split("\n")
        return existing if new in (line.strip() for line in lines) else f"{existing}\n{new}"
    existing_parts = parts_of(existing, separator)
    keys = {comparable(part) for part in existing_parts}
    parts = {comparable(part): part for part in reversed(parts_of(new, separator))}
    added = [part for key, part in reversed(parts.items()) if key not in keys]
    if not added:
        return existing
    return separator.join([*existing_parts, *added] if mode == "append" else [*added, *existing_parts])


def cleaned(text: str, settings: CaptioningSettings, separator: str = "") -> str:
    """Return a captioner's text without the phrases of `remove_words`, with prefix and suffix; "" if no text remains."""
    separator = separator or settings.separator
    written = text
    for pattern in settings.remove_words:
        text = without_matches(pattern, text)
    if text != written and "\n" not in separator:  # without the separators that a removed tag leaves
        text = separator.join(parts_of(text, separator))
    lines = parts_of(text, separator) if "\n" in separator else [text]  # its line breaks are meant
    text = separator.join(line for each in lines if (line := " ".join(each.split()).strip(" ,")))
    prefix, suffix = (without_separators(affix, separator) for affix in (settings.prefix, settings.suffix))
    return separator.join(part for part in (prefix, text, suffix) if part) if text else ""


def without_separators(affix: str, separator: str) -> str:
    """Return a prefix or suffix without a separator at its ends, which joins it to the caption: "mira, " -> "mira"."""
    mark = separator.strip()
    affix = affix.strip()
    return affix if not mark or mark.isalnum() else affix.removeprefix(mark).removesuffix(mark).strip()


def without_matches(pattern: str, text: str) -> str:
    """Return the text without the matches of a regular expression. Raises ProblemsError for an invalid one."""
    return Pattern(pattern, pattern).replaced(text, "")


def pattern_problems(
    patterns: Sequence[str], where: str, replacement: str = "", replacement_where: str = ""
) -> list[Problem]:
    """Return an error for each invalid regular expression, and for each that is incompatible with the replacement text `replacement`.
    where, replacement_where: settings that the errors name for the expression and the replacement"""
    problems: list[Problem] = []
    for pattern in patterns:
        try:
            Pattern(pattern, where).check_replacement(replacement, replacement_where or where)
        except ProblemsError as error:
            problems += error.problems
    return problems


def parts_of(text: str, separator: str) -> list[str]:
    """Return the parts of a caption, split at the separator (without its spaces), stripped and without blank ones."""
    return [part.strip() for part in text.split(separator.strip() or separator) if part.strip()]


def tag_test(tags: Iterable[str]) -> Callable[[str], bool]:
    """Return a function that tests whether a tag is one of `tags`, compared by `comparable`; * matches any text."""
    forms = {comparable(tag) for tag in tags}
    patterns = [form for form in forms if "*" in form]
    return lambda tag: (
        (form := comparable(tag)) in forms or any(matches_wildcard(form, pattern) for pattern in patterns)
    )


def matches_wildcard(text: str, pattern: str) -> bool:
    """Return whether `pattern`, in which * matches any text, matches the whole text."""
    return fnmatchcase(text, pattern.replace("[", "[[]").replace("?", "[?]"))
