"""Lanes for work without the device: threads for scans, checks, downloads, copies and tools, which a long training never blocks. For a
heavy tool the thread only waits: the tool runs in a child process (core/engine/child.py)."""

import queue
import threading
import time
from collections.abc import Callable
from typing import Any

from core.engine.explain import explain
from core.engine.queue import GUEST, as_guest
from core.record.cancel import CancelToken
from core.record.problems import ProblemsError
from core.record.workspace import CURRENT_WORKSPACE, in_workspace
from core.settings.base import Settings
from core.settings.named import Limits, admit

CLOSE_SECONDS = 8.0
LANES = {"light": "short", "downloads": "downloads", "process": "process"}  # a task's lane -> whose threads do it


class LightTask:
    """Handle of work in a light lane: its progress (0 to 1) and stage text, and, once `done`, its result or error."""

    def __init__(self, title: str = ""):
        self.title, self.text = title, ""
        self.progress = 0.0
        self.result: Any = None
        self.error: ProblemsError | None = None
        self.token = CancelToken()
        self.started = time.time()
        self._finished = threading.Event()

    @property
    def done(self) -> bool:
        return self._finished.is_set()

    def stage(self, text: str, done: int = 0, total: int = 0) -> None:
        """Report the current stage and its progress, `done` of `total`."""
        self.text, self.progress = text, min(max(done / total, 0.0), 1.0) if total else 0.0

    def check(self) -> None:
        self.token.check()

    def cancel(self) -> None:
        self.token.cancel()

    def wait(self, timeout: float | None = None) -> Any:
        """Wait for the work and return its result. Raises its error as ProblemsError, or TimeoutError after `timeout` seconds."""
        if not self._finished.wait(timeout):
            raise TimeoutError(self.title)
        if self.error is not None:
            raise self.error
        return self.result

    def _run(self, work: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
        """Call `work(*arguments, task=self)` and store its result, or its exception as a ProblemsError."""
        try:
            self.token.check()
            self.result = work(*arguments, task=self)
        except ProblemsError as error:
            self.error = error
        except BaseException as error:  # the panic of a library in Rust is no Exception; it must not end the thread
            self.error = ProblemsError.one("Cancelled", self.title, code="jobs.cancelled")
            if not self.token.wanted:
                explanation = explain(error)
                self.error = ProblemsError.one(explanation.what, self.title, explanation.fix, "jobs.failed")
        finally:
            self._finished.set()


def with_limits(work: Callable[..., Any], limits: Limits | None) -> Callable[..., Any]:
    """Return `work` with a check before it: ProblemsError if settings among its arguments name what `limits` do not allow."""

    def admitted(*arguments: Any, task: LightTask) -> Any:
        for job in arguments:
            if isinstance(job, Settings):
                admit(job, limits)
        return work(*arguments, task=task)

    return admitted if limits else work


class LightLane:
    """Threads for short work, and one thread each for downloads, copies and child processes, which therefore never delay a scan."""

    # Dataset and Train may both be reading every image of a large set: one short one is left for the rest.
    THREADS = {"short": 3, "downloads": 1, "copies": 1, "process": 1}

    def __init__(self) -> None:
        self._jobs: dict[str, queue.Queue[Any]] = {kind: queue.Queue() for kind in self.THREADS}
        self._open: list[LightTask] = []  # waiting or running
        self._to_start = [kind for kind, count in self.THREADS.items() for _ in range(count)]
        self._threads: list[threading.Thread] = []
        self._lock = threading.Lock()  # of what waits, runs and starts

    def submit(self, work: Callable[..., Any], *arguments: Any, title: str = "", kind: str = "short") -> LightTask:
        """Run `work(*arguments, task=...)` in a thread of this kind and return its handle. It runs as the user and in the workspace of the
        current request."""
        task = LightTask(title)
        with self._lock:
            self._open = [each for each in self._open if not each.done] + [task]
        self._jobs[kind].put((task, GUEST.get(), CURRENT_WORKSPACE.get(), work, arguments))
        self._start_thread(kind)
        return task

    def _start_thread(self, kind: str) -> None:
        """Start a thread of this kind unless all of them are running already."""
        with self._lock:
            if kind in self._to_start:
                self._to_start.remove(kind)
                name = f"light-{kind}-{len(self._threads)}"
                thread = threading.Thread(target=self._work, args=(self._jobs[kind],), name=name, daemon=True)
                self._threads.append(thread)
                thread.start()

    @property
    def works(self) -> bool:
        """Whether work is running or waiting."""
        return any(not each.done for each in list(self._open))

    @staticmethod
    def _work(jobs: queue.Queue[Any]) -> None:
        """Body of a thread: run the work in `jobs` until a None."""
        while (job := jobs.get()) is not None:
            task, guest, space, work, arguments = job
            with as_guest(guest), in_workspace(space):
                task._run(work, arguments)

    def close(self, wait_seconds: float = CLOSE_SECONDS) -> None:
        """Cancel all work and wait up to `wait_seconds` for the threads: one in C++ code at Python's exit would abort the process
        ("terminate called without an active exception")."""
        for task in self._open:
            task.cancel()
        for kind, count in self.THREADS.items():
            for _ in range(count):
                self._jobs[kind].put(None)
        end = time.monotonic() + wait_seconds
        for thread in self._threads:
            thread.join(max(0.0, end - time.monotonic()))
