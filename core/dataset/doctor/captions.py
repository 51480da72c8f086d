"""The doctor's findings about captions: missing, identical, nearly identical, file names, tags used once."""

import math
import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from statistics import median

from core.dataset.captions.files import IMAGE_SOURCES
from core.dataset.captions.words import comparable
from core.dataset.doctor.finding import ExaminedImage, Finding, connected_components, images_finding
from core.record.units import first_of

SIMILAR = 0.9  # Jaccard similarity of the words: one word of twenty differs
SIMILAR_FROM_WORDS = 8  # shorter captions share nine in ten words only when they are the same
TAGS_FROM = 4  # captions are tags if they have this many parts of at most TAG_WORDS words each
TAG_WORDS = 3
NAMED_TAGS = 3  # of an image's rare tags shown next to it

_WORD = re.compile(r"\w+")


def caption_findings(items: Sequence[ExaminedImage]) -> list[Finding]:
    """Return all findings about captions, except of regularization images: their folder's default caption is enough."""
    items = [item for item in items if item.role != "regularization"]
    captioned = [item for item in items if _has_caption(item)]
    return [
        *_without_caption(items),
        *_identical(captioned),
        *_similar(captioned),
        *_file_names(captioned),
        *_rare_tags(captioned),
    ]


def _has_caption(item: ExaminedImage) -> bool:
    """Return whether the image has a caption that is not empty, from a file or metadata."""
    caption = item.placed.caption
    return caption.source in IMAGE_SOURCES and bool(caption.text.strip())


def _without_caption(items: Sequence[ExaminedImage]) -> list[Finding]:
    """Return the finding about images without a caption; [] if all have one."""
    uncaptioned = [item for item in items if not _has_caption(item)]

    def note(item: ExaminedImage) -> str:
        text = item.placed.caption.text.strip()
        return f"default: {text}" if text else "empty caption"

    return images_finding(
        "no caption",
        uncaptioned,
        "{n} without a caption",
        "write captions if the folder's default caption does not describe them well",
        note,
    )


def _identical(captioned: Sequence[ExaminedImage]) -> list[Finding]:
    """Return the finding that all captions have the same words; [] if not, or for fewer than 3 images."""
    texts = {_words_only(item.placed.caption.text) for item in captioned}
    if len(captioned) < 3 or len(texts) != 1:
        return []
    what = "All captions are identical: everything the images share, backgrounds included, becomes part of the subject"
    fix = "describe in each caption what differs, so that only the subject is shared"
    return [Finding("one caption", "advice", what, fix, tuple((item.in_finding(),) for item in captioned))]


def _similar(captioned: Sequence[ExaminedImage]) -> list[Finding]:
    """Return the finding about groups of captions with nearly the same words, in any order; [] if there are none."""
    word_sets = [frozenset(_words_only(item.placed.caption.text).split()) for item in captioned]
    if len(set(word_sets)) == 1:
        return []
    indices = [number for number, each in enumerate(word_sets) if len(each) >= SIMILAR_FROM_WORDS]
    pairs = list(_similar_pairs([word_sets[number] for number in indices]))
    first_index: dict[str, int] = {}
    same = [(first_index.setdefault(_words_only(item.placed.caption.text), n), n) for n, item in enumerate(captioned)]
    joined = [(indices[one], indices[other]) for one, other in pairs] + [pair for pair in same if pair[0] != pair[1]]
    groups = connected_components(joined, len(captioned))
    if not groups:
        return []
    groups_text = "1 group of images has" if len(groups) == 1 else f"{len(groups)} groups of images have"
    what = f"{groups_text} the same or nearly the same caption ({sum(map(len, groups))} images)"
    images = tuple(
        tuple(captioned[number].in_finding(captioned[number].placed.caption.text[:120]) for number in group)
        for group in groups
    )
    return [Finding("alike captions", "advice", what, "describe in each caption how the image differs", images)]


def _similar_pairs(sets: Sequence[frozenset[str]]) -> Iterator[tuple[int, int]]:
    """Yield pairs of indices of sets whose Jaccard similarity is at least SIMILAR.

    Some pairs that are connected through other pairs are left out: equal sets are compared with others once.
    Two sets this similar share one of their rarest words: of n words, the n - ceil(t n) + 1 rarest suffice (prefix
    filter, Chaudhuri et al. 2006), so only sets that share one of these are compared.
    """
    counts = Counter(word for words in sets for word in words)
    sets_with: dict[str, list[int]] = defaultdict(list)
    equal: dict[frozenset[str], int] = {}
    for number, words in enumerate(sets):
        if words in equal:
            yield equal[words], number
            continue
        equal[words] = number
        rarest = sorted(words, key=lambda word: (counts[word], word))[
            : len(words) - math.ceil(SIMILAR * len(words)) + 1
        ]
        for other in {other for word in rarest for other in sets_with[word]}:
            if len(words & sets[other]) >= SIMILAR * len(words | sets[other]):
                yield other, number
        for word in rarest:
            sets_with[word].append(number)


def _file_names(captioned: Sequence[ExaminedImage]) -> list[Finding]:
    """Return the finding about captions that only repeat a file name with a number, such as IMG_0231; [] if there are none."""
    matches = [
        item
        for item in captioned
        if _words_only(item.placed.caption.text) == _words_only(item.image.path.stem)
        and re.search(r"\d", item.placed.caption.text)
    ]
    return images_finding(
        "file name",
        matches,
        "{n} captioned with the file name",
        "describe what the image shows",
        lambda item: item.placed.caption.text[:80],
    )


def _rare_tags(captioned: Sequence[ExaminedImage]) -> list[Finding]:
    """Return the finding about tags used by one image only, often typos (blue_eye); [] without such tags or for few tags."""
    tags = [_tags(item) for item in captioned]
    pieces = [tag for each in tags for tag in each]
    word_count = sum(len(piece.split()) for piece in pieces)
    if len(captioned) < 5 or median(map(len, tags)) < TAGS_FROM or word_count > TAG_WORDS * len(pieces):
        return []
    counts = Counter(tag for each in tags for tag in each)
    rare = {number: [each[tag] for tag in each if counts[tag] == 1] for number, each in enumerate(tags)}
    holders = [(captioned[number], rare_tags) for number, rare_tags in rare.items() if rare_tags]
    if not holders:
        return []
    total = sum(len(rare_tags) for _, rare_tags in holders)
    what = f"{total} of {len(counts)} tags are used by one image only"
    fix = "check for typos and synonyms"
    images = tuple((item.in_finding(first_of(rare_tags, NAMED_TAGS)),) for item, rare_tags in holders)
    return [Finding("rare tags", "advice", what, fix, images)]


def _tags(item: ExaminedImage) -> dict[str, str]:
    """Return {normalized tag (`comparable`): tag as written} of the caption."""
    separator = item.placed.concept.captions.caption_separator or ","
    parts = item.placed.caption.text.replace("\n", separator).split(separator.strip() or separator)
    return {comparable(part): part.strip() for part in parts if part.strip()}


def _words_only(text: str) -> str:
    """Return the words of a text in lower case: "A_red  Fox." and "a red fox" become equal."""
    return " ".join(_WORD.findall(text.lower().replace("_", " ")))
