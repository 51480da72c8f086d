"""Proposes prompts for comparing a run's checkpoints, from its sample prompts and captions."""

import math
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import zip_longest

TRIGGER_SHARE = 0.8  # a tag in at least this share of the captions is taken as the trigger word
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
STOP_WORDS = frozenset("a an in on of the at with".split())


@dataclass(frozen=True)
class ProposedPrompt:
    """A prompt and its kind, `shows`: "sample prompt", "held-out caption", "trigger word alone", "new context" or "without the trigger
    word"."""

    text: str
    shows: str


def proposed_prompts(
    samples: Sequence[str], held_out: Sequence[str], captions: Sequence[str], trigger: str
) -> list[ProposedPrompt]:
    """Return prompts for a comparison without duplicates: the first of each kind, then the second of each, and so on.

    samples              the run's sample prompts
    held_out, captions   captions of its held-out and its training images
    trigger              its trigger word; "" without one
    """
    known = [*held_out, *captions]
    contexts = (f"{trigger}, {context}" for context in with_new_words(CONTEXTS, known) if trigger)
    kinds = {
        "sample prompt": list(samples)[:SAMPLES],
        "held-out caption": _evenly_spaced([_plain(each) for each in held_out], HELD_OUT),
        "trigger word alone": [trigger] if trigger else [],
        "new context": list(contexts)[:NEW],
        "without the trigger word": list(with_new_words(SCENES, known))[:PLAIN],
    }
    columns = [[ProposedPrompt(text, shows) for text in texts] for shows, texts in kinds.items()]
    in_turns = [each for row in zip_longest(*columns) for each in row if each is not None and each.text.strip()]
    first: dict[str, ProposedPrompt] = {}
    for each in in_turns:
        first.setdefault(each.text, each)
    return list(first.values())


def trigger_of(explicit: Iterable[str | None], captions: Sequence[str]) -> str:
    """Return the trigger word: the first of `explicit` that is set, else the first tag that at least TRIGGER_SHARE of the captions have; ""
    if there is none."""
    for text in explicit:
        if text and text.strip():
            return _plain(text)
    tags_of_each = (dict.fromkeys(each.strip() for each in _plain(caption).split(",")) for caption in captions)
    tags = Counter(tag for tags in tags_of_each for tag in tags if tag)  # in the order of their first use
    return next((tag for tag, number in tags.items() if number >= max(TRIGGER_SHARE * len(captions), 2)), "")


def _words_in(texts: Iterable[str]) -> Iterator[str]:
    """Yield the words of the texts in lower case."""
    return (word for text in texts for word in WORD.findall(text.casefold()))


def with_new_words(phrases: Iterable[str], texts: Iterable[str]) -> Iterator[str]:
    """Yield the phrases that share no word with `texts`, apart from STOP_WORDS."""
    known = set(_words_in(texts))
    return (phrase for phrase in phrases if not set(_words_in([phrase])) - STOP_WORDS & known)


def _evenly_spaced(texts: Sequence[str], number: int) -> list[str]:
    """Return at most `number` of the texts, evenly spaced and without duplicates."""
    texts = list(dict.fromkeys(texts))
    return texts[:: max(1, math.ceil(len(texts) / number))]


def _plain(caption: str) -> str:
    """Return a caption as one line of at most LONGEST characters, without text that a prompt would parse as an option or LoRA tag."""
    line = " ".join(re.sub(r"<[^>]*>|--+|\|", " ", caption).split())
    return line if len(line) <= LONGEST else line[:LONGEST].rpartition(" ")[0] or line[:LONGEST]
