"""Prompts that tell a run's checkpoints apart, proposed from its settings and captions."""

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import zip_longest

SHARED = 0.8  # of the captions have a tag that counts as the trigger word
LONGEST = 300  # characters of a caption
SAMPLES, HELD_OUT, NEW, PLAIN = 4, 2, 3, 2  # how many prompts of each kind
CONTEXTS = (
    "in a forest in the snow",
    "on a beach at sunset",
    "in a city street at night",
    "in a library full of books",
    "underwater with fish",
    "on a mountain in fog",
    "in a kitchen",
    "in a field of flowers",
    "in heavy rain",
    "on the moon",
)
SCENES = (
    "a red car on a road",
    "a bowl of fruit on a table",
    "a sailing boat on a lake",
    "a wooden chair in an empty room",
    "an old castle on a hill",
    "a cup of coffee",
)
WORD = re.compile(r"\w+")
LITTLE = frozenset("a an in on of the at with".split())


@dataclass(frozen=True)
class ProposedPrompt:
    """A prompt, and what it shows: "sample prompt", "held-out caption", "trigger word alone", "new context" or "without the
    trigger word"."""

    text: str
    shows: str


def proposed_prompts(
    samples: Sequence[str], held_out: Sequence[str], captions: Sequence[str], trigger: str
) -> list[ProposedPrompt]:
    """Prompts for a comparison, one of each kind first, without repeats.

    samples   the run's sample prompts        held_out, captions   of its held-out and its training images
    trigger   its trigger word, "" without one
    """
    known = [*held_out, *captions]
    contexts = (f"{trigger}, {context}" for context in unknown(CONTEXTS, known) if trigger)
    kinds = {
        "sample prompt": list(samples)[:SAMPLES],
        "held-out caption": _apart([_plain(each) for each in held_out], HELD_OUT),
        "trigger word alone": [trigger] if trigger else [],
        "new context": list(contexts)[:NEW],
        "without the trigger word": list(unknown(SCENES, known))[:PLAIN],
    }
    columns = [[ProposedPrompt(text, shows) for text in texts] for shows, texts in kinds.items()]
    rounds = [each for row in zip_longest(*columns) for each in row if each is not None and each.text.strip()]
    first: dict[str, ProposedPrompt] = {}
    for each in rounds:
        first.setdefault(each.text, each)
    return list(first.values())


def trigger_of(explicit: Iterable[str | None], captions: Sequence[str]) -> str:
    """The trigger word: the first of `explicit` that is set, else the first tag that most captions have; "" if there is none."""
    for text in explicit:
        if text and text.strip():
            return _plain(text)
    split = (dict.fromkeys(each.strip() for each in _plain(caption).split(",")) for caption in captions)
    tags = Counter(tag for own in split for tag in own if tag)  # in the order of their first use
    return next((tag for tag, number in tags.items() if number >= max(SHARED * len(captions), 2)), "")


def _words_in(texts: Iterable[str]) -> Iterator[str]:
    """The words of texts, lower case."""
    return (word for text in texts for word in WORD.findall(text.casefold()))


def unknown(phrases: Iterable[str], texts: Iterable[str]) -> Iterator[str]:
    """The phrases of whose words, other than little ones, none is in the texts."""
    known = set(_words_in(texts))
    return (phrase for phrase in phrases if not set(_words_in([phrase])) - LITTLE & known)


def _apart(texts: Sequence[str], number: int) -> list[str]:
    """Some of the texts, evenly spaced."""
    texts = list(dict.fromkeys(texts))
    return texts[:: max(1, -(-len(texts) // number))]


def _plain(caption: str) -> str:
    """A caption on one line, without text that a prompt would parse as an option or a LoRA tag."""
    line = " ".join(re.sub(r"<[^>]*>|--+|\|", " ", caption).split())
    return line if len(line) <= LONGEST else line[:LONGEST].rpartition(" ")[0] or line[:LONGEST]
