"""Losses stay on the device and are read back together, so that no step waits for the host."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from core.record.problems import ProblemsError

if TYPE_CHECKING:
    from torch import Tensor

EVENT_SECONDS = 0.3
MOST_WAITING = 10
MOST_OVERFLOWS = 50  # 16 halvings bring the scaler's first factor, 65536, to 1: many more are no matter of range


@dataclass(frozen=True)
class StepRecord:
    """What a step leaves until it is read back. loss, norm: 0-d on the device; pictures, timesteps: to name a culprit."""

    step: int
    loss: Tensor
    norm: Tensor
    pictures: list[str]
    timesteps: list[int]


@dataclass(frozen=True)
class ReadBack:
    """Steps whose numbers have arrived."""

    steps: list[int]
    losses: list[float]
    norm: float


class LossBuffer:
    """Collects StepRecords; `read_if_due` hands out finished numbers a few times a second."""

    def __init__(self, *, scaled: bool = False):
        self._waiting: list[StepRecord] = []
        self._last = time.monotonic()
        self._scaled = scaled
        self._overflows = 0

    def put(self, record: StepRecord) -> None:
        self._waiting.append(record)

    def read_if_due(self) -> ReadBack | None:
        if len(self._waiting) >= MOST_WAITING or time.monotonic() - self._last >= EVENT_SECONDS:
            return self.read()
        return None

    def forget(self) -> None:
        """Let go of what waits, unread: one process of several reports."""
        self._waiting = []

    def read(self) -> ReadBack | None:
        """Wait for the device and read everything. Raises ProblemsError at the first step that was not finite."""
        import torch

        self._last = time.monotonic()
        records, self._waiting = self._waiting, []
        if not records:
            return None
        numbers = torch.stack([torch.stack([record.loss.float(), record.norm.float()]) for record in records]).tolist()
        for record, (loss, norm) in zip(records, numbers, strict=True):
            # With scaled losses an infinite gradient is the scaler's business: it skips the step and scales less.
            self._overflows = 0 if math.isfinite(norm) else self._overflows + 1
            too_many = self._overflows > (MOST_OVERFLOWS if self._scaled else 0)
            if not math.isfinite(loss) or too_many:
                raise not_finite(record, "loss" if not math.isfinite(loss) else "gradient")
        return ReadBack([record.step for record in records], [loss for loss, _ in numbers], numbers[-1][1])


def not_finite(record: StepRecord, what: str) -> ProblemsError:
    names = ", ".join(record.pictures[:8]) + (" and more" if len(record.pictures) > 8 else "")
    steps = ", ".join(str(timestep) for timestep in record.timesteps[:8])
    return ProblemsError.one(
        f"The {what} of step {record.step} is not a number; the weights are those before it",
        f"step {record.step}: {names} at timesteps {steps}",
        "lower the learning rate, use bf16 or fp32, or look at these pictures; then continue from the last saved state",
    )
