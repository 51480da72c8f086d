"""A flag that a job checks between its units of work (step, image, layer)."""

import threading


class Cancelled(Exception):
    """The user asked to stop: finished units are kept, an open one is removed. It may say how many are finished."""


class CancelToken:
    """`check` raises Cancelled once `cancel` was called, from any thread."""

    def __init__(self) -> None:
        self._event = threading.Event()

    def cancel(self) -> None:
        self._event.set()

    @property
    def wanted(self) -> bool:
        return self._event.is_set()

    def check(self) -> None:
        if self._event.is_set():
            raise Cancelled
