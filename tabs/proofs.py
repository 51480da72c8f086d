"""Proofs that a run which stops and goes on ends where an unbroken one does: one at a time, and no job beside it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from core.record.problems import ProblemsError
from tabs.markup import button, esc, facts, progress, section

if TYPE_CHECKING:
    from core.settings.job import TrainJob
    from core.training.prove import Proof
    from tabs.context import Page

STEPS = 10
STAGES = 3  # of a proof: whole, first half, second half


class Proofs:
    """The newest proof of each run, for as long as the page lives."""

    def __init__(self, page: Page):
        self._page = page
        self._tasks: dict[str, Any] = {}

    def start(self, run: str) -> None:
        """Begin one. Refused while a job has the device: both would be slow, or run out of memory."""
        engine = self._page.engine
        if engine.status()["job"] is not None:
            raise ProblemsError.one("A job is running", run, "try again when the device is free", code="job.running")
        if any(not task.done for task in self._tasks.values()):
            raise ProblemsError.one(
                "Another resume test is running", run, "wait for it, or cancel it", code="proof.running"
            )
        self._tasks[run] = engine.light(self._prove, engine.run_job(run), title="proof")

    def cancel(self, run: str) -> None:
        if run in self._tasks:
            self._tasks[run].cancel()

    def _prove(self, job: TrainJob, task: Any) -> Proof:
        from core.training.prove import prove

        said: list[str] = []

        def say(text: str) -> None:
            said.append(text)
            task.stage(text, len(said), STAGES + 1)

        with self._page.engine.borrow_device(task.token, "the resume test") as device:
            return prove(job, self._page.workspace, device, STEPS, token=task.token, say=say)

    def html(self, run: str, possible: bool) -> str:
        """The button, what is going on, or both hashes."""
        task = self._tasks.get(run)
        if not possible and task is None:
            return ""
        about = f"Trains {STEPS} steps of this job without a break, and again with a stop in the middle; both must end bit-identical."
        again = button("prove", "Test resuming" if task is None else "Test again", run)
        if task is None:
            body = f'<p class="hint">{about}</p>{again}'
        elif not task.done:
            stop = button("unprove", "Cancel", run)
            body = progress(task.text.capitalize() or "Waiting", task.progress or None) + stop
        elif task.error is not None:
            words = "Cancelled." if task.token.wanted else "; ".join(each.what for each in task.error.problems)
            body = f'<p class="run-message advice"><strong>{esc(words)}</strong></p>{again}'
        else:
            body = _result(task.result) + again
        return section("Stopping and resuming", body)


def _result(proof: Proof) -> str:
    rows = [
        (f"{proof.steps} steps without a break", f"<code>{esc(proof.whole)}</code>"),
        (f"{proof.stopped_at}, stopped, {proof.steps - proof.stopped_at} more", f"<code>{esc(proof.resumed)}</code>"),
    ]
    words = "Bit-identical: weights, optimizer, random numbers and every loss." if proof.equal else "Not identical."
    different = f" Different: {esc(', '.join(proof.different[:10]))}." if proof.different else ""
    level = "fine" if proof.equal else "error"
    told = f'<p class="run-message {level}"><strong>{words}</strong>{different}</p>'
    return f'<div class="proof">{told}{facts(rows)}</div>'
