"""One engine per outputs folder: the folder's lock, the device's lock, and the inbox through which other processes add jobs."""

import os
import socket
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, Self

from core.engine.queue import new_identity
from core.record import atomic, lock
from core.record.bounded_json import read_json_object
from core.record.problems import ProblemsError
from core.record.workspace import Workspace


class Ownership:
    """The lock of an outputs folder, with a note on who holds it. Raises ProblemsError if another process holds it.

    holder   description for messages of other processes
    page     whether the holder is a page, which reads the inbox
    """

    def __init__(self, workspace: Workspace, holder: str, page: bool = False):
        self._workspace, self._folder, self.lost = workspace, workspace.private, ""
        self._page = page
        self._note = self._folder / "holder.json"
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            self._lock = lock.Lock(self._folder / "lock")
            for line in self._lock.acquire():
                print(line, file=sys.stderr, flush=True)
        except lock.HeldElsewhere as held:
            raise self._refusal(held, workspace) from None
        except OSError as error:
            what, fix = f"The output folder cannot be written: {error.strerror}", "choose another with --outputs"
            raise ProblemsError.one(what, str(workspace.outputs), fix, "outputs.unwritable") from None
        self.write_note(holder)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()

    def read_inbox(self, on_job: Callable[[Any], None]) -> None:
        """`read_inbox` for this folder. Sets `lost` to a warning once the lock file is not in it: it was moved, renamed or deleted."""
        if not self._lock.is_there:
            self.lost = (
                f"The outputs folder was moved, renamed or deleted while this page runs; new files are in a new {self._workspace.outputs}. "
                "Close the page, put the folder back and start again: until then another page could use the same folder."
            )
        read_inbox(self._workspace, on_job)

    def _refusal(self, held: lock.HeldElsewhere, workspace: Workspace) -> ProblemsError:
        """Return the ProblemsError that says who holds the lock and how to stop that process."""
        heartbeat, wait = lock.held_message(held)
        otherwise = "or choose another --outputs" + wait
        try:
            note = read_json_object(self._note)
            since = time.strftime("%H:%M", time.localtime(note["since"]))
            what, pid, host, page = str(note["what"]), int(note["pid"]), str(note["host"]), bool(note["page"])
        except (ProblemsError, ValueError, KeyError, TypeError, OverflowError, OSError):
            what = "Another Atelier process is already using this output folder"
            fix = f"stop that process, {otherwise}"
            return ProblemsError.one(what + heartbeat, str(workspace.outputs), fix, "outputs.held")
        on_host = "" if host == socket.gethostname() else f" on {host}"
        what = f"This output folder is already in use: {what} (process {pid}{on_host}, since {since})"
        use_page = "open that page in your browser, " if self._page else "add --queue to run it there, "
        end = _how_to_end(pid, on_host)
        fix = (
            f"{use_page}stop {end}, {otherwise}"
            if page
            else f"stop {end} (it saves first), wait until it ends, {otherwise}"
        )
        return ProblemsError.one(what + heartbeat, str(workspace.outputs), fix, "outputs.held")

    def write_note(self, holder: str) -> None:
        """Write the note on the holder, such as the page's address, for other processes. Errors of the disk are ignored."""
        note = {
            "what": holder,
            "pid": os.getpid(),
            "host": socket.gethostname(),
            "since": time.time(),
            "page": self._page,
        }
        with suppress(OSError):
            atomic.write_json(self._note, note)

    def release(self) -> None:
        """Delete the note and release the lock."""
        with suppress(OSError):
            atomic.remove(self._note)
        self._lock.release()


def _how_to_end(pid: int, on_host: str) -> str:
    """Return how to stop a process, to follow "stop" in a sentence. on_host: " on NAME" for another machine, else empty."""
    kill = "" if os.name == "nt" else f" or `kill {pid}`"
    return f"it with Ctrl-C in its terminal{kill}{on_host}"


def is_held(workspace: Workspace) -> bool:
    """Whether an engine or command holds this outputs folder."""
    return lock.is_held(workspace.private / "lock")


def has_page(workspace: Workspace) -> bool:
    """Whether a page holds this outputs folder: it reads the inbox, which a job on the command line does not."""
    with suppress(ProblemsError, OSError):
        return is_held(workspace) and bool(read_json_object(workspace.private / "holder.json").get("page"))
    return False


def inbox(workspace: Workspace) -> Path:
    """Return the folder for jobs of other processes, one JSON file each."""
    return workspace.private / "inbox"


def hand_in(workspace: Workspace, task: str, title: str, job: dict[str, Any], run: str = "", preset: str = "") -> str:
    """Write a job to the inbox of an outputs folder, whose page reads it within a second. Return the job's id. Raises ProblemsError if
    the folder cannot be written.

    job      its settings as plain values
    run      name of the run to resume; "" for a new one
    preset   name of its preset; "" without one
    """
    identity = new_identity()
    name = f"{time.time():.6f}-{identity}.json"  # the order of jobs that a script hands in at once
    try:
        content = {"id": identity, "task": task, "title": title, "job": job, "run": run, "preset": preset}
        atomic.write_json(inbox(workspace) / name, content)
    except OSError as error:
        what = f"The output folder cannot be written: {error.strerror}"
        fix = "change its permissions, or choose another with --outputs"
        raise ProblemsError.one(what, str(inbox(workspace)), fix, "outputs.unwritable") from None
    return identity


def read_inbox(workspace: Workspace, on_job: Callable[[Any], None]) -> None:
    """Call `on_job` with the content of each job in the inbox, oldest first, and delete its file.

    A damaged file is renamed, with a message to stderr; one that cannot be read now is tried again at the next call. Names that
    start with a dot are files still being written.
    """
    folder = inbox(workspace)
    if not folder.is_dir():
        return
    for path in sorted(path for path in folder.glob("*.json") if not path.name.startswith(".")):
        try:
            content = read_json_object(path)
        except ProblemsError as error:
            if isinstance(error.__cause__, OSError):
                continue
            aside = path.with_suffix(f".broken-{time.time_ns()}")
            atomic.replace(path, aside)
            print(f"A submitted job could not be read and was moved to {aside}\n{error}", file=sys.stderr)
            continue
        on_job(content)
        atomic.remove(path)


class DeviceLock:
    """The lock of the device. holder: who holds it; "" while the device is free."""

    def __init__(self) -> None:
        self._lock, self.holder = threading.Lock(), ""

    def acquire(self, holder: str, wait_seconds: float) -> bool:
        """Wait up to `wait_seconds` for the lock; return whether it was acquired."""
        if acquired := self._lock.acquire(timeout=wait_seconds):
            self.holder = holder
        return acquired

    def release(self) -> None:
        """Release the lock and clear `holder`."""
        self.holder = ""
        self._lock.release()
