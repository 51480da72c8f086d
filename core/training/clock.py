"""Seconds per step, from the steps alone: pauses, saves and samples do not count."""

from __future__ import annotations

MEMORY_STEPS = 20.0


class StepClock:
    """total: seconds spent in steps. per_step: a moving mean; the first step, which warms up, leaves the mean quickly."""

    def __init__(self, total: float = 0.0):
        self.total = total
        self.per_step = 0.0
        self._count = 0

    def add(self, seconds: float) -> None:
        self.total += seconds
        self._count += 1
        if self._count == 2:
            self.per_step = seconds
            return
        self.per_step += (seconds - self.per_step) / min(self._count, MEMORY_STEPS)
