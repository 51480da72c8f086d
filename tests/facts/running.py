"""Runs a task as the command line would: what its check says, what it found, what it reported and which files it left."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from core import tasks
from core.record.workspace import Workspace
from core.settings.check import build
from tests.facts.samples import all_figures, figures
from tests.facts.store import refused
from tests.tasks import surroundings

VOLATILE = ("seconds", "at", "when", "time", "undo", "sha256", "modelspec.date")


def run(task: str, root: Path, groups: Mapping[str, Any], *, starts: bool = True, lines: int = 30) -> dict[str, Any]:
    """{"check", "state", "facts", "lines", "reports"} of a job; without the last four where its check refuses it."""
    found, context = tasks.named(task), surroundings(Workspace(root / "outputs", root / "models", root / "presets"))

    def looked() -> Any:
        return figures(found.check_job(build(found.job, groups), context.workspace))

    result = {"check": refused(looked)}
    if not starts:
        return result

    def started() -> Any:
        outcome = found.start(build(found.job, groups), context)
        shown = all_figures(outcome.lines)
        return {
            "state": outcome.state,
            "facts": steady(outcome.facts),
            "lines": shown[:lines],
            "count": len(outcome.lines),
        }

    answer = refused(started)
    return result | (answer if "state" in answer else {"start": answer})


def steady(facts: Any) -> Any:
    """The facts without times."""
    if isinstance(facts, Mapping):
        return {key: steady(value) for key, value in facts.items() if key not in VOLATILE}
    return [steady(each) for each in facts] if isinstance(facts, (list, tuple)) else facts
