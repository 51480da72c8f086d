"""A worker process that answers requests. It can be killed at any time, and its crash or hang does not affect this process."""

import json
import os
import queue
import secrets
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from core.record.cancel import CancelToken
from core.record.priority import lower_priority
from core.record.workspace import PROJECT

POLL_SECONDS = 0.2
END_SECONDS = 5.0  # to wait for an ended process to be gone
OUTPUT_BYTES = 4000  # of the end of stderr of a process that did not answer


# Ctrl-C is for the parent process, which ends or stops the other.
APART: dict[str, Any] = {
    "start_new_session": os.name != "nt",
    "creationflags": getattr(subprocess, "CREATE_NEW_PROCESS_GROUP", 0),
}


def kill(process: subprocess.Popen[bytes], seconds: float) -> None:
    """Kill a process started with `APART` and its children (on Windows only itself), and wait up to `seconds` for its end, which a driver
    may delay."""
    with suppress(OSError):  # it has ended meanwhile
        if os.name != "nt":
            os.killpg(process.pid, signal.SIGKILL)
        else:
            process.kill()
    with suppress(subprocess.TimeoutExpired):
        process.wait(timeout=seconds)


@dataclass(frozen=True)
class Gone:
    """How a worker ended instead of answering. hung: it was killed at the time limit; code: exit code; output: end of its stderr."""

    hung: bool
    code: int | None
    output: str

    @property
    def exit_text(self) -> str:
        """The exit code as text: "code 1", or "signal SIGKILL" for a process ended by a signal."""
        if self.code is not None and self.code < 0:
            with suppress(ValueError):
                return f"signal {signal.Signals(-self.code).name}"
        return f"code {self.code}"


class Worker:
    """Starts a process by `command`, which must run `serve_requests`, and sends requests to it.
    folder: for a file with the process's stderr, whose end is reported if the process ends"""

    def __init__(self, command: Sequence[str], folder: Path):
        self._stderr: IO[bytes] = open(folder / f"said-{secrets.token_hex(4)}.txt", "w+b")
        self._process = subprocess.Popen(
            list(command),
            cwd=PROJECT,
            env=os.environ | {"PYTHONUNBUFFERED": "1", "PYTHONFAULTHANDLER": "1"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._stderr,
            **APART,
        )
        with suppress(OSError):  # Linux: where memory runs out, it ends before the page and its trainings
            Path(f"/proc/{self._process.pid}/oom_score_adj").write_text("1000")
        self._answers: queue.Queue[bytes] = queue.Queue()
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        """Put each line of the process's stdout into the queue of answers, and b"" at its end."""
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self._answers.put(line)
        self._answers.put(b"")

    def ask(self, request: dict[str, Any], seconds: float, token: CancelToken) -> dict[str, Any] | Gone:
        """Send a request, JSON values that the process' `serve_requests` reads, and return its answer; `Gone` if the process ended, or did
        not answer in `seconds` and was killed. Raises Cancelled if `token` is cancelled meanwhile."""
        end = time.monotonic() + seconds
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(request).encode() + b"\n")
            self._process.stdin.flush()
        except OSError:
            return self._end_and_report(hung=False)
        while True:
            token.check()
            with suppress(queue.Empty):
                line = self._answers.get(timeout=min(POLL_SECONDS, max(0.01, end - time.monotonic())))
                return json.loads(line) if line else self._end_and_report(hung=False)
            if time.monotonic() >= end:
                return self._end_and_report(hung=True)

    def _end_and_report(self, *, hung: bool) -> Gone:
        """Kill the process, after waiting END_SECONDS for its end unless it is `hung`. Return its exit code and the end of its stderr."""
        if not hung:
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(timeout=END_SECONDS)
        kill(self._process, END_SECONDS)
        self._stderr.seek(0, os.SEEK_END)
        self._stderr.seek(max(0, self._stderr.tell() - OUTPUT_BYTES))
        return Gone(hung, self._process.returncode, self._stderr.read().decode("utf-8", "replace"))

    def end(self) -> None:
        """Kill the process and close the file of its stderr."""
        kill(self._process, END_SECONDS)
        self._stderr.close()


# ---- in the process itself


def serve_requests(answer: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
    """Main loop of the worker process: for each line of stdin, a JSON object, write `answer(object)` to stdout as JSON, until stdin is
    closed. Runs at low priority. What libraries print to stdout goes to stderr."""
    lower_priority()
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8", buffering=1)
    os.dup2(2, 1)
    requests: queue.Queue[dict[str, Any]] = queue.Queue()
    threading.Thread(target=_listen, args=(requests,), daemon=True).start()
    while True:
        answers.write(json.dumps(answer(requests.get()), default=str) + "\n")


def _listen(requests: queue.Queue[dict[str, Any]]) -> None:
    """Put the requests from stdin into `requests`; end this process when stdin is closed."""
    for line in sys.stdin:
        requests.put(json.loads(line))
    os._exit(0)  # the process that asks is gone
