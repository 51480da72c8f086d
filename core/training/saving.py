"""Checkpoints: named as sd-scripts names them, written atomically, the oldest removed if the settings say so."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from core.formats.copies import copy_into
from core.record import atomic
from core.record.events import Saved
from core.record.journal import read_lines
from core.record.problems import ProblemsError
from core.record.workspace import resolve_path
from core.settings.base import every
from core.training.facts import file_metadata

if TYPE_CHECKING:
    from core.settings.saving import SavingSettings
    from core.training.plan import Plan
    from core.training.run import Run


def base_name(run: Run) -> str:
    """As the person wrote it: the checks have refused what some system could not take."""
    return run.job.saving.output_name


def epoch_name(run: Run, epoch: int) -> str:
    return f"{base_name(run)}-{epoch:06d}{run.method.extension}"


def step_name(run: Run, step: int) -> str:
    return f"{base_name(run)}-step{step:08d}{run.method.extension}"


def final_name(run: Run) -> str:
    return f"{base_name(run)}{run.method.extension}"


def epochs_between_saves(settings: SavingSettings, plan: Plan, total: int) -> int | None:
    """A file is saved at the end of every so many epochs; None: at none."""
    least = every(settings.save_n_epoch_ratio)
    if least:
        return max(1, (plan.epoch_of(total - 1) + 1) // int(least))
    period = every(settings.save_every_n_epochs)
    return int(period) if period else None


def save_steps(settings: SavingSettings, plan: Plan, total: int) -> list[int]:
    """After which steps a training writes a checkpoint by itself, the last one with them."""
    steps = set(even_steps(settings, total)) | {total}
    if period := every(settings.save_every_n_steps):
        steps |= set(range(int(period), total, int(period)))
    if epochs := epochs_between_saves(settings, plan, total):
        last = plan.epoch_of(total - 1)
        steps |= {plan.epochs.first_update(epoch) for epoch in range(epochs, last + 1, epochs)}
    return sorted(steps)


def even_steps(settings: SavingSettings, total: int) -> list[int]:
    """The steps of checkpoints that are saved evenly over the run, without its end; one a step at most."""
    count = min(int(every(settings.save_n_evenly) or 0), total)
    return [round(total * number / count) for number in range(1, count)]


def write_file(run: Run, name: str, final: bool = False) -> Path:
    """Write a checkpoint under checkpoints/, with the files that belong to it; final ones are also copied where the settings
    say."""
    path = run.context.folder.checkpoints / name
    step = run.state.step
    epoch = run.plan.epoch_of(step)
    path.parent.mkdir(exist_ok=True)
    written = run.method.write(path, file_metadata(run), run.job.saving.save_precision, epoch=epoch, step=step)
    for problem in written:
        run.context.say(problem.what, "warning", problem.fix)
    for each in _all_of(run, path):
        run.context.journal.put(Saved(run.state.step, f"checkpoints/{each.name}", bytes_of(each)))
        if final and run.job.saving.copy_to:
            _copy(run, each)
        run.uploads.send(each, wait=final)
    return path


def _all_of(run: Run, path: Path) -> list[Path]:
    """A file and those that the method writes beside it."""
    return [path, *run.method.beside(path)]


def _copy(run: Run, path: Path) -> None:
    """A copy in the second folder; never over another file of the same name."""
    folder = resolve_path(run.job.saving.copy_to or "")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        run.context.say(f"Copied to {copy_into(path, folder).path}")
    except (OSError, ProblemsError) as error:
        why = error.strerror or error if isinstance(error, OSError) else error.problems[0].what
        run.context.say(
            f"The final checkpoint could not be copied to {folder}: {why}", "error", f"copy it yourself: {path}"
        )


@dataclass(frozen=True)
class OnTheWay:
    """A file saved on the way. epoch: of one saved at an epoch's end, else None; step: what it stands for."""

    path: Path
    step: int
    epoch: int | None


def keep_finished(run: Run) -> None:
    """Of a finished run that is trained further: its file stays, under the name of the step it stands for."""
    path = run.context.folder.checkpoints / final_name(run)
    if not path.exists() or run.state.step >= run.total:
        return
    of_it = [line for line in read_lines(run.context.folder.journal_file) if line["kind"] == "saved"]
    step = next((line["step"] for line in reversed(of_it) if line["file"] == f"checkpoints/{path.name}"), run.total)
    target = path.with_name(step_name(run, step))
    if step < run.total and not target.exists():
        for old, new in zip(_all_of(run, path), _all_of(run, target), strict=True):
            if old.exists():
                atomic.replace(old, new)
                run.context.journal.put(Saved(step, f"checkpoints/{new.name}", bytes_of(new)))


def remove_old(run: Run) -> None:
    """Remove checkpoints that the settings no longer keep; never the final one."""
    gone = no_longer_kept(run.job.saving, saved_on_the_way(run), run.state.step)
    if gone:
        run.uploads.finish()  # one of them may be on its way
    for path in (path for old in gone for path in _all_of(run, old.path)):
        if path.is_dir():
            atomic.remove_folder(path)
        else:
            atomic.remove(path)


def no_longer_kept(settings: SavingSettings, found: Sequence[OnTheWay], step: int) -> list[OnTheWay]:
    """The files to remove, at optimizer step `step`. found: oldest first. An epoch's and a step's of one moment count once."""
    removed: list[OnTheWay] = []
    last, last_epochs, distance = (
        every(settings.save_last_n),
        every(settings.save_last_n_epochs),
        every(settings.save_last_n_steps),
    )
    if last:
        moments = sorted({each.step for each in found})[-int(last) :]
        removed += [each for each in found if each.step not in moments]
    if last_epochs:
        removed += [each for each in found if each.epoch is not None][: -int(last_epochs)]
    if distance:
        period = int(every(settings.save_every_n_steps) or 1)  # others are even saves and those asked for by hand
        removed += [
            each for each in found if each.epoch is None and each.step % period == 0 and each.step < step - distance
        ]
    return list(dict.fromkeys(removed))


def saved_on_the_way(run: Run) -> list[OnTheWay]:
    """Epoch and step files of this run, oldest first by the step they stand for."""
    pattern = re.compile(re.escape(base_name(run)) + r"-(?:step(\d{8,})|(\d{6,}))" + re.escape(run.method.extension))
    found = []
    for path in run.context.folder.checkpoints.iterdir():
        match = pattern.fullmatch(path.name)
        if match:
            epoch = int(match[2]) if match[2] else None
            found.append(OnTheWay(path, int(match[1]) if epoch is None else run.plan.epochs.first_update(epoch), epoch))
    return sorted(found, key=lambda each: (each.step, each.path.name))


def bytes_of(path: Path) -> int:
    """Of a file, or of everything in a folder."""
    files = [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]
    return sum(file.stat().st_size for file in files)
