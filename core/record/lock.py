"""Locks for folders: a file lock, or, on drives without file locks, a heartbeat file that is touched regularly."""

import errno
import os
import threading
import time
import uuid
from pathlib import Path

from filelock import FileLock, Timeout

from core.record import atomic

LOOK_SECONDS = 5.0  # longer than `is_held` holds a lock to test it
BEAT_SECONDS = 5.0
STALE_SECONDS = 60.0  # without a heartbeat: its process is gone
SETTLE_SECONDS = 0.5  # between writing the heartbeat and reading it back: of two at once the later one wins
# Errors of drives without locks (some network mounts, Google Drive in Colab).
NO_LOCKS = {errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EINVAL, errno.ENOLCK}


class HeldElsewhere(Exception):
    """Raised if another process holds the lock. age: seconds since its heartbeat; None for a file lock, which has none."""

    def __init__(self, age: float | None = None):
        super().__init__("held by another process")
        self.age = age


class Lock:
    """A lock file that one process holds until `release` or its end; with a heartbeat, until STALE_SECONDS after its end."""

    def __init__(self, path: Path):
        self._path = path
        self._lock = FileLock(path, timeout=LOOK_SECONDS, fallback_to_soft=False)  # a soft lock survives a kill
        self._token = uuid.uuid4().hex
        self._end = threading.Event()
        self._beating: threading.Thread | None = None

    def acquire(self) -> list[str]:
        """Acquire the lock. Return messages for the user, such as that the drive has no file locks. Raises HeldElsewhere if another process
        holds it, OSError if the lock file cannot be written."""
        age = heartbeat_age(self._path)
        if age is not None and age < STALE_SECONDS:
            raise HeldElsewhere(age)
        try:
            self._lock.acquire()
        except Timeout:
            raise HeldElsewhere from None
        except OSError as error:
            if error.errno not in NO_LOCKS:
                raise
            return self._acquire_by_heartbeat(age)
        except NotImplementedError:
            return self._acquire_by_heartbeat(age)
        atomic.remove(heartbeat_file(self._path))  # of a process that worked here while the drive had no locks
        return []

    def _acquire_by_heartbeat(self, age: float | None) -> list[str]:
        """`acquire` for a drive without file locks.
        age: seconds since the last heartbeat of another process; None if there is no heartbeat file"""
        file = heartbeat_file(self._path)
        messages = [
            f"This drive has no file locks: a heartbeat every {BEAT_SECONDS:g} seconds marks the folder as in use"
        ]
        if age is not None:
            if _heartbeat_changes(file):  # it only looked old, since the clocks of two machines differ
                raise HeldElsewhere(0.0)
            messages.append(f"Taken over from a process without a heartbeat for {_duration(age)}")
        atomic.write_text(file, self._token)
        time.sleep(SETTLE_SECONDS)
        if not self._is_mine():
            raise HeldElsewhere(0.0)
        self._end.clear()
        self._beating = threading.Thread(target=self._beat, name="heartbeat", daemon=True)
        self._beating.start()
        return messages

    def _is_mine(self) -> bool:
        """Whether the heartbeat file was written by this object."""
        try:
            return heartbeat_file(self._path).read_text("utf-8") == self._token
        except OSError:
            return False

    def _beat(self) -> None:
        """Touch the heartbeat file every BEAT_SECONDS until `release`, or until another process has replaced it."""
        while not self._end.wait(BEAT_SECONDS):
            try:
                if not self._is_mine():  # this process was suspended, and another took over
                    return
                os.utime(heartbeat_file(self._path))
            except OSError:
                continue

    @property
    def is_there(self) -> bool:
        """Whether the file of this lock, which is held, is still at its path: without it another process could lock the folder too."""
        path = self._path if self._beating is None else heartbeat_file(self._path)
        try:
            path.stat()
        except OSError as error:
            return not isinstance(error, FileNotFoundError)  # a drive that fails for now
        return True

    def release(self) -> None:
        """Release the file lock, or stop the heartbeat and delete its file if this object wrote it."""
        if self._beating is None:
            self._lock.release()
            return
        self._end.set()
        self._beating.join()
        self._beating = None
        if self._is_mine():
            atomic.remove(heartbeat_file(self._path))


def is_held(path: Path) -> bool:
    """Whether any process holds the lock at `path`, by file lock or heartbeat."""
    age = heartbeat_age(path)
    if age is not None and age < STALE_SECONDS:
        return True
    if not path.exists():
        return False
    probe = FileLock(path, timeout=0, fallback_to_soft=False)
    try:
        probe.acquire()
    except Timeout:
        return True
    except (OSError, NotImplementedError):
        return False
    probe.release()
    return False


def heartbeat_file(path: Path) -> Path:
    """Return the path of a lock's heartbeat file."""
    return path.with_name(f"{path.name}.alive")


def heartbeat_age(path: Path) -> float | None:
    """Seconds since the heartbeat of the lock at `path`; None if there is no heartbeat file."""
    try:
        return abs(time.time() - heartbeat_file(path).stat().st_mtime)
    except OSError:
        return None


def held_message(held: HeldElsewhere) -> tuple[str, str]:
    """Return two texts to append to a problem's `what` and `fix`: how old the heartbeat is, and when to try again. Both are "" for a lock
    without heartbeat."""
    if held.age is None:
        return "", ""
    wait = f"if that process was killed, try again in {_duration(STALE_SECONDS)}"
    return f", with a heartbeat {_duration(held.age)} ago", f"; {wait}"


def _heartbeat_changes(file: Path) -> bool:
    """Whether a heartbeat file is touched within two intervals, which this waits for."""
    try:
        before = file.stat().st_mtime_ns
        time.sleep(2 * BEAT_SECONDS)
        return file.stat().st_mtime_ns != before
    except OSError:
        return False


def _duration(seconds: float) -> str:
    """Format seconds as "90 seconds", "5 minutes" or "3 hours"."""
    if seconds < 120:
        return f"{seconds:.0f} seconds"
    return f"{seconds / 60:.0f} minutes" if seconds < 7200 else f"{seconds / 3600:.0f} hours"
