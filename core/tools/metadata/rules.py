"""Rules that clean tags and captions, as pure functions (reference: datasets, section 6.3).

Each has two variants: by whole words, and exactly as clean_captions_and_tags of sd-scripts.
"""

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from core.dataset.captions.files import MAX_CAPTION_BYTES
from core.dataset.captions.words import tag_words
from core.record.problems import Problem

ROUNDS = 1000  # of one replacement; each round makes the text shorter, or moves something in it
MAX_LINE = 1000
PASSES = 20  # of the whole list


@dataclass(frozen=True)
class TagRules:
    """The enabled groups of rules for tags."""

    underscores: bool = True
    ratings: bool = True
    people: bool = True
    contained: bool = True


# ---- tags


def clean_tags(text: str, rules: TagRules) -> str:
    """Return the tags cleaned by whole words, separated by a comma and a space."""
    tags = [tag.strip() for tag in text.split(",") if tag.strip()]
    if rules.underscores:
        tags = [tag_words(tag) for tag in tags]
    if rules.ratings:
        tags = [tag for tag in tags if not _RATING.fullmatch(tag)]
    return ", ".join(_without_redundant(tags, rules, any(_PEOPLE.search(tag) for tag in tags)))


def clean_tags_as_sd_scripts(text: str, rules: TagRules) -> str:
    """Return the tags cleaned as sd-scripts does: ^_^ is the only emoticon, text after a rating is cut, 'cowboys' count as boys."""
    if rules.underscores:
        text = "^_^".join(part.replace("_", " ") for part in text.split("^_^"))
    if rules.ratings:
        text = text.partition(", rating")[0]
    tags = _without_redundant(text.split(", "), rules, "girls" in text or "boys" in text)
    joined = "".join(f", {tag}, " for tag in tags).replace(", , ", ", ")  # as sd-scripts joins: empty tags differ
    return joined[2:-2]


_RATING = re.compile("rating[ _:].*", re.IGNORECASE | re.DOTALL)
_PEOPLE = re.compile(r"(?<![^\W\d_])(girls|boys)\b")  # 2girls, multiple boys
_WORD = re.compile(r"[\w\-]+|hair ornament")
# With several people, such tags are ambiguous: if two or more of a group are present, all of the group are removed.
_GROUPS = [
    re.compile("(long|short|medium) hair"),
    re.compile("(bob|hime) cut"),
    re.compile(r"[\w\-]+ eyes"),
    re.compile(r"[\w\-]+ sleeves|sleeveless"),
    re.compile(
        r"ponytail|braid|[\w\-]+ braid|ahoge|twintails|[\w\-]+ bun|single (hair|side) bun|two side up|two tails|sidelocks"
    ),
    re.compile(r"(?!(long|short|medium) )[\w\-]+ hair"),
]
_BEFORE = re.compile(r"(\w+ )+")


def _without_redundant(tags: list[str], rules: TagRules, several_people: bool) -> list[str]:
    """Return the tags without ambiguous tags of several people, and without tags contained in others, by the rules."""
    if rules.people and several_people:
        for group in _GROUPS:
            others = [tag for tag in tags if not group.fullmatch(tag)]
            tags = others if len(tags) - len(others) > 1 else tags
    return _without_contained(tags) if rules.contained else tags


def _without_contained(tags: list[str]) -> list[str]:
    """Return the tags without one-word tags, and 'hair ornament', that end a longer tag: "shirt" if there is "white shirt"."""
    ends: set[str] = set()
    for tag in tags:
        for end in ("hair ornament", tag.rpartition(" ")[2]):
            if tag.endswith(f" {end}") and _BEFORE.fullmatch(tag.removesuffix(end)):
                ends.add(end)
    return [tag for tag in tags if not (tag in ends and _WORD.fullmatch(tag))]


# ---- captions


@dataclass(frozen=True)
class Replacement:
    """A replacement of `old` by `new`."""

    old: str
    new: str

    def __str__(self) -> str:
        return " -> ".join(f'"{text}"' if text != text.strip() or not text else text for text in (self.old, self.new))

    @property
    def pattern(self) -> re.Pattern[str]:
        """Regular expression that matches `old` at word boundaries."""
        begins = r"(?<!\w)" if re.match(r"\w", self.old) else ""
        ends = r"(?!\w)" if re.search(r"\w\Z", self.old) else ""
        return re.compile(begins + re.escape(self.old) + ends)


class EndlessReplacement(Exception):
    """A replacement never ends in a text."""

    def __init__(self, replacement: Replacement):
        super().__init__(str(replacement))
        self.replacement = replacement


_LINE = re.compile(r'(?:"(?P<quoted>[^"]*)"|(?P<plain>.+?))\s*->\s*(?:"(?P<quoted_new>[^"]*)"|(?P<new>.*))')


def read_replacements(lines: Iterable[tuple[str, str]]) -> tuple[list[Replacement], list[Problem]]:
    """Parse lines "old -> new" into (replacements, a problem for each invalid line). `lines`: (location for problems, text)."""
    replacements: list[Replacement] = []
    problems: list[Problem] = []
    for where, line in lines:
        if not line.strip():
            continue
        match = _LINE.fullmatch(line.strip()) if len(line) <= MAX_LINE else None
        if match is None or match["quoted"] == "":
            fix = 'write from -> to, with quotes to keep spaces: "young " -> ""'
            problems.append(
                Problem(f"'{line.strip()[:80]}' is not a replacement", where, fix, code="metadata.bad-replacement")
            )
            continue
        new = match["quoted_new"] if match["quoted_new"] is not None else match["new"]
        replacements.append(Replacement(match["quoted"] or match["plain"], new))
    return replacements, problems


def endless_replacements(replacements: Sequence[Replacement], by_word: bool) -> list[Replacement]:
    """Return the replacements that match their own result, and so never end."""
    return [
        each
        for each in replacements
        if each.old != each.new and (each.pattern.search(each.new) if by_word else each.old in each.new)
    ]


def cleaner_of_captions(replacements: Sequence[Replacement], by_word: bool) -> Callable[[str], str]:
    """Return the function that cleans one caption: each replacement is repeated until it matches nothing.

    The function raises EndlessReplacement.

    by_word   replace whole words, and repeat the whole list until nothing changes; otherwise apply it once, to any text, as
              sd-scripts does
    """
    steps = [(each, _replacer(each, by_word)) for each in replacements if each.old != each.new]

    def clean(text: str) -> str:
        """Return the caption after all replacements. Raises EndlessReplacement."""
        for _ in range(PASSES):
            text, changed = _one_pass(text, steps)
            if not changed or not by_word:
                return text
        raise EndlessReplacement(changed[-1])

    return clean


def _one_pass(text: str, steps: Sequence[tuple[Replacement, Callable[[str], str]]]) -> tuple[str, list[Replacement]]:
    """Return (text after every replacement, replacements that changed it)."""
    changed = []
    for each, replace in steps:
        if each.old in text and (after := _replaced_until_stable(text, replace, each)) != text:
            text = after
            changed.append(each)
    return text, changed


def _replacer(replacement: Replacement, by_word: bool) -> Callable[[str], str]:
    """Return the function that applies a replacement once to a text."""
    if not by_word:
        return lambda text: text.replace(replacement.old, replacement.new)
    pattern = replacement.pattern
    return lambda text: pattern.sub(lambda match: replacement.new, text)


def _replaced_until_stable(text: str, replace: Callable[[str], str], replacement: Replacement) -> str:
    """Return the text after `replace`, repeated until it changes nothing. Raises EndlessReplacement."""
    for _ in range(ROUNDS):
        changed = replace(text)
        if changed == text:
            return text
        if len(changed) > MAX_CAPTION_BYTES and len(changed) > len(text):
            break
        text = changed
    raise EndlessReplacement(replacement)
