"""What to do next with a run that ended early, for Monitor and Runs."""

from dataclasses import dataclass


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
