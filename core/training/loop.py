"""The loop: epoch -> batch -> step -> tasks that are due. It owns the run's state and touches no widget."""

from __future__ import annotations

import time
from collections import deque
from typing import TYPE_CHECKING

from core.optimization.schedules import group_rates
from core.record.events import StateChanged, Steps
from core.training.losses import not_finite_itself
from core.training.saving import final_name
from core.training.trackers import track_steps
from core.training.update import optimizer_update

if TYPE_CHECKING:
    from core.training.losses import ReadBack
    from core.training.run import Run

PAUSE_SECONDS = 0.1


def train(run: Run) -> str:
    """From run.state.step to the last step or a stop. Returns "done" or "stopped"."""
    if run.state.step >= run.total and (run.context.folder.checkpoints / final_name(run)).exists():
        run.context.say("This run is already finished")
        return "done"
    first = run.context.processes.first
    if first:
        run.tasks.before_first_step(run)
        run.stepper.tasks_done()
    else:
        run.stepper.follow()
    while run.state.step < run.total and not run.context.processes.agree(run.stop_wanted):
        started = time.monotonic()
        optimizer_update(
            run
        )  # gradient_accumulation_steps micro-batches; a flag on the device withholds a non-finite one
        run.state.step += 1
        # Inside the clock: here a GPU is waited for, which only queued the steps.
        read = run.losses.read_if_due() if first else None
        run.clock.add(time.monotonic() - started)
        report(run, read)
        if not first:
            run.losses.forget()
            run.stepper.follow()
        else:
            run.tasks.after_step(run)  # save, back up, sample: each knows when it is due
            obey(run)
            run.stepper.tasks_done()
    if not first:
        run.stepper.follow()
        return "done" if run.state.step >= run.total else "stopped"
    report(run, run.losses.read())
    done = run.state.step >= run.total
    (run.tasks.at_the_end if done else run.tasks.at_a_stop)(run)
    run.stepper.tasks_done()
    return "done" if done else "stopped"


def report(run: Run, read: ReadBack | None) -> None:
    """Write steps whose losses have arrived to the journal and the trackers. ProblemsError at one that was not finite."""
    if read is None:
        return
    for problem in read.skipped:
        run.context.say(f"Skipped: {problem.what} ({problem.where})", "warning", problem.fix)
    if read.steps:
        _report_steps(run, read)
    if read.end is not None:
        raise not_finite_itself(run.components) or read.end


def _report_steps(run: Run, read: ReadBack) -> None:
    step = read.steps[-1]
    tick = max(0, step - 1 - run.stepper.paused)
    rates = group_rates(run.optimizer, run.job, tick, run.total, run.context.processes.count)
    run.state.seconds = run.clock.total
    corrected = run.watch.add(read)
    run.context.journal.put(
        Steps(
            read.steps,
            read.losses,
            rates,
            run.plan.epoch_of(step - 1) + 1,
            run.clock.per_step,
            read.norm,
            [round(value, 5) for value in corrected],
            read.weight_norm,
        )
    )
    track_steps(run, read, corrected, rates)
    run.watch.write(run.context.folder.path, at_once=step >= run.total)


def obey(run: Run) -> None:
    """Commands that arrived: at a step's end nothing is half-done."""
    names = deque(run.context.take_commands())
    while names:
        name = names.popleft()
        if name == "pause":
            _pause(run, names)
        else:
            _save_or_sample(run, name)


def _save_or_sample(run: Run, name: str) -> None:
    if name == "save":
        run.tasks.save_now(run)
    elif name == "sample":
        run.tasks.sample_now(run)


def _pause(run: Run, names: deque[str]) -> None:
    """Wait for "resume" or "stop"; the state is saved, so even a kill during the pause loses nothing.

    names  commands that arrived in the same step: a "resume" may be among them
    """
    run.tasks.back_up(run)
    run.context.journal.put(StateChanged("paused", f"Paused at step {run.state.step}"))
    while not run.stop_wanted:
        while names:
            name = names.popleft()
            if name == "resume":
                run.context.journal.put(StateChanged("running", "Resumed"))
                return
            _save_or_sample(run, name)
        time.sleep(PAUSE_SECONDS)
        names.extend(run.context.take_commands())
