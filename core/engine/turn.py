"""Whose turn the device is: one holder at a time."""

from __future__ import annotations

import threading


class Turn:
    """The device as something that one holds: `holder` is its name, or empty while the device is free."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self.holder = ""

    def take(self, holder: str, wait_seconds: float) -> bool:
        """Hold it; False where it was not free within the time."""
        with self._changed:
            if not self._changed.wait_for(lambda: not self.holder, wait_seconds):
                return False
            self.holder = holder
            return True

    def give_back(self) -> None:
        with self._changed:
            self.holder = ""
            self._changed.notify_all()
