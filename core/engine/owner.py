"""One engine for one outputs folder: who holds it, and how another process adds to its queue."""

from __future__ import annotations

import json
import os
import sys
import time
import uuid
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from core.record import atomic, lock
from core.record.problems import ProblemsError
from core.record.workspace import Workspace


class Ownership:
    """The lock outputs/.atelier/lock with a note of who holds it."""

    def __init__(self, workspace: Workspace, what: str):
        self._folder = workspace.private
        self._note = self._folder / "holder.json"
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            self._lock = lock.Lock(self._folder / "lock")
            for line in self._lock.acquire():
                print(line, file=sys.stderr, flush=True)
        except lock.HeldElsewhere as held:
            more, wait = lock.held_words(held)
            fix = f"add --queue to have it done there, or choose another --outputs{wait}"
            raise ProblemsError.one(self._who() + more, str(workspace.outputs), fix) from None
        except OSError as error:
            raise ProblemsError.one(
                f"The output folder cannot be written: {error.strerror}",
                str(workspace.outputs),
                "choose another with --outputs",
            ) from None
        self.say(what)

    def _who(self) -> str:
        try:
            note = json.loads(self._note.read_text("utf-8"))
            since = time.strftime("%H:%M", time.localtime(note["since"]))
            return (
                f"Atelier already works with this output folder: {note['what']} (process {note['pid']}, since {since})"
            )
        except (OSError, ValueError, KeyError, TypeError):
            return "Atelier already works with this output folder in another process"

    def say(self, what: str) -> None:
        """Change the words that another process reads, such as the page's address. A full disk leaves them as they were."""
        with suppress(OSError):
            atomic.write_json(self._note, {"what": what, "pid": os.getpid(), "since": time.time()})

    def release(self) -> None:
        atomic.remove(self._note)
        self._lock.release()


def is_held(workspace: Workspace) -> bool:
    """Whether an engine works with this output folder now."""
    return lock.is_held(workspace.private / "lock")


def inbox(workspace: Workspace) -> Path:
    return workspace.private / "inbox"


def hand_in(workspace: Workspace, task: str, title: str, job: dict[str, Any], run: str = "", preset: str = "") -> None:
    """Leave a job for the engine that holds the folder; it picks it up within a second. `run`: go on with this one."""
    name = f"{time.time():.3f}-{uuid.uuid4().hex[:8]}.json"
    try:
        content = {"task": task, "title": title, "job": job, "run": run, "preset": preset}
        atomic.write_json(inbox(workspace) / name, content)
    except OSError as error:
        raise ProblemsError.one(
            f"The output folder cannot be written: {error.strerror}", str(inbox(workspace)), "mend that, or use another"
        ) from None


def collect(workspace: Workspace, take_in: Callable[[Any], None]) -> None:
    """Hand each job that was left here to `take_in`, oldest first; it leaves the folder when it has been taken in.

    Damaged files are removed. A name with a dot in front is a file that is still being written.
    """
    folder = inbox(workspace)
    if not folder.is_dir():
        return
    for path in sorted(path for path in folder.glob("*.json") if not path.name.startswith(".")):
        with suppress(ValueError):
            take_in(json.loads(path.read_text("utf-8")))
        atomic.remove(path)
