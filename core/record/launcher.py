"""Ends a launched process when its launcher ends, since a killed launcher cannot notify it."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Sequence

import psutil

from core.record.processes import SUPERVISED, only_follows

LOOK_SECONDS = 0.5
LAUNCHED = "TORCHELASTIC_RUN_ID"  # set by accelerate launch and torchrun, which stay the parent of what they start
WORDS = "\nThe program that launched this training is gone, so the training stops. Resume the run to continue.\n"


def end_with_launcher() -> None:
    """From now on this process ends at once when its launcher, or the page that launched it, is gone.

    As after `kill -9`: files are complete or absent, and the newest state can be resumed.
    """
    pids = [os.getppid()] if LAUNCHED in os.environ else []
    if page := os.environ.get(SUPERVISED):
        pids.append(int(page))
    if pids:
        threading.Thread(target=_watch, args=(_found(pids),), name="launcher", daemon=True).start()


def _found(pids: Sequence[int]) -> list[psutil.Process | None]:
    """None for one that is already gone."""
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
