"""Checkpoints: named as in sd-scripts, written atomically, and removed when they expire by the settings."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from core.formats.copies import copy_into
from core.networks.misread import file_misread_problems
from core.record import atomic
from core.record.events import Saved
from core.record.journal import read_lines
from core.record.kept import follow_renamed, read_kept
from core.record.problems import ProblemsError
from core.record.workspace import resolve_path
from core.settings.base import every
from core.settings.saving import SavingSettings

if TYPE_CHECKING:
    from core.dataset.buckets.plan import Plan
    from core.formats.hub.upload import Uploads
    from core.methods import Method
    from core.record.context import JobContext
    from core.training.saving.facts import FileFacts


def epochs_between_saves(settings: SavingSettings, plan: Plan, total: int) -> int | None:
    """Return the number of epochs from one saved checkpoint to the next, by `save_n_epoch_ratio`, else `save_every_n_epochs`; None where
    neither is set.
    total: optimizer steps of the run"""
    saves = every(settings.save_n_epoch_ratio)
    if saves:
        return max(1, (plan.epoch_of(total - 1) + 1) // int(saves))
    period = every(settings.save_every_n_epochs)
    return int(period) if period else None


def planned_saves(settings: SavingSettings, plan: Plan, total: int) -> dict[int, tuple[str, ...]]:
    """Return {step: kinds of files, "epoch" and "step"} for the checkpoints that the settings plan before the last step.

    Where an epoch file and a step file are both due, both are saved, as in sd-scripts: other programs look for either name.
    total   optimizer steps of the run
    """
    saves: dict[int, tuple[str, ...]] = {}
    if epochs := epochs_between_saves(settings, plan, total):
        last = plan.epoch_of(total - 1)
        saves = {plan.epochs.first_step(epoch): ("epoch",) for epoch in range(epochs, last + 1, epochs)}
    if period := every(settings.save_every_n_steps):
        for step in range(int(period), total, int(period)):
            saves[step] = (*saves.get(step, ()), "step")
    for step in even_steps(settings, total):
        saves.setdefault(step, ("step",))
    return saves


def save_steps(settings: SavingSettings, plan: Plan, total: int) -> list[int]:
    """Return the steps after which a training of `total` steps saves a checkpoint, ascending, including the last step."""
    return sorted({*planned_saves(settings, plan, total), total})


def even_steps(settings: SavingSettings, total: int) -> list[int]:
    """Return the steps, before the last step `total`, at which `save_n_evenly` checkpoints are saved at equal intervals; at most one
    checkpoint a step."""
    count = min(int(every(settings.save_n_evenly) or 0), total)
    return [round(total * number / count) for number in range(1, count)]


@dataclass(frozen=True)
class Intermediate:
    """An intermediate checkpoint file.

    step    optimizer steps that its weights were trained for
    epoch   number of completed epochs in its name; None for a file named by its step
    """

    path: Path
    step: int
    epoch: int | None


@dataclass
class Checkpoints:
    """Writes, copies, uploads and removes the checkpoints of a run. facts: source of the files' metadata"""

    settings: SavingSettings
    context: JobContext
    plan: Plan
    method: Method
    uploads: Uploads
    facts: FileFacts

    def epoch_name(self, epoch: int) -> str:
        """Return the file name of the checkpoint after `epoch` epochs, as in sd-scripts."""
        return f"{self.settings.output_name}-{epoch:06d}{self.method.extension}"

    def step_name(self, step: int) -> str:
        """Return the file name of the checkpoint after `step` optimizer steps, as in sd-scripts."""
        return f"{self.settings.output_name}-step{step:08d}{self.method.extension}"

    @property
    def final(self) -> Path:
        """Path of the final checkpoint, which may not exist yet."""
        return self.context.folder.checkpoints / f"{self.settings.output_name}{self.method.extension}"

    def write(self, name: str, step: int, final: bool = False) -> Path:
        """Write the checkpoint file `name` and the method's extra files to the run folder; return the checkpoint's path.

        step    optimizer steps done
        final   it is the final checkpoint: also copy it to `copy_to`, wait for its upload, and warn if other programs would misread it
        """
        self.context.warn_if_moved()
        path = self.context.folder.checkpoints / name
        atomic.make_folders(path.parent)
        written = self.method.write(
            path, self.facts.metadata(step), self.settings.save_precision, epoch=self.plan.epoch_of(step), step=step
        )
        for problem in written:
            self.context.warn(problem)
        for each in self._files_of(path):
            self.context.journal.put(Saved(step, f"checkpoints/{each.name}", bytes_of(each)))
            if final and self.settings.copy_to:
                self._copy(each)
            self.uploads.send(each, wait=final)
        if final:
            for problem in file_misread_problems(path):
                self.context.warn(problem)
        return path

    def _files_of(self, path: Path) -> list[Path]:
        """Return the paths of a checkpoint and of the files that the method writes next to it."""
        return [path, *self.method.extra_files(path)]

    def _copy(self, path: Path) -> None:
        """Copy a file to the folder `copy_to` without overwriting others. A failed copy is reported as an error message."""
        folder = resolve_path(self.settings.copy_to or "")
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self.context.say(f"Copied to {copy_into(path, folder).path}")
        except (OSError, ProblemsError) as error:
            why = error.strerror or error if isinstance(error, OSError) else error.problems[0].what
            what = f"The final checkpoint could not be copied to {folder}: {why}"
            self.context.say(what, "error", f"copy it yourself: {path}")

    def rename_final(self, start_step: int) -> None:
        """Rename the final checkpoint of a finished run to a step file of the step it was saved at. Called before the run is trained
        further from `start_step`; does nothing if that is the end of the run."""
        path, total = self.final, self.plan.total
        if not path.exists() or start_step >= total:
            return
        saved = [line for line in read_lines(self.context.folder.journal_file) if line["kind"] == "saved"]
        step = next((line["step"] for line in reversed(saved) if line["file"] == f"checkpoints/{path.name}"), total)
        target = path.with_name(self.step_name(step))
        if step < total and not target.exists():
            for old, new in zip(self._files_of(path), self._files_of(target), strict=True):
                if old.exists():
                    follow_renamed(self.context.folder.path, old.name, new.name)  # its name is the next final one's
                    atomic.replace(old, new)
                    self.context.journal.put(Saved(step, f"checkpoints/{new.name}", bytes_of(new)))

    def remove_old(self, step: int) -> None:
        """Remove the checkpoints that have expired by `step`, except the final one, those protected by the user, and those of later steps,
        which are left from before the run was resumed from an older state."""
        protected = read_kept(self.context.folder.path)
        candidates = [
            each
            for each in self.intermediate()
            if each.step <= step and f"checkpoints/{each.path.name}" not in protected
        ]
        expired = expired_checkpoints(self.settings, candidates, step)
        if expired:
            self.uploads.finish()  # one of them may be in an upload
        for path in (path for old in expired for path in self._files_of(old.path)):
            atomic.discard(path)

    def intermediate(self) -> list[Intermediate]:
        """Return the epoch and step files of this run, ascending by step."""
        name, extension = re.escape(self.settings.output_name), re.escape(self.method.extension)
        pattern = re.compile(name + r"-(?:step(\d{8,})|(\d{6,}))" + extension)
        files = []
        for path in self.context.folder.checkpoints.iterdir():
            if match := pattern.fullmatch(path.name):
                epoch = int(match[2]) if match[2] else None
                step = int(match[1]) if epoch is None else self.plan.epochs.first_step(epoch)
                files.append(Intermediate(path, step, epoch))
        return sorted(files, key=lambda each: (each.step, each.path.name))


def expired_checkpoints(settings: SavingSettings, files: Sequence[Intermediate], step: int) -> list[Intermediate]:
    """Return the checkpoints to remove after optimizer step `step`, by the `save_last_n` settings.
    files: ascending by step; `save_last_n` counts the epoch file and the step file of one step as one"""
    removed: list[Intermediate] = []
    last, last_epochs = every(settings.save_last_n), every(settings.save_last_n_epochs)
    last_steps = every(settings.save_last_n_steps)
    if last:
        newest = sorted({each.step for each in files})[-int(last) :]
        removed += [each for each in files if each.step not in newest]
    if last_epochs:
        removed += [each for each in files if each.epoch is not None][: -int(last_epochs)]
    if last_steps:
        period = int(every(settings.save_every_n_steps) or 1)  # others are from save_n_evenly or commands
        removed += [
            each for each in files if each.epoch is None and each.step % period == 0 and each.step < step - last_steps
        ]
    return list(dict.fromkeys(removed))


def bytes_of(path: Path) -> int:
    """Return the size in bytes of a file, or of all files in a folder."""
    files = [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]
    return sum(file.stat().st_size for file in files)
