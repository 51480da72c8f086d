"""Strength of the trigger word: the effect of a checkpoint on captions without the word, against that with it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from core.assess.statistics import Interval, paired_ratio

if TYPE_CHECKING:
    from core.assess.bench import Bench, Subject


def measure(bench: Bench, subject: Subject) -> dict[str, Any]:
    from core.assess.bench import by_image, relative_change

    effects = (by_image(relative_change(subject.predicted(name), bench.base[name])) for name in ("inside", "plain"))
    return trigger_of(*effects) | {"word": bench.target.trigger}


def trigger_of(with_word: Sequence[float], without: Sequence[float]) -> dict[str, Any]:
    """The share of the effect without the word, by image."""
    if min(with_word) <= 0 or min(without) <= 0:
        from core.assess.drift import NOTHING

        return dict(NOTHING)
    return paired_ratio(without, with_word).to_dict()


def brief(data: Mapping[str, Any]) -> str:
    return f"{data['value']:.2f}"


def sentence(data: Mapping[str, Any]) -> str:
    found = Interval.of(data)
    what = "the word switches little" if (found.low or found.value) > 0.8 else "the word carries part of it"
    return f"Without '{data['word']}' the effect on the dataset's captions is {found.words} times that with it: {what}."


def warning(data: Mapping[str, Any]) -> str:
    return ""
