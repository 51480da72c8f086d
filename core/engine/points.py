"""Points of a run's curves in arrays, which need a tenth of the memory of lists of Python numbers."""

from __future__ import annotations

import math
from array import array
from collections.abc import Iterable, Sequence
from typing import Any

Numbers = Sequence[float | None] | dict[str, float | None]


class Points(Sequence[list[Any]]):
    """Points of a curve as a sequence of [step, value, ...], or of [step, {name: value}] if `named`. A missing value or NaN is None."""

    def __init__(self, named: bool = False):
        self._named = named
        self._steps, self._numbers = array("q"), array("d")
        self._ends = array("q")  # for each point, the index in _numbers after its last number
        self._names: list[tuple[str, ...]] = []  # points with the same names in a row share an item
        self._names_of = array("q")  # for each point, the index of its names

    def __len__(self) -> int:
        return len(self._steps)

    def __getitem__(self, index: Any) -> Any:
        """Return the point at an index, [step, value, ...] or [step, {name: value}], or a list of points for a slice."""
        if isinstance(index, slice):
            return [self[each] for each in range(len(self))[index]]
        index = range(len(self))[index]
        begin = self._ends[index - 1] if index else 0
        numbers = [None if math.isnan(each) else each for each in self._numbers[begin : self._ends[index]]]
        if not self._named:
            return [self._steps[index], *numbers]
        return [self._steps[index], dict(zip(self._names[self._names_of[index]], numbers, strict=True))]

    @property
    def step(self) -> int:
        """Step of the last point."""
        return self._steps[-1]

    @property
    def newest(self) -> float:
        """Last value of the last point; may be NaN."""
        return self._numbers[-1]

    @property
    def nbytes(self) -> int:
        """Size of the arrays in bytes."""
        return sum(each.itemsize * len(each) for each in (self._steps, self._numbers, self._ends, self._names_of))

    def add(self, step: int, numbers: Numbers) -> None:
        """Add a point. Adds nothing and raises TypeError or OverflowError for values that are not numbers, and TypeError unless `numbers`
        is a dict exactly if the points are `named`."""
        if self._named != isinstance(numbers, dict):
            raise TypeError("numbers with names" if self._named else "numbers without names")
        row = numbers.values() if isinstance(numbers, dict) else numbers
        values = array("d", [math.nan if each is None else each for each in row])
        self._steps.append(step)
        self._numbers += values
        self._ends.append(len(self._numbers))
        if isinstance(numbers, dict):
            if self._names[-1:] != [names := tuple(numbers)]:
                self._names.append(names)
            self._names_of.append(len(self._names) - 1)

    def select(self, indices: Iterable[int]) -> Points:
        """Return the points at `indices`."""
        points = Points(self._named)
        for step, *numbers in map(self.__getitem__, indices):
            points.add(step, numbers[0] if self._named else numbers)
        return points

    def thinned(self, limit: int) -> Points:
        """Return at most `limit` of the points, evenly spaced, with the first and the last."""
        return self if len(self) <= limit else self.select(spread(len(self), limit))

    def up_to(self, step: int) -> Points:
        """Return the points up to and including `step`."""
        return self.select(index for index, point_step in enumerate(self._steps) if point_step <= step)


def spread(count: int, limit: int) -> Sequence[int]:
    """Return at most `limit` indices into a list of `count` items, evenly spaced, with the first and the last."""
    if count <= limit:
        return range(count)
    stride = (count - 1) / (limit - 1)
    return [round(index * stride) for index in range(limit)]
