"""What to do next with a run that ended early, for Monitor and Runs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from core.engine.queue import lane_of
from core.record.units import count
from tabs.server.browsers import Browser

if TYPE_CHECKING:
    from tabs.context import Page


@dataclass(frozen=True)
class NextStep:
    """A button for a run that ended early.

    name: command, "continue" or "settings"; text: label; about: text next to it
    """

    name: str
    text: str
    about: str


def next_step(state: str, resumable_step: int, fix: str = "") -> NextStep | None:
    """Return the next step for a run in this state; None if the run is active or finished.

    resumable_step: step of its newest training state, at most 0 without one; fix: of the run's error
    """
    if state not in ("interrupted", "stopped", "failed"):
        return None
    if resumable_step > 0:
        return NextStep("continue", "Resume training", f"From step {resumable_step:,}, the last training state")
    if state == "failed" and fix:
        return NextStep("settings", "Change settings", "Nothing was saved, and the same settings would fail again")
    return NextStep("continue", "Restart", "No training state was saved")


def resume(page: Page, browser: Browser, name: str, changes: dict[str, Any] | None = None) -> None:
    """Resume a run and show in `browser` whether it waits and whether the queue runs again, or Monitor if it begins now. Raises
    ProblemsError. changes: as in `Engine.continue_run`"""
    engine = page.engine
    was_paused, entry = engine.queue_paused, engine.continue_run(name, changes)
    wait, run = engine.waits().get(entry), engine.run(name)
    title, begins = run.title if run is not None else name, wait is None or wait.begins
    text = f"Added to the queue: {title}, {wait.message}" if wait is not None and not begins else f"{title} continues"
    others = [each for each in engine.queue() if each.state == "waiting" and lane_of(each) == "device"]
    if was_paused and not engine.queue_paused:
        text += "; the queue runs again"
        behind = sum(each.id != entry for each in others) if begins else 0
        text += f", {count(behind, 'job')} wait{'s' * (behind == 1)} behind it" if behind else ""
    page.browsers.say(browser, "done", f"{text}.", go="Monitor" if begins else "")
