"""A process that was launched with others ends when its launcher does: one that is killed cannot tell them."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Sequence

import psutil

from core.record.processes import SUPERVISED, only_follows

LOOK_SECONDS = 0.5
LAUNCHED = "TORCHELASTIC_RUN_ID"  # set by accelerate launch and torchrun, which stay the parent of what they start
WORDS = "\nThe program that launched this training is gone, so it stops as after a kill. Continue the run to go on.\n"


def end_with_launcher() -> None:
    """From now on this process ends at once when its launcher is gone, or the page that had it launched.

    As after `kill -9`: files are whole or absent, and the newest state is there to continue from.
    """
    pids = [os.getppid()] if LAUNCHED in os.environ else []
    if page := os.environ.get(SUPERVISED):
        pids.append(int(page))
    if pids:
        threading.Thread(target=_watch, args=(_found(pids),), name="launcher", daemon=True).start()


def _found(pids: Sequence[int]) -> list[psutil.Process | None]:
    """None for one that is gone already."""
    found: list[psutil.Process | None] = []
    for pid in pids:
        try:
            found.append(psutil.Process(pid))
        except psutil.NoSuchProcess:
            found.append(None)
    return found


def _watch(processes: Sequence[psutil.Process | None]) -> None:
    while not any(_gone(process) for process in processes):
        time.sleep(LOOK_SECONDS)
    if not only_follows():
        os.write(2, WORDS.encode())
    os._exit(1)


def _gone(process: psutil.Process | None) -> bool:
    try:
        return process is None or not process.is_running() or process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True
