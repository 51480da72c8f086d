"""LoRAs with a step range: a hook turns them off at the other steps."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from core.generation.model.loras import ALL_STEPS, NO_STRENGTH, Strength
from core.generation.plan.hooks import HookInputs
from core.generation.sample.guidance import Moment
from core.generation.sample.loop import Hook

if TYPE_CHECKING:
    from core.networks.network import Network


class StepRanges(Hook):
    """Turns LoRAs off outside their step range. in_use: (network, its strength)"""

    def __init__(self, in_use: Sequence[tuple[Network, Strength]]):
        self._in_use = in_use
        self._on = [True] * len(in_use)

    @contextmanager
    def around(self) -> Iterator[None]:
        try:
            yield
        finally:
            self._set([True] * len(self._in_use))

    def before(self, at: Moment) -> None:
        self._set([strength.acts(at.index, at.steps) for _, strength in self._in_use])

    def _set(self, on: list[bool]) -> None:
        for (network, strength), now, before in zip(self._in_use, on, self._on, strict=True):
            if now != before:
                (strength if now else NO_STRENGTH).set_on(network)
        self._on = on


def hook_of(inputs: HookInputs) -> Hook | None:
    """The hook for a stage's LoRAs; None if all act at every step."""
    ranged = [
        (network, strength)
        for network, strength in zip(inputs.networks, inputs.strengths, strict=True)
        if strength.steps != ALL_STEPS and network.attached
    ]
    return StepRanges(ranged) if ranged else None
