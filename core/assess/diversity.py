"""Diversity over seeds: how different the images of one prompt are, against the base model's."""

from collections.abc import Mapping, Sequence
from itertools import combinations
from statistics import fmean
from typing import Any

from core.assess.copies import latent_difference
from core.assess.statistics import Interval, paired_ratio
from core.record.lazy_torch import Tensor

LITTLE = 0.5


def measure(bench: Any, subject: Any) -> dict[str, Any]:
    return paired_ratio(*([variation(each) for each in one.latents_by_prompt()] for one in (subject, bench.base))).data


def variation(latents: Sequence[Tensor]) -> float:
    """The variance over seeds as a share of the spatial variance of the images: about 1 for unrelated ones. latents: [C, h, w]"""
    return fmean(latent_difference(one, other) for one, other in combinations(latents, 2))


def sentence(data: Mapping[str, Any]) -> str:
    return f"Images of one prompt differ between seeds {Interval.of(data)} times as much as the base model's."


def warning(data: Mapping[str, Any]) -> str:
    return "gives nearly the same image with each seed" if (data["high"] or 1) < LITTLE else ""
