"""Questions about a dataset that settings should answer: transparency, several caption files, multi-line captions."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from core.dataset.buckets.batches import Placed
from core.dataset.captions.files import SENTENCES, TAGS, lines_of
from core.dataset.images.look import Look
from core.dataset.sources.files import extension, printable

EXAMPLES = 4


@dataclass(frozen=True, slots=True)
class Question:
    """A question to ask once. kind: "transparency", "sidecars" or "lines".

    images   number of images concerned    examples   names of some
    counts   what was found -> how many (".txt": 24, ".caption": 20)
    """

    kind: str
    images: int
    examples: tuple[str, ...]
    counts: dict[str, int]


def questions_of(placed: Sequence[Placed], looks: Mapping[tuple[str, str], Look]) -> tuple[Question, ...]:
    """The questions of a dataset. placed: each image once; looks: measurements of the images decoded so far."""
    nothing = Look()
    transparent = [each for each in placed if looks.get(each.image.key, nothing).transparent]
    endings = {each.key: {extension(name) for name in each.image.sidecars} for each in placed}
    several = [each for each in placed if {SENTENCES, TAGS} <= endings[each.key]]
    beside = Counter(ending for found in endings.values() for ending in found)
    lines = [each for each in placed if len(lines_of(each.caption.text)) > 1]
    found = [
        _question("transparency", transparent, {}),
        _question("sidecars", several, dict(sorted(beside.items()))),
        _question("lines", lines, {}),
    ]
    return tuple(question for question in found if question.images)


def _question(kind: str, about: Sequence[Placed], counts: dict[str, int]) -> Question:
    names = tuple(printable(each.image.relative) for each in about[:EXAMPLES])
    return Question(kind, len(about), names, counts)
