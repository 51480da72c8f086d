"""Diversity over seeds: how much the images of one prompt differ, as a multiple of the base model's."""

from collections.abc import Mapping, Sequence
from itertools import combinations
from statistics import fmean
from typing import Any

from core.assess.copies import latent_difference
from core.assess.statistics import Interval, paired_ratio
from core.record.lazy_torch import Tensor

MIN_DIVERSITY = 0.5


def measure(bench: Any, subject: Any) -> dict[str, Any]:
    """Return {"value", "low", "high"}: `variation` of the checkpoint's images over that of the base model's, paired by caption, with its
    interval.
    """
    return paired_ratio(*([variation(each) for each in one.latents_by_prompt()] for one in (subject, bench.base))).data


def variation(latents: Sequence[Tensor]) -> float:
    """Return the mean `latent_difference` between the images of one prompt: about 1 for unrelated images. `latents`: [C, h, w] per seed."""
    return fmean(latent_difference(one, other) for one, other in combinations(latents, 2))


def sentence(data: Mapping[str, Any]) -> str:
    """Return the report's sentence for data of `measure`: the ratio with its interval."""
    return f"Images of one prompt differ between seeds {Interval.of(data)} times as much as the base model's."


def warning(data: Mapping[str, Any]) -> str:
    """Return the warning if the upper bound of the ratio is below MIN_DIVERSITY; otherwise ""."""
    return "gives nearly the same image with each seed" if (data["high"] or 1) < MIN_DIVERSITY else ""
