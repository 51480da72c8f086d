"""The loop: epoch -> batch -> step -> tasks that are due. It owns the run's state and touches no widget."""

from __future__ import annotations

import time
from collections import deque
from typing import TYPE_CHECKING

from core.record.events import StateChanged
from core.training.loop.run import Run
from core.training.loop.update import optimizer_update

if TYPE_CHECKING:
    from core.training.loop.tasks import Tasks

PAUSE_SECONDS = 0.1


def train(run: Run, tasks: Tasks) -> str:
    """From run.state.step to the last step or a stop. Returns "done" or "stopped"."""
    first = run.context.processes.first
    if run.state.step >= run.total and tasks.finished:
        run.context.say("This run is already finished")
        if first:
            tasks.after_the_end()
        return "done"
    if first:
        tasks.before_first_step()
        run.stepper.tasks_done()
    else:
        run.stepper.follow()
    while run.state.step < run.total and not run.context.processes.agree(run.stop_wanted):
        started, encoding = time.monotonic(), run.passes.encoding_seconds
        optimizer_update(run)
        run.state.step += 1
        # Inside the clock: here a GPU is waited for, which only queued the steps.
        read = run.reports.losses.read_if_due() if first else None
        encoding = run.passes.encoding_seconds - encoding
        run.reports.clock.add(time.monotonic() - started - encoding)
        run.reports.report(read)
        if not first:
            run.reports.losses.forget()
            run.stepper.follow()
        else:
            tasks.after_step()  # save, back up, sample: each knows when it is due
            obey(run, tasks)
            run.stepper.tasks_done()
    if not first:
        run.stepper.follow()
        return "done" if run.state.step >= run.total else "stopped"
    run.reports.all()
    done = run.state.step >= run.total
    (tasks.at_the_end if done else tasks.at_a_stop)()
    run.stepper.tasks_done()
    return "done" if done else "stopped"


def obey(run: Run, tasks: Tasks) -> None:
    """Commands that arrived: at a step's end nothing is half-done."""
    names = deque(run.context.take_commands())
    while names:
        name = names.popleft()
        if name == "pause":
            _pause(run, tasks, names)
        else:
            _save_or_sample(tasks, name)


def _save_or_sample(tasks: Tasks, name: str) -> None:
    if name == "save":
        tasks.save_now()
    elif name == "sample":
        tasks.sample_now()


def _pause(run: Run, tasks: Tasks, names: deque[str]) -> None:
    """Wait for "resume" or "stop"; the state is saved, so even a kill during the pause loses nothing.

    names  commands that arrived in the same step: a "resume" may be among them
    """
    tasks.back_up()
    run.context.journal.put(StateChanged("paused", f"Paused at step {run.state.step}"))
    while not run.stop_wanted:
        while names:
            name = names.popleft()
            if name == "resume":
                run.context.journal.put(StateChanged("running", "Resumed"))
                return
            _save_or_sample(tasks, name)
        time.sleep(PAUSE_SECONDS)
        names.extend(run.context.take_commands())
