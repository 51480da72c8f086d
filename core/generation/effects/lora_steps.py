"""A hook that turns LoRAs off outside their step range."""

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
    """Turns LoRAs on and off by their step range. in_use: (attached network, its strength) of each LoRA with a range"""

    def __init__(self, in_use: Sequence[tuple[Network, Strength]]):
        self._in_use = in_use
        self._on = [True] * len(in_use)

    @contextmanager
    def around(self) -> Iterator[None]:
        """Context that turns all LoRAs on again at its end."""
        try:
            yield
        finally:
            self._set([True] * len(self._in_use))

    def before(self, at: Moment) -> None:
        """Turn the LoRAs on or off for this step."""
        self._set([strength.acts(at.index, at.steps) for _, strength in self._in_use])

    def _set(self, on: list[bool]) -> None:
        """Set which LoRAs are on, in the order of `in_use`."""
        for (network, strength), now, before in zip(self._in_use, on, self._on, strict=True):
            if now != before:
                (strength if now else NO_STRENGTH).set_on(network)
        self._on = on


def hook_of(inputs: HookInputs) -> Hook | None:
    """Return the hook for the stage's LoRAs with a step range, or None if there are none."""
    ranged = [
        (network, strength)
        for network, strength in zip(inputs.networks, inputs.strengths, strict=True)
        if strength.steps != ALL_STEPS and network.attached
    ]
    return StepRanges(ranged) if ranged else None
