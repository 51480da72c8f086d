"""Diversity over seeds: how different the images of one prompt are, against the base model's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations
from statistics import fmean
from typing import TYPE_CHECKING, Any

from core.assess.statistics import Interval, paired_ratio

if TYPE_CHECKING:
    from torch import Tensor

    from core.assess.bench import Bench, Made, Subject

LITTLE = 0.5


def measure(bench: Bench, subject: Subject) -> dict[str, Any]:
    now, before = (_by_prompt(images) for images in (subject.images, bench.images))
    if min(*now, *before) <= 0:
        return {"why": "two seeds give the same image"}
    return paired_ratio(now, before).to_dict()


def _by_prompt(images: Sequence[Made]) -> list[float]:
    prompts = sorted({made.prompt for made in images})
    return [variation([made.latents for made in images if made.prompt == prompt]) for prompt in prompts]


def variation(latents: Sequence[Tensor]) -> float:
    """The variance over seeds as a share of the spatial variance of the images, about 1 for unrelated ones. latents: [C, h, w]"""
    from core.assess.copies import spread_apart

    return fmean(spread_apart(one, other) for one, other in combinations(latents, 2))


def brief(data: Mapping[str, Any]) -> str:
    return f"{data['value']:.2f}"


def sentence(data: Mapping[str, Any]) -> str:
    return f"Images of one prompt differ between seeds {Interval.of(data).words} times as much as the base model's."


def warning(data: Mapping[str, Any]) -> str:
    return "gives nearly the same image with each seed" if (data["high"] or 1) < LITTLE else ""
