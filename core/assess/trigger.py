"""Effect of the trigger word: how much predictions change for captions without the word, over the change for captions with it."""

from collections.abc import Mapping, Sequence
from typing import Any

from core.assess.statistics import Interval, paired_ratio
from core.assess.target import by_image
from core.dataset.captions.words import word_pattern

MAX_WITHOUT_WORD = 0.9  # of the effect without the word


def measure(bench: Any, subject: Any) -> dict[str, Any]:
    """Return {"value", "low", "high", "word": the trigger word}: change of the predictions without the trigger word over that with it
    (`Bench.changes` of the sets "plain" and "inside"), paired by image, with its interval.
    """
    effects = (by_image(bench.changes(subject, name)) for name in ("plain", "inside"))
    return paired_ratio(*effects).data | {"word": bench.target.trigger}


def without_word(caption: str, word: str) -> str:
    """Return the caption without the trigger word and without the comma that followed it."""
    parts = (" ".join(word_pattern([word]).sub(" ", part).split()) for part in caption.split(","))
    return ", ".join(part for part in parts if part)


def with_word(caption: str, word: str) -> str:
    """Return the caption, with the trigger word in front unless the caption contains it or `word` is empty."""
    return caption if not word or word_pattern([word]).search(caption) else f"{word}, {caption}"


def sentence(data: Mapping[str, Any]) -> str:
    """Return the report's sentence for data of `measure`: the ratio with its interval."""
    return f"Without '{data['word']}' the effect on the dataset's captions is {Interval.of(data)} times that with it."


def remark(results: Sequence[Mapping[str, Any]]) -> str:
    """Return the remark if the trigger word has next to no effect at any checkpoint; otherwise "". `results`: data of all checkpoints."""
    nothing = all((data["low"] or 0) > MAX_WITHOUT_WORD for data in results)
    return f"The trigger word '{results[0]['word']}' does next to nothing." if nothing else ""
