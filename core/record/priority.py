"""Low priority for background processes: a training and the page get the CPU first."""

import os
import sys
import time
from contextlib import suppress
from pathlib import Path

import psutil

NICENESS = 10
# Linux may schedule each session as one (sched_autogroup): then nice counts within a session alone, and this between sessions.
AUTOGROUP = Path("/proc/self/autogroup")
TRIES, PAUSE = 5, 0.12  # seconds; Linux accepts one change in a tenth of a second, of all processes together


def lower_priority() -> None:
    """Lower the CPU priority of this process and its later children; on Linux also of its session, if this process leads one."""
    if sys.platform == "win32":
        psutil.Process().nice(psutil.BELOW_NORMAL_PRIORITY_CLASS)
        return
    os.nice(max(0, NICENESS - os.nice(0)))
    if os.getsid(0) == os.getpid():  # in another session there are the page, a training or a terminal
        _lower_session()


def _lower_session() -> None:
    """Lower the priority of this session (sched_autogroup); does nothing where the system does not allow it."""
    with suppress(OSError):  # another system, a container that may not write it
        for _ in range(TRIES):
            with suppress(BlockingIOError):
                AUTOGROUP.write_text(str(NICENESS), "ascii")
                return
            time.sleep(PAUSE)
