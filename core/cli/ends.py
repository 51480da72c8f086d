"""Signals that end a program, from its first moment on: nothing heavy is imported here."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def polite_ends() -> Iterator[None]:
    """Inside, the end of a service, a closed terminal and Ctrl-Break act like Ctrl-C: what runs is saved first."""
    here = os.getpid()

    def interrupt(number: int, frame: object) -> None:
        if os.getpid() == here:
            raise KeyboardInterrupt
        signal.signal(number, signal.SIG_DFL)  # a forked child, which inherits this: its parent ends it as it wants
        os.kill(os.getpid(), number)

    before = {}
    for name in ("SIGTERM", "SIGHUP", "SIGBREAK"):
        number = getattr(signal, name, None)
        if number is not None and signal.getsignal(number) is not signal.SIG_IGN:  # nohup: ignored stays ignored
            before[number] = signal.signal(number, interrupt)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
