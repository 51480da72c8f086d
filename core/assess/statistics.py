"""Confidence intervals of means and ratios, and a lower prediction bound. Loads no torch."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, variance
from typing import Any

from core.record.best import CONFIDENCE, student_t

MIN_VALUES = 3  # values that an interval needs
SPREAD = 0.1  # of logarithms, at least: a few values can agree by chance, and tails are heavier than a normal's


class NotMeasured(Exception):
    """A measure has no result; the message is the reason, shown to the user."""


@dataclass(frozen=True)
class Interval:
    """A value with its 95% confidence interval; `low` and `high` are None if there are fewer than MIN_VALUES values."""

    value: float
    low: float | None = None
    high: float | None = None

    def __str__(self) -> str:
        return f"{self.value:.2f}" + ("" if self.low is None else f" ({self.low:.2f} to {self.high:.2f})")

    @property
    def data(self) -> dict[str, Any]:
        """{value, low, high} rounded to 5 significant digits, for JSON."""
        return {name: value and float(f"{value:.5g}") for name, value in vars(self).items()}

    @classmethod
    def of(cls, data: Mapping[str, Any]) -> Interval:
        """Return the interval from its `data`."""
        return cls(data["value"], data["low"], data["high"])


def mean_of(values: Sequence[float]) -> Interval:
    """Return the mean of independent values with its t interval."""
    return _interval(fmean(values), [values])


def paired_ratio(numerators: Sequence[float], denominators: Sequence[float]) -> Interval:
    """Return the geometric mean of the pairwise ratios, with its interval. Raises NotMeasured for a value of 0 or below."""
    return _exp(mean_of([a - b for a, b in zip(_logs(numerators), _logs(denominators), strict=True)]))


def ratio_of(numerators: Sequence[float], denominators: Sequence[float]) -> Interval:
    """Return the ratio of the geometric means of two independent groups, with its interval (degrees of freedom of the smaller group).

    Raises NotMeasured for a value of 0 or below.
    """
    groups = [_logs(numerators), _logs(denominators)]
    return _exp(_interval(fmean(groups[0]) - fmean(groups[1]), groups))


def lower_bound(values: Sequence[float], rate: float) -> float:
    """Return the one-sided prediction bound that one more value falls below with a probability of at most `rate`.
    values: positive, at least 2, taken as log-normally distributed"""
    logs = _logs(values)
    spread = max(math.sqrt(variance(logs)), SPREAD) * math.sqrt(1 + 1 / len(logs))
    return math.exp(fmean(logs) - student_t(1 - rate, len(logs) - 1) * spread)


def _interval(center: float, groups: Sequence[Sequence[float]]) -> Interval:
    """Return the interval around `center`, a sum or difference of the groups' means."""
    count = min(map(len, groups))
    if count < MIN_VALUES:
        return Interval(center)
    width = student_t((1 + CONFIDENCE) / 2, count - 1) * math.sqrt(sum(variance(each) / len(each) for each in groups))
    return Interval(center, center - width, center + width)


def _logs(values: Sequence[float]) -> list[float]:
    """Return the logarithms. Raises NotMeasured unless all values are above 0."""
    if min(values) <= 0:
        raise NotMeasured("the checkpoint changes nothing")
    return [math.log(each) for each in values]


def _exp(logs: Interval) -> Interval:
    """Return the interval of the exponentials of logarithms."""
    return Interval(*(None if each is None else math.exp(each) for each in (logs.value, logs.low, logs.high)))  # type: ignore[arg-type]
