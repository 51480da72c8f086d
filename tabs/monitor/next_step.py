"""What to do with a run that ended before its time: decided once, for Monitor and Runs."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class NextStep:
    """name: the command, "continue" or "settings"."""

    name: str
    text: str
    about: str


def next_step(state: str, resumable_step: int, fix: str = "") -> NextStep | None:
    """None for a run that goes on, waits or is done. fix: what the run's own error asks to change."""
    if state not in ("interrupted", "stopped", "failed"):
        return None
    if resumable_step > 0:
        return NextStep("continue", "Resume training", f"From step {resumable_step:,}, the last training state")
    if state == "failed" and fix:
        return NextStep("settings", "Change settings", "Nothing was saved, and the same settings would fail again")
    return NextStep("continue", "Restart", "No training state was saved")
