"""What is due besides learning: files for people, states to continue from, sample pictures. Each knows when it is due."""

from __future__ import annotations

import errno
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from core.record.cancel import Cancelled
from core.record.events import BackedUp
from core.settings.base import every
from core.training import saving
from core.training.checkpoint import save_state
from core.training.trackers import track_validation

if TYPE_CHECKING:
    from core.training.run import Run


class Tasks:
    """The timetable of a run, made from its settings and its length."""

    def __init__(self, run: Run):
        settings, total = run.job.saving, run.total
        self._save_steps = every(settings.save_every_n_steps)
        self._save_epochs = every(settings.save_every_n_epochs)
        if every(settings.save_n_epoch_ratio):
            self._save_epochs = max(
                1, (run.plan.epoch_of(total - 1) + 1) // int(every(settings.save_n_epoch_ratio) or 1)
            )
        self._with_files, self._at_end = settings.save_state, settings.save_state or settings.save_state_on_train_end
        count = min(int(every(settings.save_n_evenly) or 0), total)
        self._even_steps = {round(total * number / count) for number in range(1, count)}
        self._minutes = every(settings.save_every_minutes)
        self._sample_epochs = every(run.job.samples.sample_every_n_epochs)
        self._sample_steps = None if self._sample_epochs else every(run.job.samples.sample_every_n_steps)
        self._validate_steps = every(run.job.validation.validate_every_n_steps)
        self._validate_epochs = every(run.job.validation.validate_every_n_epochs)
        self._last_backup = time.monotonic()

    # -- moments of a run

    def before_first_step(self, run: Run) -> None:
        """The base model's validation loss and pictures, to compare with; not again when a run continues."""
        if run.state.step > run.state.begun:
            return
        if self._validate_steps or self._validate_epochs:
            self._validate(run)
        if run.job.samples.sample_at_first and run.prompts:
            self._sample(run)

    def after_step(self, run: Run) -> None:
        step = run.state.step
        if step >= run.total:
            return
        epoch_ends = run.plan.ends_epoch(step)
        epoch = run.plan.epoch_of(step)
        if epoch_ends and self._save_epochs and epoch % self._save_epochs == 0:
            self._save(run, saving.epoch_name(run, epoch))
        elif (self._save_steps and step % self._save_steps == 0) or step in self._even_steps:
            self._save(run, saving.step_name(run, step))
        elif self._minutes and time.monotonic() - self._last_backup >= self._minutes * 60:
            self.back_up(run)
        if (self._validate_steps and step % self._validate_steps == 0) or (
            epoch_ends and self._validate_epochs and epoch % self._validate_epochs == 0
        ):
            self._validate(run)
        by_step = self._sample_steps and step % self._sample_steps == 0
        by_epoch = epoch_ends and self._sample_epochs and epoch % self._sample_epochs == 0
        if (by_step or by_epoch) and run.prompts:
            self._sample(run)

    def at_the_end(self, run: Run) -> None:
        """The finished file, which nothing may prevent, then its validation loss and pictures."""
        self._read_back(run)
        self._write_and_back_up(run, saving.final_name(run), final=True, state=self._at_end)
        if self._validate_steps or self._validate_epochs:
            self._validate(run)
        if run.prompts:
            self._sample(run)

    def at_a_stop(self, run: Run) -> None:
        """Stop and save: a file to use and a state to continue from."""
        if run.state.step > run.state.begun:
            self._write_and_back_up(run, saving.step_name(run, run.state.step))

    # -- commands

    def save_now(self, run: Run) -> None:
        self._save(run, saving.step_name(run, run.state.step), state=True)

    def sample_now(self, run: Run) -> None:
        if run.prompts:
            self._sample(run)
        else:
            run.context.say("There are no sample prompts to draw", "warning", "write some before the next run")

    def back_up(self, run: Run) -> None:
        """A state to continue from."""
        self._read_back(run)
        try:
            save_state(run)
        except OSError as error:
            _say_disk(run, error)
            return
        finally:
            self._last_backup = time.monotonic()
        run.context.journal.put(BackedUp(run.state.step))

    # -- doing them

    def _write_and_back_up(self, run: Run, name: str, final: bool = False, state: bool = True) -> None:
        """A file that must be written, then a state: also without the file, for then continuing repeats no step."""
        try:
            with run.method.averaged(run.optimizer, "files"):
                saving.write_file(run, name, final)
        except Exception:
            self.back_up(run)
            raise
        if state:
            self.back_up(run)

    def _save(self, run: Run, name: str, state: bool | None = None) -> None:
        """A periodic file and state. A full disk is said and tried again next time: training goes on."""
        self._read_back(run)
        try:
            with run.method.averaged(run.optimizer, "files"):
                saving.write_file(run, name)
            saving.remove_old(run)
        except OSError as error:
            _say_disk(run, error)
        if self._with_files if state is None else state:
            self.back_up(run)

    def _sample(self, run: Run) -> None:
        """Sample pictures."""
        from core.training.samples import draw_samples

        self._beside(run, "Sampling", "the sample settings", lambda: draw_samples(run))

    def _validate(self, run: Run) -> None:
        """The loss on held-out pictures, where there are some."""
        if not run.validation.held_out:
            return

        def measure() -> None:
            found = run.validation.measure(run)
            run.context.journal.put(found)
            track_validation(run, found)
            run.context.stage("training" if run.state.step < run.total else "finishing")

        self._beside(run, "Validation", "the held-out pictures", measure)

    def _beside(self, run: Run, name: str, look_at: str, work: Callable[[], None]) -> None:
        """Do what only looks at the weights, with those that are for use. What goes wrong there does not end a training."""
        self._read_back(run)
        try:
            with run.method.averaged(run.optimizer, "samples"):
                work()
        except Cancelled:
            run.context.say(f"{name} was left unfinished")
        except Exception as error:
            run.context.say(f"{name} failed: {error}", "warning", f"training goes on; check {look_at}")

    def _read_back(self, run: Run) -> None:
        """Nothing is saved or shown before all its losses are known to be finite."""
        from core.training.loop import report

        report(run, run.losses.read())


def _say_disk(run: Run, error: OSError) -> None:
    what = (
        "The disk is full" if error.errno == errno.ENOSPC else f"A file cannot be written ({error.strerror or error})"
    )
    run.context.say(
        f"{what}: nothing was saved at step {run.state.step}",
        "error",
        "free some space; what was saved before is whole",
    )
