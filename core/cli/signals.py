"""Turns termination signals into KeyboardInterrupt from the start of the process, so nothing heavy is imported here."""

import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager

# A notebook's interrupt arrives twice, by the process group and by the cell, as do some launchers'.
REPEATED_SECONDS = 1.0


@contextmanager
def interrupt_on_signals() -> Iterator[None]:
    """Context in which Ctrl-C, SIGTERM, SIGHUP (a closed terminal) and Ctrl-Break raise KeyboardInterrupt, so that a running job is
    saved before the process ends.

    A signal within REPEATED_SECONDS of another is the same interrupt repeated, which would end the saving, and is ignored.
    """
    here, latest = os.getpid(), float("-inf")

    def interrupt(number: int, frame: object) -> None:
        nonlocal latest
        if os.getpid() == here:
            if time.monotonic() - latest < REPEATED_SECONDS:
                return
            latest = time.monotonic()
            raise KeyboardInterrupt
        signal.signal(number, signal.SIG_DFL)  # a forked child inherits this handler and must end as usual
        os.kill(os.getpid(), number)

    before = {}
    for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGBREAK"):
        number = getattr(signal, name, None)
        if number is not None and signal.getsignal(number) is not signal.SIG_IGN:  # nohup: ignored stays ignored
            before[number] = signal.signal(number, interrupt)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
