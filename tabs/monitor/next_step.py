"""The action for a run that ended early, for Monitor and Runs."""

from dataclasses import dataclass


@dataclass(frozen=True)
class NextStep:
    """name: of the command, "continue" or "settings"; about: text next to the button"""

    name: str
    text: str
    about: str


def next_step(state: str, resumable_step: int, fix: str = "") -> NextStep | None:
    """The action for a run in this state; None if it is active or finished. fix: of the run's error"""
    if state not in ("interrupted", "stopped", "failed"):
        return None
    if resumable_step > 0:
        return NextStep("continue", "Resume training", f"From step {resumable_step:,}, the last training state")
    if state == "failed" and fix:
        return NextStep("settings", "Change settings", "Nothing was saved, and the same settings would fail again")
    return NextStep("continue", "Restart", "No training state was saved")
