"""Tasks in tests: another function in place of a task's own, and surroundings that only listen."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from core import tasks
from core.record.cancel import CancelToken
from core.record.commands import NoCommands
from core.record.context import JobContext, Outcome
from core.record.journal import SilentJournal
from core.record.run_folder import RunFolder
from core.record.workspace import Workspace


def stand_in(monkeypatch, task: str, run: Any) -> None:
    """`run` in place of a task's own function; it returns the state in which it ended."""
    own = tasks.named(task)
    monkeypatch.setitem(tasks.TASKS, task, replace(own, own="", run=lambda job, context: Outcome(run(job, context))))


class Heard(SilentJournal):
    """Keeps the events in `events`."""

    def __init__(self) -> None:
        super().__init__()
        self.events: list[Any] = []

    def put(self, event: Any) -> dict[str, Any]:
        self.events.append(event)
        return {}


def surroundings(workspace: Workspace, cancel: CancelToken | None = None) -> JobContext:
    """For calling a task's function directly; its journal is a `Heard`."""
    return JobContext(
        workspace, RunFolder(workspace.private / "jobs" / "test"), Heard(), NoCommands(), token=cancel or CancelToken()
    )
