"""A flag that a job checks between its units of work (step, image, layer)."""

import threading


class Cancelled(Exception):
    """Raised where a job stops at the user's request: finished units are kept, an unfinished one is removed.

    Its text, if any, says how many units are finished.
    """


class CancelToken:
    """A thread-safe stop flag: `check` raises Cancelled after `cancel` was called."""

    def __init__(self) -> None:
        self._event = threading.Event()

    def cancel(self) -> None:
        self._event.set()

    @property
    def wanted(self) -> bool:
        """Whether `cancel` was called."""
        return self._event.is_set()

    def check(self) -> None:
        if self._event.is_set():
            raise Cancelled
