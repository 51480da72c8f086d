"""From a tagger's scores to the tags of a caption: pure functions of labels, scores and settings.

Steps in order: select by threshold, exclude, replace, split characters, remove duplicates and overlaps, limit, sort, write. A
`Formatter` is built once and called for each image; it needs no model.
"""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

from core.captioning.described import Scores
from core.dataset.captions.words import KAOMOJI
from core.record.problems import ProblemsError
from core.settings.captioning.tagger import FLOOR, TagTextSettings

BEST = ("rating", "quality")  # categories of which an image gets only the tag with the highest score
MCUT = {"general": 0.0, "character": 0.15}  # category -> lowest automatic threshold
PAREN = re.compile(r"(?<!\\)([()])")


@dataclass(frozen=True, slots=True)
class Label:
    """The tag of one output of a tagger. `series`: of a character, if the label table has them (PixAI)."""

    name: str
    category: str
    series: tuple[str, ...] = ()


Scored = tuple[Label, float]


@dataclass(frozen=True, slots=True)
class Tag:
    """A tag of an image. `score`: None for an inserted tag."""

    name: str
    category: str
    score: float | None
    series: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Tagged:
    """The tags of an image.

    text     the caption
    tags     names as written, without weights
    scored   (name, score) pairs
    """

    text: str
    tags: tuple[str, ...]
    scored: Scores


Format = Callable[[Sequence[Scored]], Tagged]


def items_of(text: str) -> list[str]:
    """Return the items of a comma-separated setting, stripped, without empty ones."""
    return [item for part in re.split(r"(?<!\\)[,\n]", text) if (item := _plain(part))]


def _plain(text: str) -> str:
    """Return the text unescaped and stripped."""
    return text.replace("\\,", ",").replace("\\;", ";").strip()


def pairs_of(text: str) -> list[tuple[str, str]]:
    """Parse the (old, new) pairs of the replacement setting. Raises ProblemsError for an invalid pair."""
    pairs = []
    for part in re.split(r"(?<!\\)[;\n]", text):
        tags = [_plain(word) for word in re.split(r"(?<!\\),", part)]
        if tags == [""]:
            continue
        if len(tags) != 2 or not all(tags):
            raise not_a_pair(part)
        pairs.append((tags[0], tags[1]))
    return pairs


def not_a_pair(part: str) -> ProblemsError:
    """Return the error for an invalid pair of the replacement setting."""
    what = f"'{part.strip()}' is not a pair of an old and a new tag"
    fix = "write old,new and separate the pairs by ;"
    return ProblemsError.one(what, "tag_replacement", fix, "tagger.bad-replacement")


def wildcard_pattern(key: str) -> str:
    """Return a regular expression, for `fullmatch` with DOTALL, of a key in which * matches any text.

    Text between two stars matches at its first occurrence, without backtracking (an atomic group): many stars would otherwise take
    exponential time.
    """
    first, *parts = map(re.escape, key.split("*"))
    if not parts:
        return first
    between = "".join(f"(?>.*?{part})" for part in parts[:-1] if part)
    return f"{first}{between}.*{parts[-1]}"


def threshold_of(category: str, options: TagTextSettings, defaults: Mapping[str, float]) -> float:
    """Return the threshold of a category: its setting, else the common setting, else the model's (`defaults`, by category)."""
    threshold = getattr(options, f"{category}_threshold", None)
    if threshold is not None:
        return float(threshold)
    if category in BEST:
        return 0.0
    if options.thresh is not None:
        return options.thresh
    return defaults.get(category, defaults.get("general", 0.35))


def mcut(scores: Sequence[float]) -> float:
    """Return the MCut threshold: the middle of the largest gap between neighboring scores, with FLOOR as the lowest score."""
    ordered = [*sorted(scores, reverse=True), FLOOR]
    gaps = [high - low for high, low in pairwise(ordered)]
    at = max(range(len(gaps)), key=gaps.__getitem__)
    return (ordered[at] + ordered[at + 1]) / 2


class Formatter:
    """Converts an image's scores, in the order of the labels, to its tags, for one set of settings.
    defaults: the model's thresholds by category"""

    def __init__(self, options: TagTextSettings, defaults: Mapping[str, float]):
        self.options, self.defaults = options, defaults
        self.positions = {"rating": options.rating_tag, "quality": options.quality_tag}
        marks = {",", options.caption_separator.strip()}
        self.separators = [mark for mark in marks if mark and not any(map(str.isalnum, mark))]
        self.undesired = self.pattern(options.undesired_tags)
        self.wanted = self.pattern(options.wanted_tags)
        self.first_tags = items_of(options.always_first_tags)
        self.replacements = {self.key(old): new for old, new in pairs_of(options.tag_replacement)}

    def __call__(self, scored: Sequence[Scored]) -> Tagged:
        """Return the tags of an image from its (label, score) pairs."""
        tags = [tag for tag in self.selected(scored) if not self.matches(self.undesired, tag)]
        if self.wanted is not None:
            tags = [tag for tag in tags if tag.category in BEST or self.matches(self.wanted, tag)]
        tags = [replace(tag, name=self.replacements.get(self.key(tag.name), tag.name)) for tag in tags]
        if self.options.character_tag_expand:
            tags = [part for tag in tags for part in expanded(tag)]
        tags = self.deduplicated([tag for tag in tags if not self.matches(self.undesired, tag)])
        if self.options.remove_overlap:
            tags = self.without_overlap(tags)
        return self.written(self.ordered(self.limited(tags)))

    # ---- which

    def selected(self, scored: Sequence[Scored]) -> Iterator[Tag]:
        """Yield the tags that reach the threshold of their category, in the order of the labels.

        Of ratings and qualities only the best, if the settings want it.
        """
        best: dict[str, tuple[float, int]] = {}
        thresholds: dict[str, float] = {}
        for number, (label, score) in enumerate(scored):
            if label.category in BEST and (score, -number) > best.get(label.category, (-1.0, 0)):
                best[label.category] = (score, -number)
        for category in {label.category for label, _ in scored}:
            thresholds[category] = threshold_of(category, self.options, self.defaults)
            if self.options.mcut and category in MCUT and thresholds[category] <= 1:
                cut = mcut([score for label, score in scored if label.category == category])
                thresholds[category] = max(cut, MCUT[category])
        for number, (label, score) in enumerate(scored):
            best_only = label.category in BEST
            chosen = not best_only or (self.positions[label.category] != "none" and best[label.category][1] == -number)
            if chosen and score >= thresholds[label.category]:
                yield Tag(label.name, label.category, score, label.series)

    def key(self, name: str) -> str:
        """Return a tag normalized for comparison: without differences in case, underscores, spaces and escapes."""
        name = name.strip().casefold().replace("\\(", "(").replace("\\)", ")")
        return name if name in KAOMOJI else " ".join(self.spaced(name).replace("_", " ").split())

    def spaced(self, name: str) -> str:
        """Replace separators in a name by spaces."""
        for mark in self.separators:
            name = name.replace(mark, " ")
        return name

    def pattern(self, text: str) -> re.Pattern[str] | None:
        """Return the regular expression that matches the keys of a list of tags; None for an empty list."""
        keys = [self.key(item) for item in items_of(text)]
        return re.compile("|".join(map(wildcard_pattern, keys)), re.DOTALL) if keys else None

    def matches(self, pattern: re.Pattern[str] | None, tag: Tag) -> bool:
        """Return whether a tag matches a pattern of `pattern`; False for None."""
        return pattern is not None and pattern.fullmatch(self.key(tag.name)) is not None

    def deduplicated(self, tags: Sequence[Tag]) -> list[Tag]:
        """Return each tag once, at its first position, without tags that consist of separators only."""
        first: dict[str, Tag] = {}
        for tag in tags:
            first.setdefault(self.key(tag.name), tag)
        return [tag for key, tag in first.items() if key]

    def without_overlap(self, tags: Sequence[Tag]) -> list[Tag]:
        """Return the tags without those whose words are part of another tag of the same category: "hair" if there is "long hair"."""
        spaced = {tag.name: f" {self.key(tag.name)} " for tag in tags}
        others = {
            category: [spaced[tag.name] for tag in tags if tag.category == category]
            for category in {tag.category for tag in tags}
        }

        def inside_another(tag: Tag) -> bool:
            """Return whether the tag's words are part of another tag of its category."""
            text = spaced[tag.name]
            return any(text in other and text != other for other in others[tag.category])

        return [tag for tag in tags if not inside_another(tag)]

    def limited(self, tags: list[Tag]) -> list[Tag]:
        """Return the `max_tags` tags with the highest scores, in the same order; rating and quality do not count."""
        if self.options.max_tags is None:
            return tags
        counted = sorted((tag for tag in tags if tag.category not in BEST), key=lambda tag: -(tag.score or 0))
        best = {tag.name for tag in counted[: self.options.max_tags]}
        return [tag for tag in tags if tag.category in BEST or tag.name in best]

    # ---- in which order, and how written

    def ordered(self, tags: list[Tag]) -> list[Tag]:
        """Return the tags in caption order: `always_first_tags` (missing ones inserted if set so), then the others.

        Rating and quality go to the beginning or the end.
        """
        if self.options.order == "score":
            tags = sorted(tags, key=lambda tag: -(tag.score or 0))
        named = {self.key(tag.name): tag for tag in tags}
        front: dict[str, Tag] = {}
        for name in self.first_tags:
            key = self.key(name)
            if key in named:
                front[key] = named.pop(key)
            elif self.options.insert_always_first and key and key not in front:
                front[key] = Tag(name, "general", None)

        def at(position: str, categories: Sequence[str]) -> list[Tag]:
            """Return the ratings and qualities of `categories` whose setting is `position`: "first" or "last"."""
            chosen = [category for category in categories if self.positions[category] == position]
            return [tag for category in chosen for tag in named.values() if tag.category == category]

        others = [tag for tag in named.values() if tag.category not in BEST]
        if self.options.character_tags_first:
            others.sort(key=lambda tag: tag.category != "character")
        return [*at("first", BEST), *front.values(), *others, *at("last", BEST[::-1])]

    def written(self, tags: Sequence[Tag]) -> Tagged:
        """Return the caption, the names of its tags as displayed, and their scores."""
        names = [self.display(tag.name) for tag in tags]
        scores = [tag.score for tag in tags]
        parts = names
        if self.options.tag_weights:
            parts = [
                name if score is None else f"({name}:{score:.2f})" for name, score in zip(names, scores, strict=True)
            ]
        scored = tuple(zip(names, scores, strict=True))
        return Tagged(self.options.caption_separator.join(parts), tuple(names), scored)

    def display(self, name: str) -> str:
        """Return a tag's name as written in captions: underscores, separators and parentheses by the settings."""
        if self.options.remove_underscore and name not in KAOMOJI:
            name = name.replace("_", " ")
        name = " ".join(self.spaced(name).split())
        return PAREN.sub(r"\\\1", name) if self.options.escape_parentheses else name


def expanded(tag: Tag) -> list[Tag]:
    """Split a character into the character and its series, from the label table or the last parentheses; [tag] for other tags."""
    if tag.category != "character":
        return [tag]
    if tag.series:
        return [tag, *(replace(tag, name=name) for name in tag.series)]
    name, opened, series = tag.name.rpartition("(")
    name, series = name.rstrip("_ "), series.removesuffix(")").strip("_ ")
    if not (opened and tag.name.endswith(")") and name and series):
        return [tag]
    return [replace(tag, name=name), replace(tag, name=series)]
