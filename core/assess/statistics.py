"""Intervals of ratios and differences, and the bound below which a value of a sample is improbable. Loads no torch."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, variance
from typing import Any

from core.record.best import CONFIDENCE, student_t

LEAST = 3  # values of which an interval is computed


@dataclass(frozen=True)
class Interval:
    """A value with its 95% interval; None where there are too few values to tell."""

    value: float
    low: float | None = None
    high: float | None = None

    @property
    def words(self) -> str:
        if self.low is None or self.high is None:
            return f"{self.value:.2f}"
        return f"{self.value:.2f} ({self.low:.2f} to {self.high:.2f})"

    def to_dict(self) -> dict[str, Any]:
        return {name: value and float(f"{value:.5g}") for name, value in vars(self).items()}

    @classmethod
    def of(cls, data: dict[str, Any]) -> Interval:
        return cls(data["value"], data["low"], data["high"])


def mean_of(values: Sequence[float]) -> Interval:
    """The mean of independent values with its t interval."""
    center = fmean(values)
    if len(values) < LEAST:
        return Interval(center)
    width = _t(len(values) - 1) * math.sqrt(variance(values) / len(values))
    return Interval(center, center - width, center + width)


def paired_ratio(above: Sequence[float], below: Sequence[float]) -> Interval:
    """The geometric mean of the ratios of pairs of positive values."""
    return _exp(mean_of([math.log(a / b) for a, b in zip(above, below, strict=True)]))


def ratio_of(above: Sequence[float], below: Sequence[float]) -> Interval:
    """The ratio of the geometric means of two independent groups of positive values (Welch's interval on logarithms)."""
    groups = [[math.log(each) for each in group] for group in (above, below)]
    center = fmean(groups[0]) - fmean(groups[1])
    if min(map(len, groups)) < LEAST:
        return _exp(Interval(center))
    shares = [variance(group) / len(group) for group in groups]
    whole = sum(shares)
    freedom = min(len(group) for group in groups) - 1.0
    if whole:
        parts = (share**2 / (len(group) - 1) for share, group in zip(shares, groups, strict=True))
        freedom = max(freedom, whole**2 / (sum(parts) or math.inf))
    width = _t(int(freedom)) * math.sqrt(whole)
    return _exp(Interval(center, center - width, center + width))


def lower_bound(values: Sequence[float], rate: float) -> float:
    """The value that one more draw of the same log-normal distribution is below with the probability `rate` (a one-sided
    prediction interval). values: at least LEAST positive ones"""
    logs = [math.log(each) for each in values]
    spread = math.sqrt(variance(logs) * (1 + 1 / len(logs)))
    return math.exp(fmean(logs) - student_t(1 - rate, len(logs) - 1) * spread)


def _t(freedom: int) -> float:
    return student_t((1 + CONFIDENCE) / 2, freedom)


def _exp(logs: Interval) -> Interval:
    low, high = (None if each is None else math.exp(each) for each in (logs.low, logs.high))
    return Interval(math.exp(logs.value), low, high)
