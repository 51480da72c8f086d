"""The training loop: optimizer steps, and after each step the saves, samples and validations that are due."""

from __future__ import annotations

import time
from collections import deque
from typing import TYPE_CHECKING

from core.record.events import StateChanged
from core.training.loop.run import Run
from core.training.loop.spill_guard import spill_guard
from core.training.loop.update import optimizer_update

if TYPE_CHECKING:
    from core.training.loop.timetable import Timetable

PAUSE_SECONDS = 0.1


def train(run: Run, timetable: Timetable) -> str:
    """Train from the run's present step to its last step or a stop. Returns "done" or "stopped"."""
    first = run.context.processes.first
    if run.state.step >= run.total and timetable.finished:
        run.context.say("This run is already finished")
        if first:
            timetable.after_the_end()
        return "done"
    if first:
        timetable.before_first_step()
        run.stepper.tasks_done()
    else:
        run.stepper.follow()
    encoded = run.passes.encodes_each_step  # in the step before; without a cache the first step loads the VAE
    guard = spill_guard(run.job, run.context)
    while run.state.step < run.total and not run.context.processes.agree(run.stop_wanted):
        started, encoding = time.monotonic(), run.passes.encoding_seconds
        optimizer_update(run)
        run.state.step += 1
        # Within the measured time: a GPU only queues its steps, and reading waits for it.
        read_back = run.reports.losses.read_if_due() if first else None
        encoding = run.passes.encoding_seconds - encoding
        if encoded and not encoding:  # images that wait may be needed much later, or not at all
            run.context.stage("training")
        encoded = encoding > 0
        seconds = time.monotonic() - started - encoding
        run.reports.clock.add(seconds)
        run.reports.report(read_back)
        if guard is not None:
            batches = run.plan.step_batches(run.state.step - 1)[1]
            if problem := guard.add(batches, seconds, None if read_back is None else len(read_back.steps)):
                run.context.warn(problem)
        if not first:
            run.reports.losses.forget()
            run.stepper.follow()
        else:
            timetable.after_step()
            run_commands(run, timetable)
            run.stepper.tasks_done()
    if not first:
        run.stepper.follow()
        return "done" if run.state.step >= run.total else "stopped"
    run.reports.report_all()
    done = run.state.step >= run.total
    (timetable.at_the_end if done else timetable.at_a_stop)()
    run.stepper.tasks_done()
    return "done" if done else "stopped"


def run_commands(run: Run, timetable: Timetable) -> None:
    """Carry out the user's commands that arrived (save, sample, pause). Called at the end of a step, when all weights are updated."""
    names = deque(run.context.take_commands())
    while names:
        name = names.popleft()
        if name == "pause":
            _pause(run, timetable, names)
        else:
            _save_or_sample(timetable, name)


def _save_or_sample(timetable: Timetable, name: str) -> None:
    """Carry out the command "save" or "sample"; ignore others."""
    if name == "save":
        timetable.save_now()
    elif name == "sample":
        timetable.sample_now()


def _pause(run: Run, timetable: Timetable, names: deque[str]) -> None:
    """Save a training state, then wait for "resume" or a stop. A kill during the pause loses no step.
    names: commands that arrived in the same step after "pause"; not yet carried out"""
    timetable.back_up()
    run.context.journal.put(StateChanged("paused", f"Paused at step {run.state.step}"))
    while not run.stop_wanted:
        while names:
            name = names.popleft()
            if name == "resume":
                run.context.journal.put(StateChanged("running", "Resumed"))
                return
            _save_or_sample(timetable, name)
        time.sleep(PAUSE_SECONDS)
        names.extend(run.context.take_commands())
