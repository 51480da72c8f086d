"""Formats tags as sd-scripts 0.9.0 does (tag_images_by_wd14_tagger.py), bugs included, for datasets tagged with it."""

import re
from collections.abc import Sequence

from core.captioning.combining import combined
from core.captioning.described import Join
from core.captioning.tagger.tags import Format, Scored, Tagged, not_a_pair
from core.record.problems import ProblemsError
from core.settings.caption import CaptioningSettings
from core.settings.captioning.tagger import TagTextSettings

THRESH = 0.35  # its default
GROUPS = ("general", "character", "rating")  # the order in which a replaced tag is looked for
# What it has no option for.
UNKNOWN = (
    *(f"{category}_threshold" for category in ("copyright", "artist", "meta", "model", "quality", "rating")),
    *("mcut", "max_tags", "wanted_tags", "remove_overlap", "escape_parentheses", "tag_weights", "order"),
    *("quality_tag", "insert_always_first"),
)


def formatter(options: TagTextSettings) -> Format:
    """Return the function from an image's scores to its tags. Raises ProblemsError for settings that make sd-scripts fail."""
    mark = options.caption_separator.strip()
    if not mark:
        what, fix = "sd-scripts 0.9 fails with a separator of spaces alone", "write a separator such as ', '"
        raise ProblemsError.one(what, "caption_separator", fix, "tagger.separator")
    undesired = {tag.strip() for tag in options.undesired_tags.split(mark) if tag.strip()}
    firsts = [tag for tag in options.always_first_tags.split(mark) if tag.strip()]
    pairs = pairs_of(options.tag_replacement)

    def tagged(scored: Sequence[Scored]) -> Tagged:
        """Return an image's tags as sd-scripts would write them."""
        groups = {
            group: [(label.name, score) for label, score in scored if label.category == group] for group in GROUPS
        }
        if options.character_tag_expand:
            groups["character"] = [
                (_expanded(name, options.caption_separator), score) for name, score in groups["character"]
            ]
        if options.remove_underscore:
            groups = {
                group: [(name.replace("_", " ") if len(name) > 3 else name, score) for name, score in tags]
                for group, tags in groups.items()
            }
        for old, new in pairs:
            _replace_first(groups, old, new)
        chosen = _selected(groups, options, undesired)
        names = [name for name, _ in chosen]
        for tag in firsts:
            if tag in names:
                names.remove(tag)
                names.insert(0, tag)
        scores = dict(chosen)
        return Tagged(
            options.caption_separator.join(names), tuple(names), tuple((name, scores[name]) for name in names)
        )

    return tagged


def pairs_of(text: str) -> list[tuple[str, str]]:
    """Parse (old, new) pairs, not stripped. Raises ProblemsError for an incomplete pair, even after a trailing semicolon."""
    pairs = []
    for part in re.split(r"(?<!\\);", text) if text else []:
        tags = re.split(r"(?<!\\),", part)
        if len(tags) != 2:
            raise not_a_pair(part)
        old, new = (word.replace("\\,", ",").replace("\\;", ";") for word in tags)
        pairs.append((old, new))
    return pairs


def _expanded(name: str, separator: str) -> str:
    """Split a character's tag from its series: "miku_(vocaloid)" -> "miku, vocaloid"."""
    if not name.endswith(")"):
        return name
    left, _, series = name.rpartition("(")
    return f"{left.removesuffix('_')}{separator}{series.replace(')', '')}"


def _replace_first(groups: dict[str, list[tuple[str, float]]], old: str, new: str) -> None:
    """Rename the first tag named `old` in the order of GROUPS, in place, as sd-scripts does."""
    for group in GROUPS:
        for number, (name, score) in enumerate(groups[group]):
            if name == old:
                groups[group][number] = (new, score)
                return


def _selected(
    groups: dict[str, list[tuple[str, float]]], options: TagTextSettings, undesired: set[str]
) -> list[tuple[str, float]]:
    """Return (tag, score) of general tags, characters and rating in sd-scripts' order: tags inserted in front end up reversed."""
    thresh = THRESH if options.thresh is None else options.thresh
    chosen: list[tuple[str, float]] = []
    for group, threshold, in_front in (
        ("general", options.general_threshold, False),
        ("character", options.character_threshold, options.character_tags_first),
    ):
        for name, score in groups[group]:
            if score >= (thresh if threshold is None else threshold) and name not in undesired:
                chosen.insert(0 if in_front else len(chosen), (name, score))
    if options.rating_tag != "none" and groups["rating"]:
        rating = max(groups["rating"], key=lambda each: each[1])
        if rating[0] not in undesired:
            chosen.insert(0 if options.rating_tag == "first" else len(chosen), rating)
    return chosen


def make_join(tagged: Tagged, separator: str) -> Join:
    """Return the function that joins tags with an existing caption as sd-scripts does; settings that sd-scripts lacks work as usual."""

    def join(existing: str, settings: CaptioningSettings) -> str:
        """Return the caption to write for an `existing` one."""
        if settings.existing in ("prepend", "line") or settings.prefix or settings.suffix or settings.remove_words:
            return combined(existing, tagged.text, settings)
        return appended(existing, tagged.tags, separator) if settings.existing == "append" else tagged.text

    return join


def appended(before: str, tags: Sequence[str], separator: str) -> str:
    """Return the caption with new tags appended (`--append_tags`), except tags that it has in exactly the same spelling."""
    existing = [tag.strip() for tag in before.strip("\n").split(separator.strip()) if tag.strip()]
    return separator.join([*existing, *(tag for tag in tags if tag not in existing)])
