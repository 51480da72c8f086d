"""Intervals of means and ratios, and the bound below which a further value is improbable. Loads no torch."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, variance
from typing import Any

from core.record.best import CONFIDENCE, student_t

LEAST = 3  # values that an interval needs
SPREAD = 0.1  # of logarithms, at least: a few values can agree by chance, and tails are heavier than a normal's


class NotMeasured(Exception):
    """A measure has no result, for the reason that is the message."""


@dataclass(frozen=True)
class Interval:
    """A value with its 95% interval; low and high are None if there are too few values."""

    value: float
    low: float | None = None
    high: float | None = None

    def __str__(self) -> str:
        return f"{self.value:.2f}" + ("" if self.low is None else f" ({self.low:.2f} to {self.high:.2f})")

    @property
    def data(self) -> dict[str, Any]:
        return {name: value and float(f"{value:.5g}") for name, value in vars(self).items()}

    @classmethod
    def of(cls, data: Mapping[str, Any]) -> Interval:
        return cls(data["value"], data["low"], data["high"])


def mean_of(values: Sequence[float]) -> Interval:
    """The mean of independent values with its t interval."""
    return _interval(fmean(values), [values])


def paired_ratio(numerators: Sequence[float], denominators: Sequence[float]) -> Interval:
    """The geometric mean of the ratios of pairs."""
    return _exp(mean_of([a - b for a, b in zip(_logs(numerators), _logs(denominators), strict=True)]))


def ratio_of(numerators: Sequence[float], denominators: Sequence[float]) -> Interval:
    """The ratio of the geometric means of two independent groups, with the degrees of freedom of the smaller one."""
    groups = [_logs(numerators), _logs(denominators)]
    return _exp(_interval(fmean(groups[0]) - fmean(groups[1]), groups))


def lower_bound(values: Sequence[float], rate: float) -> float:
    """The bound that one more draw of the same log-normal distribution falls below with at most the probability `rate`: a one-sided
    prediction interval."""
    logs = _logs(values)
    spread = max(math.sqrt(variance(logs)), SPREAD) * math.sqrt(1 + 1 / len(logs))
    return math.exp(fmean(logs) - student_t(1 - rate, len(logs) - 1) * spread)


def _interval(center: float, groups: Sequence[Sequence[float]]) -> Interval:
    count = min(map(len, groups))
    if count < LEAST:
        return Interval(center)
    width = student_t((1 + CONFIDENCE) / 2, count - 1) * math.sqrt(sum(variance(each) / len(each) for each in groups))
    return Interval(center, center - width, center + width)


def _logs(values: Sequence[float]) -> list[float]:
    if min(values) <= 0:
        raise NotMeasured("the checkpoint changes nothing")
    return [math.log(each) for each in values]


def _exp(logs: Interval) -> Interval:
    return Interval(*(None if each is None else math.exp(each) for each in (logs.value, logs.low, logs.high)))  # type: ignore[arg-type]
