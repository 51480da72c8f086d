"""The points of a run's curves, held as arrays: a tenth of what lists of Python's numbers take."""

from __future__ import annotations

import math
from array import array
from collections.abc import Iterable, Sequence
from typing import Any

Numbers = Sequence[float | None] | dict[str, float | None]


class Points(Sequence[list[Any]]):
    """Numbers by step: [step, number, ...] each, or [step, {name: number}] where they are named. A number that is none, or
    nan, comes out as None."""

    def __init__(self, named: bool = False):
        self._named = named
        self._steps, self._numbers = array("q"), array("d")
        self._ends = array("q")  # of each point's numbers in those of all
        self._names: list[tuple[str, ...]] = []  # kept once for as many points as have them one after the other
        self._names_of = array("q")

    def __len__(self) -> int:
        return len(self._steps)

    def __getitem__(self, place: Any) -> Any:
        if isinstance(place, slice):
            return [self[each] for each in range(len(self))[place]]
        place = range(len(self))[place]
        begin = self._ends[place - 1] if place else 0
        numbers = [None if math.isnan(each) else each for each in self._numbers[begin : self._ends[place]]]
        if not self._named:
            return [self._steps[place], *numbers]
        return [self._steps[place], dict(zip(self._names[self._names_of[place]], numbers, strict=True))]

    @property
    def step(self) -> int:
        """Of the last point."""
        return self._steps[-1]

    @property
    def newest(self) -> float:
        """The last number of the last point, nan too."""
        return self._numbers[-1]

    @property
    def nbytes(self) -> int:
        """How much its arrays hold."""
        return sum(each.itemsize * len(each) for each in (self._steps, self._numbers, self._ends, self._names_of))

    def add(self, step: int, numbers: Numbers) -> None:
        """All of it or nothing: TypeError or OverflowError where something is no number, or names are missing."""
        if self._named != isinstance(numbers, dict):
            raise TypeError("numbers with names" if self._named else "numbers without names")
        given = numbers.values() if isinstance(numbers, dict) else numbers
        values = array("d", [math.nan if each is None else each for each in given])
        self._steps.append(step)
        self._numbers += values
        self._ends.append(len(self._numbers))
        if isinstance(numbers, dict):
            if self._names[-1:] != [names := tuple(numbers)]:
                self._names.append(names)
            self._names_of.append(len(self._names) - 1)

    def picked(self, places: Iterable[int]) -> Points:
        """The points at these places."""
        found = Points(self._named)
        for step, *numbers in map(self.__getitem__, places):
            found.add(step, numbers[0] if self._named else numbers)
        return found

    def thinned(self, limit: int) -> Points:
        """At most so many of them, evenly picked."""
        return self if len(self) <= limit else self.picked(spread(len(self), limit))

    def until(self, step: int) -> Points:
        """The points up to a step."""
        return self.picked(place for place, at in enumerate(self._steps) if at <= step)


def spread(count: int, limit: int) -> Sequence[int]:
    """At most `limit` of the places of a list, evenly picked, the first and the last kept."""
    if count <= limit:
        return range(count)
    stride = (count - 1) / (limit - 1)
    return [round(index * stride) for index in range(limit)]
