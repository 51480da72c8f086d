"""Fit to the training images: the checkpoint's loss on them, as a multiple of the base model's."""

from collections.abc import Mapping
from typing import Any

from core.assess.statistics import Interval, paired_ratio
from core.assess.target import by_image


def measure(bench: Any, subject: Any) -> dict[str, Any]:
    """Return {"value", "low", "high"}: the checkpoint's loss on training images over the base model's, by image, with its interval."""
    return paired_ratio(*(by_image(bench.losses(one, "inside")) for one in (subject, bench.base))).data


def sentence(data: Mapping[str, Any]) -> str:
    """Return the report's sentence for data of `measure`: the ratio with its interval."""
    return f"The loss on training images is {Interval.of(data)} times the base model's."


def warning(data: Mapping[str, Any]) -> str:
    """Return the warning if the loss is clearly higher than the base model's; otherwise ""."""
    worse = (data["low"] or 0) > 1
    return "fits its training images worse than the base model (the learning rate was too high)" if worse else ""
