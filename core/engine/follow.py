"""Follows a job that other processes run: they lock its folder and write its journal; this process reads the journal for the page and
forwards a stop."""

import subprocess
import time
from collections.abc import Callable
from typing import IO

from core.engine.explain import Explanation
from core.engine.other_process import recorded_failure
from core.engine.view import ENDED
from core.record import commands
from core.record.cancel import CancelToken
from core.record.events import StateChanged
from core.record.journal import Journal, Line, Tail, read_lines
from core.record.problems import ProblemsError
from core.record.run_folder import RunFolder
from core.record.worker import kill

POLL_SECONDS = 0.3
END_SECONDS = 20
LOG = "processes.txt"


def follow(
    start: Callable[[IO[bytes]], subprocess.Popen[bytes]],
    folder: RunFolder,
    *,
    listener: Callable[[Line], None],
    token: CancelToken,
    patience: float | None = None,
) -> tuple[str, Explanation | None]:
    """Start a process that runs a job, pass its journal's new lines to `listener`, and wait for its end. Return (state, explanation
    of a failure or None).

    start      (log file) -> the process
    token      a cancelled one sends a stop to the job
    patience   seconds from a stop until the process is killed; None: it is never killed
    """
    tail = Tail(folder.journal_file)
    last_seq = max((line["seq"] for line in tail.lines()), default=0)
    folder.logs.mkdir(exist_ok=True)
    stopped_at: float | None = None
    with open(folder.logs / LOG, "ab") as log:
        child = start(log)
        can_be_stopped = child.stdin is not None  # closing its stdin stops it from the first moment on
        try:
            while child.poll() is None:
                if token.wanted and stopped_at is None and can_be_stopped:
                    sent = _send_stop(folder)
                    if child.stdin is not None:
                        child.stdin.close()
                    if sent or child.stdin is not None:
                        stopped_at = time.monotonic()
                if stopped_at is not None and patience is not None and time.monotonic() - stopped_at > patience:
                    return _killed(child, folder, listener)
                # It reads commands from its first line on; it skips those sent before.
                can_be_stopped |= any(line["seq"] > last_seq for line in _forward_new(tail, listener))
                time.sleep(POLL_SECONDS)
        except BaseException:
            child.terminate()
            child.wait(timeout=60)
            raise
    _wait_for_end(folder)
    _forward_new(tail, listener)
    return _result(folder, last_seq, child.returncode, listener)


def _killed(child: subprocess.Popen[bytes], folder: RunFolder, listener: Callable[[Line], None]) -> tuple[str, None]:
    """Kill a process that did not stop, and write "stopped" to the journal. Return ("stopped", None)."""
    kill(child, seconds=1)
    with Journal(folder.path) as journal:
        journal.listen(listener)
        journal.put(StateChanged("stopped", "Cancelled; it did not respond and was killed"))
    return "stopped", None


def _wait_for_end(folder: RunFolder) -> None:
    """Wait up to END_SECONDS until the processes have released the run's lock: they notice within a second that their launcher was
    killed."""
    end = time.monotonic() + END_SECONDS
    while folder.held and time.monotonic() < end:
        time.sleep(POLL_SECONDS)


def _send_stop(folder: RunFolder) -> bool:
    """Send a stop to the run; return False if it cannot be written now, as on a full disk."""
    try:
        commands.send(folder.path, "stop")
    except (OSError, ProblemsError):
        return False
    return True


def _forward_new(tail: Tail, listener: Callable[[Line], None]) -> list[Line]:
    """Pass the new lines of a journal to `listener` and return them."""
    lines = list(tail.lines())
    for line in lines:
        listener(line)
    return lines


def _result(
    folder: RunFolder, last_seq: int, code: int, listener: Callable[[Line], None]
) -> tuple[str, Explanation | None]:
    """Return (final state in the journal after line `last_seq`, explanation of a failure or None).

    Without a final state a failure is written: as recorded by another process, else with the exit code. (The launcher kills a
    process that waits for its GPU.)
    """
    states = [line for line in read_lines(folder.journal_file, last_seq) if line["kind"] == "state"]
    last: Line = states[-1] if states else {}
    state = str(last.get("state", ""))
    if state in ENDED:
        explanation = Explanation(str(last.get("message", "")), str(last.get("fix", ""))) if state == "failed" else None
        return state, explanation
    what = f"The process ended without an error message (code {code})"
    unexplained = Explanation(what, f"see {folder.logs / LOG}; start it again")
    return write_failure(folder, recorded_failure(folder) or unexplained, listener)


def write_failure(
    folder: RunFolder, explanation: Explanation, listener: Callable[[Line], None]
) -> tuple[str, Explanation | None]:
    """Write a failure outside of the job to the run's journal; return ("failed", `explanation`)."""
    with Journal(folder.path) as journal:
        journal.listen(listener)
        journal.put(StateChanged("failed", explanation.what, explanation.fix))
    return "failed", explanation
