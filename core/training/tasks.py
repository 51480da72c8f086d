"""What is due besides training: checkpoints, training states, samples. Each knows when it is due."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from core.record.best import Told, write_best
from core.record.cancel import Cancelled
from core.record.events import BackedUp
from core.record.journal import Line, Tail, read_lines
from core.record.memory import free_memory, is_out_of_memory
from core.record.problems import unwritten
from core.settings.base import every
from core.training import saving
from core.training.checkpoint import save_state
from core.training.trackers import track_validation

if TYPE_CHECKING:
    from core.methods import Use
    from core.training.run import Run


class Tasks:
    """The timetable of a run, made from its settings and its length."""

    def __init__(self, run: Run):
        settings, total = run.job.saving, run.total
        self._save_steps = every(settings.save_every_n_steps)
        self._save_epochs = saving.epochs_between_saves(settings, run.plan, total)
        self._with_files, self._at_end = settings.save_state, settings.save_state or settings.save_state_on_train_end
        self._even_steps = set(saving.even_steps(settings, total))
        self._minutes = every(settings.save_every_minutes)
        self._sample_epochs = every(run.job.samples.sample_every_n_epochs)
        self._sample_steps = None if self._sample_epochs else every(run.job.samples.sample_every_n_steps)
        self._validate_steps = every(run.job.validation.validate_every_n_steps)
        self._validate_epochs = every(run.job.validation.validate_every_n_epochs)
        if not run.validation.by_hand:  # what finds the best checkpoint is measured at each save
            self._validate_steps = self._validate_epochs = None
        asked = bool(self._validate_steps or self._validate_epochs)
        left_out = run.validation.left_out
        self._validates_first = asked or (run.validation.ranks and 0 not in left_out)
        self._validates_last = asked or (run.validation.ranks and total not in left_out)
        self._last_backup = time.monotonic()
        self._validated_at = -1
        self._told, self._journal = Told(), Tail(run.context.folder.journal_file)

    # -- moments of a run

    def before_first_step(self, run: Run) -> None:
        """The base model's validation loss and images, to compare with. A resumed run catches up on what was due at
        its step when it was stopped or killed."""
        if run.state.step > run.state.begun:
            lines = list(read_lines(run.context.folder.journal_file))
            self._look_if_due(
                run, any(line["kind"] == "saved" and line["step"] == run.state.step for line in lines), lines
            )
            return
        if run.validation.limited:
            run.context.say(run.validation.limited)
        if self._validates_first:
            self._validate(run)
        if run.job.samples.sample_at_first and run.prompts:
            self._sample(run)

    def after_step(self, run: Run) -> None:
        step = run.state.step
        if step >= run.total:
            return
        epoch_ends = run.plan.ends_epoch(step)
        epoch = run.plan.epoch_of(step)
        files = []  # both where both are due, as sd-scripts: programs look for either name
        if epoch_ends and self._save_epochs and epoch % self._save_epochs == 0:
            files.append(saving.epoch_name(run, epoch))
        if (self._save_steps and step % self._save_steps == 0) or (step in self._even_steps and not files):
            files.append(saving.step_name(run, step))
        for name in files:
            self._save(run, name)
        if not files and self._minutes and time.monotonic() - self._last_backup >= self._minutes * 60:
            self.back_up(run)
        self._look_if_due(run, bool(files))

    def at_the_end(self, run: Run) -> None:
        """The final checkpoint, which nothing may prevent, then its validation loss and samples."""
        self._read_back(run)
        self._write_and_back_up(run, saving.final_name(run), final=True, state=self._at_end)
        if self._validates_last:
            self._validate(run)
        if run.prompts:
            self._sample(run)

    def at_a_stop(self, run: Run) -> None:
        """Stop and save: a checkpoint and a training state; then, where it is quick, the validation loss."""
        if run.state.step > run.state.begun:
            self._write_and_back_up(run, saving.step_name(run, run.state.step))
            if run.validation.ranks and run.validation.quick:
                with run.context.after_stop():
                    self._validate(run)
            elif run.validation.ranks:
                run.context.say("The validation loss of this checkpoint will be measured when the run resumes")

    def _look_if_due(self, run: Run, saved: bool, lines: Sequence[Line] = ()) -> None:
        """The validation loss and the samples of this step. lines: of the journal; what is in there is not due.

        saved   a checkpoint of this step was written, which is measured to name the best one
        """
        step = run.state.step
        if step >= run.total:
            return
        kinds = [line["kind"] for line in lines if line.get("step") == step]
        epoch = run.plan.epoch_of(step) if run.plan.ends_epoch(step) else None
        falls = _falls_on(step, self._validate_steps, epoch, self._validate_epochs)
        ranked = saved and run.validation.ranks and step not in run.validation.left_out
        if (falls or ranked) and "validated" not in kinds:
            self._validate(run)
        due = _falls_on(step, self._sample_steps, epoch, self._sample_epochs)
        if due and run.prompts and kinds.count("sample") < len(run.prompts):
            self._sample(run)

    # -- commands

    def save_now(self, run: Run) -> None:
        self._save(run, saving.step_name(run, run.state.step), state=True)
        if run.validation.ranks:
            self._validate(run)

    def sample_now(self, run: Run) -> None:
        if run.prompts:
            self._sample(run)
        else:
            run.context.say("There are no sample prompts", "warning", "write some before the next run")

    def back_up(self, run: Run) -> None:
        """Save a training state."""
        self._read_back(run)
        try:
            save_state(run)
        except OSError as error:
            _say_unwritten(run, error)
            return
        finally:
            self._last_backup = time.monotonic()
        run.context.journal.put(BackedUp(run.state.step))

    # -- doing them

    def _write_and_back_up(self, run: Run, name: str, final: bool = False, state: bool = True) -> None:
        """A checkpoint that must be written, then a state: also without the file, so that resuming repeats no step."""
        try:
            with run.stepper.shown("files"):
                saving.write_file(run, name, final)
        except Exception:
            self.back_up(run)
            raise
        if state:
            self.back_up(run)

    def _save(self, run: Run, name: str, state: bool | None = None) -> None:
        """A periodic checkpoint and state. A full disk is reported and tried again next time; training continues."""
        self._read_back(run)
        try:
            with run.stepper.shown("files"):
                saving.write_file(run, name)
            saving.remove_old(run)
        except OSError as error:
            _say_unwritten(run, error)
        if self._with_files if state is None else state:
            self.back_up(run)

    def _sample(self, run: Run) -> None:
        """Sample images."""
        from core.training.samples import generate_samples

        smaller = "use smaller samples (samples.width, samples.height), or none (samples.sample_prompts)"
        self._beside(run, "Sampling", "check the sample settings", smaller, lambda: generate_samples(run))

    def _validate(self, run: Run) -> None:
        """The loss on held-out images or, to name the best checkpoint, on training ones; once a step."""
        if not run.validation.looks or self._validated_at == run.state.step:
            return

        def measure() -> None:
            found = run.validation.measure(run)
            run.context.journal.put(found)
            self._validated_at = run.state.step
            self._name_best(run)
            track_validation(run, found)
            run.context.stage("training" if run.state.step < run.total else "finishing")

        smaller = "lower dataset.train_batch_size, or turn it off (validation.validate_every_n_epochs and _steps to 0)"
        use: Use = "files" if run.validation.ranks else "samples"  # a checkpoint is judged by the weights that it holds
        self._beside(run, "Validation", "check the held-out images", smaller, measure, use)

    def _name_best(self, run: Run) -> None:
        """Keep which checkpoint is best by now, for the lists of files; at the end say it."""
        folder = run.context.folder.path
        for line in self._journal.lines():
            self._told.take(line)
        best = self._told.best(folder)
        write_best(folder, best)
        if best is not None and best.others and run.state.step >= run.total:
            run.context.say(f"Best checkpoint: {Path(best.file).name}, lowest {best.what}; {best.sure}")

    def _beside(
        self, run: Run, name: str, fix: str, smaller: str, work: Callable[[], None], use: Use = "samples"
    ) -> None:
        """Sample or validate with the weights for this use. Errors there do not end the training.

        fix, smaller   what to do about an error, and where memory ran out
        """
        ran_out = False
        self._read_back(run)
        try:
            with run.stepper.shown(use):
                work()
        except Cancelled:
            run.context.say(f"{name} was cancelled")
        except Exception as error:
            ran_out = is_out_of_memory(error)
            what = f"{name} failed: the device ran out of memory" if ran_out else f"{name} failed: {error}"
            run.context.say(what, "warning", f"{smaller if ran_out else fix}; training continues")
        if ran_out:  # out here the error holds nothing any more
            free_memory()
            run.context.stage("training" if run.state.step < run.total else "finishing")

    def _read_back(self, run: Run) -> None:
        """Nothing is saved or shown before all its losses are known to be finite."""
        from core.training.loop import report

        report(run, run.losses.read())


def _falls_on(step: int, every_steps: float | None, epoch: int | None, every_epochs: float | None) -> bool:
    """Whether a step, or the epoch that ends with it, is one of every so many."""
    by_epoch = epoch is not None and every_epochs is not None and epoch % every_epochs == 0
    return by_epoch or (every_steps is not None and step % every_steps == 0)


def _say_unwritten(run: Run, error: OSError) -> None:
    kept = f"nothing was saved at step {run.state.step}; earlier files are complete"
    then = "let the training continue: the next save tries again"
    (problem,) = unwritten(error, "A file cannot be written", "", kept, then).problems
    run.context.say(problem.what, "error", problem.fix)
