"""How much the page may do in a second while the GPU or the CPU trains or draws: what asks for more waits, the work does not.

Work is counted in units of about 6.5 ms of one core: one call of a handler is 2, a file half of one, the whole page 20. An
ordinary page takes about 35 as it opens and 2 to 5 a second while it is worked with. Strangers get 6 a second together, 4% of a
core; what is refused costs 0.2 ms, 5% of a core for 200 requests a second.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field

PAGE, CALL, FILE = 20.0, 2.0, 0.5
LOOK = 1.0  # seconds for which it is held known whether anything runs
MANY = 1000


@dataclass
class Bucket:
    """`most` units, refilled at `rate` a second, for each of those who ask."""

    rate: float
    most: float
    clock: Callable[[], float] = time.monotonic
    _left: dict[str, tuple[float, float]] = field(default_factory=dict)

    def take(self, who: str, cost: float) -> float:
        """0: taken. Else the seconds until there is enough; nothing is taken."""
        now = self.clock()
        if len(self._left) > MANY:
            self._left = {each: kept for each, kept in self._left.items() if self._at(kept, now) < self.most}
        if wait := self.lacks(who, cost):
            return wait
        self._left[who] = (self._has(who, now) - cost, now)
        return 0.0

    def lacks(self, who: str, cost: float) -> float:
        """Seconds until there is enough; 0: there is."""
        return max(cost - self._has(who, self.clock()), 0.0) / self.rate

    def _has(self, who: str, now: float) -> float:
        return self._at(self._left.get(who, (self.most, now)), now)

    def _at(self, kept: tuple[float, float], now: float) -> float:
        return min(self.most, kept[0] + (now - kept[1]) * self.rate)


class Budget:
    """What each browser or address and all together may ask for while something runs; anything, while nothing does."""

    def __init__(self, runs: Callable[[], bool] = lambda: False, clock: Callable[[], float] = time.monotonic):
        self._runs, self._clock = runs, clock
        self._each = Bucket(40, 400, clock)
        self._seniors, self._others = Bucket(60, 600, clock), Bucket(6, 60, clock)
        self._running, self._looked = False, float("-inf")

    def wait(self, method: str, path: str, who: str, senior: bool = False) -> float:
        """Seconds after which this request may come again; 0: it may be answered now.

        who     a browser's name or an address      senior  it was here before the others, whose flood takes nothing from it
        """
        if not self._is_needed():
            return 0.0
        cost = cost_of(method, path)
        return self._each.take(who, cost) or (self._seniors if senior else self._others).take("", cost)

    def wait_of_strangers(self, method: str, path: str) -> float:
        """The least that `wait` would answer to anybody who is no senior. Nothing is taken."""
        return self._others.lacks("", cost_of(method, path)) if self._is_needed() else 0.0

    def _is_needed(self) -> bool:
        now = self._clock()
        if now - self._looked >= LOOK:
            self._running, self._looked = self._runs(), now
        return self._running


def cost_of(method: str, path: str) -> float:
    if method not in ("GET", "HEAD"):
        return CALL
    return PAGE if path.rstrip("/") in ("", "/config") else FILE
