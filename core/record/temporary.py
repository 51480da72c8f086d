"""Temporary folders with a lock, by which folders of killed processes are recognized and removed."""

import os
import shutil
import tempfile
import time
import weakref
from contextlib import suppress
from pathlib import Path

from filelock import FileLock, Timeout

from core.record.lock import LOOK_SECONDS, is_held

PREFIX, LOCK = "atelier-", "held.lock"
NEW_SECONDS = 1.0  # in which a folder's lock may not be held yet


class HeldFolder:
    """A new temporary folder, `path`, deleted by `close` or at the end of this process. kind: part of the folder's name.

    Folders of processes that ended without deleting them are deleted first.
    """

    def __init__(self, kind: str):
        remove_leftover_folders()
        self.path = Path(tempfile.mkdtemp(prefix=f"{PREFIX}{kind}-"))
        lock = FileLock(self.path / LOCK, timeout=LOOK_SECONDS, fallback_to_soft=False)
        with suppress(OSError, NotImplementedError, Timeout):  # a drive without locks
            lock.acquire()
        self.close = weakref.finalize(self, _remove, self.path, lock)


def _remove(path: Path, lock: FileLock) -> None:
    lock.release()
    shutil.rmtree(path, ignore_errors=True)


def remove_leftover_folders() -> None:
    """Delete this user's temporary folders whose lock no process holds."""
    for path in Path(tempfile.gettempdir()).glob(f"{PREFIX}*"):
        with suppress(OSError):
            facts, lock = path.lstat(), path / LOCK
            is_users = path.is_dir() and not path.is_symlink() and facts.st_uid == getattr(os, "getuid", lambda: 0)()
            if is_users and time.time() - lock.lstat().st_mtime > NEW_SECONDS and not is_held(lock):
                shutil.rmtree(path, ignore_errors=True)
