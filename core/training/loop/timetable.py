"""When a run saves checkpoints and training states, samples and validates."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from core.record.best import TOO_SHORT, BestTracker, write_best
from core.record.cancel import Cancelled
from core.record.events import BackedUp
from core.record.journal import Line, Tail, read_lines
from core.record.memory import free_memory, is_out_of_memory
from core.record.problems import ProblemsError, unwritten
from core.settings.base import every
from core.training.loop.run import Run
from core.training.saving.checkpoints import Checkpoints, planned_saves

if TYPE_CHECKING:
    from core.methods import Use
    from core.training.loop.samples import Samples
    from core.training.loop.validation import Validation
    from core.training.saving.states import States


class Timetable:
    """Saves, samples and validates at the steps that the settings and the length of the run determine."""

    def __init__(self, run: Run, checkpoints: Checkpoints, states: States, validation: Validation, samples: Samples):
        self._run, self._context, self._state = run, run.context, run.state
        self._checkpoints, self._states = checkpoints, states
        self._validation, self._samples = validation, samples
        job, total = run.job, run.total
        self._planned_saves = planned_saves(job.saving, run.plan, total)
        self._state_with_checkpoints = job.saving.save_state
        self._state_at_end = job.saving.save_state or job.saving.save_state_on_train_end
        self._backup_timer = Timer(job.saving.save_every_minutes)
        self._checkpoint_timer = Timer(job.saving.checkpoint_every_minutes)
        self._sample_timer = Timer(job.samples.sample_every_minutes)
        self._sample_epochs = every(job.samples.sample_every_n_epochs)
        self._sample_steps = None if self._sample_epochs else every(job.samples.sample_every_n_steps)
        self._validate_steps = every(job.validation.validate_every_n_steps)
        self._validate_epochs = every(job.validation.validate_every_n_epochs)
        if not validation.holds_out_images:  # what finds the best checkpoint is measured at each save
            self._validate_steps = self._validate_epochs = None
        periodic = bool(self._validate_steps or self._validate_epochs)
        self._validates_first = periodic or (validation.ranks_checkpoints and 0 not in validation.unmeasured_saves)
        self._validates_last = periodic or (validation.ranks_checkpoints and total not in validation.unmeasured_saves)
        self._validated_at = -1
        self._best, self._journal = BestTracker(), Tail(run.context.folder.journal_file)

    @property
    def finished(self) -> bool:
        """Whether the final checkpoint exists."""
        return self._checkpoints.final.exists()

    # -- moments of a run

    def before_first_step(self) -> None:
        """Validate and sample the base model, to compare with. For a resumed run, do the validation and samples of its step that are
        missing."""
        step = self._state.step
        if step > self._state.start_step:
            lines = list(read_lines(self._context.folder.journal_file))
            self._measure_if_due(any(line["kind"] == "saved" and line["step"] == step for line in lines), lines)
            return
        if self._validation.limit_message:
            self._context.say(
                self._validation.limit_message, code="" if self._validation.ranks_checkpoints else TOO_SHORT
            )
        if self._validates_first:
            self._validate()
        if self._run.job.samples.sample_at_first and self._samples.prompts:
            self._sample()

    def after_step(self) -> None:
        """Save checkpoints and training states, validate and sample if due at this step; the last step is left to `at_the_end`."""
        step, plan = self._state.step, self._run.plan
        if step >= plan.total:
            return
        saves, checkpoints = self._planned_saves.get(step, ()), self._checkpoints
        if not saves and self._checkpoint_timer.due:
            saves = ("step",)
        for kind in saves:
            self._save(checkpoints.epoch_name(plan.epoch_of(step)) if kind == "epoch" else checkpoints.step_name(step))
        if not saves and self._backup_timer.due:
            self.back_up()
        self._measure_if_due(bool(saves))

    def at_the_end(self) -> None:
        """Write the final checkpoint, then validate and sample it; their errors cannot prevent the checkpoint."""
        self._run.reports.report_all()
        self._write_and_back_up(self._checkpoints.final.name, final=True, state=self._state_at_end)
        if self._validates_last:
            self._validate()
        if self._samples.prompts:
            self._sample()

    def after_the_end(self) -> None:
        """Do the final validation and samples that a finished run lacks, as it was killed after its final checkpoint."""
        lines = read_lines(self._context.folder.journal_file)
        kinds = [line["kind"] for line in lines if line.get("step") == self._run.total]
        if self._validates_last and "validated" not in kinds:
            self._validate()
        if kinds.count("sample") < len(self._samples.prompts):
            self._sample()

    def at_a_stop(self) -> None:
        """Write a checkpoint and a training state; validate if that takes only seconds."""
        if self._state.step > self._state.start_step:
            self._write_and_back_up(self._checkpoints.step_name(self._state.step))
            if self._validation.ranks_checkpoints and self._validation.is_quick:
                with self._context.after_stop():
                    self._validate()
            elif self._validation.ranks_checkpoints:
                self._context.say("The validation loss of this checkpoint will be measured when the run resumes")

    def _measure_if_due(self, saved: bool, lines: Sequence[Line] = ()) -> None:
        """Validate and sample if due at this step.

        saved   a checkpoint of this step was written, whose validation loss is needed to rank it
        lines   of the journal; validations and samples in it are not repeated
        """
        step, plan = self._state.step, self._run.plan
        if step >= plan.total:
            return
        kinds = [line["kind"] for line in lines if line.get("step") == step]
        epoch = plan.epoch_of(step) if plan.ends_epoch(step) else None
        due = _is_due(step, self._validate_steps, epoch, self._validate_epochs)
        ranked = saved and self._validation.ranks_checkpoints and step not in self._validation.unmeasured_saves
        if (due or ranked) and "validated" not in kinds:
            self._validate()
        due = _is_due(step, self._sample_steps, epoch, self._sample_epochs) or self._sample_timer.due
        if due and kinds.count("sample") < len(self._samples.prompts):
            self._sample()

    # -- commands

    def save_now(self) -> None:
        """Save a checkpoint and a training state, and validate if checkpoints are ranked by loss."""
        self._save(self._checkpoints.step_name(self._state.step), state=True)
        if self._validation.ranks_checkpoints:
            self._validate()

    def sample_now(self) -> None:
        """Generate samples, or warn that the run has no sample prompts."""
        if self._samples.prompts:
            self._sample()
        else:
            self._context.say("There are no sample prompts", "warning", "enter some for the next run")

    def back_up(self) -> None:
        """Save a training state and remove expired ones. A failed write is reported and does not end the training."""
        self._run.reports.report_all()
        try:
            self._states.save()
        except OSError as error:
            self._say_unwritten(error, "the training state")
            return
        finally:
            self._backup_timer.restart()
        self._context.journal.put(BackedUp(self._state.step))
        self._rotate(self._states.remove_old)

    # -- their work

    def _write_and_back_up(self, name: str, final: bool = False, state: bool = True) -> None:
        """Write the checkpoint `name` and, with `state`, a training state. If the checkpoint fails, save the state and raise the error."""
        try:
            with self._run.stepper.weights_for("files"):
                self._checkpoints.write(name, self._state.step, final)
        except Exception:
            self.back_up()
            raise
        if state:
            self.back_up()

    def _save(self, name: str, state: bool | None = None) -> None:
        """Write the checkpoint `name` during training, and a training state if `state` (None: if the settings save states with
        checkpoints). A failed write (full disk, unreachable base model) is reported; training continues, and the next save tries again."""
        self._run.reports.report_all()
        try:
            with self._run.stepper.weights_for("files"):
                self._checkpoints.write(name, self._state.step)
        except (OSError, ProblemsError) as error:
            self._say_unwritten(error, "the checkpoint")
        else:
            self._rotate(lambda: self._checkpoints.remove_old(self._state.step))
        self._checkpoint_timer.restart()
        if state or (state is None and self._state_with_checkpoints):
            self.back_up()

    def _sample(self) -> None:
        """Generate samples with averaged weights, if the settings use these; an error does not end the training."""
        smaller = "use smaller samples (samples.width, samples.height), or none (samples.sample_prompts)"
        self._attempt(
            "Sampling", "check the sample settings", smaller, lambda: self._samples.generate(self._state.step)
        )
        self._sample_timer.restart()

    def _validate(self) -> None:
        """Measure the loss on held-out images or, to rank checkpoints, on training images; at most once for each step."""
        if not self._validation.batches or self._validated_at == self._state.step:
            return

        def measure() -> None:
            result = self._validation.measure(self._run.passes, self._context, self._state.step)
            self._run.reports.report_validation(result)
            self._validated_at = self._state.step
            self._write_best()

        smaller = "lower dataset.train_batch_size, or turn it off (validation.validate_every_n_epochs and _steps to 0)"
        # A checkpoint is ranked by the weights that it contains.
        use: Use = "files" if self._validation.ranks_checkpoints else "samples"
        self._attempt("Validation", "check the held-out images", smaller, measure, use)

    def _write_best(self) -> None:
        """Write best.json, the best checkpoint by validation loss; log it at the end of the run."""
        folder = self._context.folder.path
        for line in self._journal.lines():
            self._best.take(line)
        best = self._best.best(folder)
        write_best(folder, best)
        if best is not None and best.others and self._state.step >= self._run.total:
            self._context.say(f"Best checkpoint: {Path(best.file).name}, lowest {best.what}; {best.sure}")

    def _attempt(self, name: str, fix: str, smaller: str, work: Callable[[], None], use: Use = "samples") -> None:
        """Call `work` with the weights for `use`. An error, or Cancelled, is reported and does not end the training.

        name      of the work, for messages
        fix       fix of an error, as text
        smaller   fix if the device ran out of memory, as text
        use       "samples" or "files": decides whether the EMA replaces the weights
        """
        ran_out = False
        self._run.reports.report_all()
        try:
            with self._run.stepper.weights_for(use):
                work()
        except Cancelled:
            self._context.say(f"{name} was cancelled")
        except Exception as error:
            ran_out = is_out_of_memory(error)
            what = f"{name} failed: the device ran out of memory" if ran_out else f"{name} failed: {error}"
            self._context.say(what, "warning", f"{smaller if ran_out else fix}; training continues")
        if ran_out:  # not within `except`, where the error still refers to tensors
            free_memory()
        self._context.stage("training" if self._state.step < self._run.total else "finishing")

    def _rotate(self, remove_old: Callable[[], None]) -> None:
        """Call `remove_old`. A file that cannot be removed, such as an open one, is reported and does not end the training."""
        try:
            remove_old()
        except OSError as error:
            name = Path(error.filename or "").name
            what = f"An old file cannot be removed ({error.strerror or error})" + (f": {name}" if name else "")
            self._context.say(what, "warning", "close the program that uses it; the next save tries again")

    def _say_unwritten(self, error: OSError | ProblemsError, file: str) -> None:
        """Report that a checkpoint or state, `file` in words, could not be written."""
        step, ends = self._state.step, self._state.step >= self._run.total or self._run.stop_wanted
        intact = f"{file} of step {step} was not saved; earlier files are complete"
        next_attempt = "resume the run to save it" if ends else "the next save tries again"
        if isinstance(error, ProblemsError):
            for problem in error.problems:
                self._context.say(f"{problem.what}: {intact}", "error", f"{problem.fix}; {next_attempt}")
            return
        (problem,) = unwritten(error, "A file cannot be written", "", intact, next_attempt).problems
        self._context.say(problem.what, "error", problem.fix)


class Timer:
    """Measures whether a number of minutes has passed since the last restart (`due`). minutes: None or 0 is never due"""

    def __init__(self, minutes: float | None):
        self._minutes = every(minutes)
        self.restart()

    def restart(self) -> None:
        """Measure the minutes from now on."""
        self._last = time.monotonic() if self._minutes is not None else 0.0

    @property
    def due(self) -> bool:
        """Whether the minutes have passed since the last restart."""
        return self._minutes is not None and time.monotonic() - self._last >= self._minutes * 60


def _is_due(step: int, every_steps: float | None, epoch: int | None, every_epochs: float | None) -> bool:
    """Return whether the step is a multiple of `every_steps`, or the epoch that ends with it a multiple of `every_epochs`; None for an
    interval means never.
    epoch: number of completed epochs if one ends with the step, else None"""
    by_epoch = epoch is not None and every_epochs is not None and epoch % every_epochs == 0
    return by_epoch or (every_steps is not None and step % every_steps == 0)
