"""Turn termination signals into KeyboardInterrupt, from the start of the process: nothing heavy is imported here."""

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def interrupt_on_signals() -> Iterator[None]:
    """Within the context SIGTERM, SIGHUP (a closed terminal) and Ctrl-Break raise KeyboardInterrupt, as Ctrl-C does, so that a
    running job is saved before the process ends."""
    here = os.getpid()

    def interrupt(number: int, frame: object) -> None:
        if os.getpid() == here:
            raise KeyboardInterrupt
        signal.signal(number, signal.SIG_DFL)  # a forked child inherits this handler and must end as usual
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
