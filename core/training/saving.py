"""Files for people: named as sd-scripts names them, written whole, the oldest taken away when asked."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from core.record import atomic
from core.record.events import Saved
from core.record.workspace import resolve_path
from core.settings.base import every
from core.training.facts import file_metadata

if TYPE_CHECKING:
    from core.training.run import Run

EXTENSION = ".safetensors"


def base_name(run: Run) -> str:
    """As the person wrote it: the checks have refused what some system could not take."""
    return run.job.saving.output_name


def epoch_name(run: Run, epoch: int) -> str:
    return f"{base_name(run)}-{epoch:06d}{EXTENSION}"


def step_name(run: Run, step: int) -> str:
    return f"{base_name(run)}-step{step:08d}{EXTENSION}"


def final_name(run: Run) -> str:
    return f"{base_name(run)}{EXTENSION}"


def write_file(run: Run, name: str, final: bool = False) -> Path:
    """Write a file for people under checkpoints/; a finished one is also copied where the settings say."""
    path = run.context.folder.checkpoints / name
    run.method.write(path, file_metadata(run), run.job.saving.save_precision)
    run.context.journal.put(Saved(run.state.step, f"checkpoints/{name}", path.stat().st_size))
    if final and run.job.saving.copy_to:
        _copy(run, path)
    return path


def _copy(run: Run, path: Path) -> None:
    """A copy in the second folder; never over another file of the same name."""
    folder = resolve_path(run.job.saving.copy_to or "")
    target = folder / path.name
    for number in range(2, 1000):
        if not target.exists():
            break
        target = folder / f"{path.stem}-{number}{path.suffix}"
    try:
        with atomic.open_atomic(target) as temporary:
            shutil.copyfile(path, temporary)
        run.context.say(f"Copied to {target}")
    except OSError as error:
        run.context.say(
            f"The finished file could not be copied to {folder}: {error.strerror}", "error", f"copy it yourself: {path}"
        )


def remove_old(run: Run) -> None:
    """Keep the last n of the files saved on the way; the final file is not among them."""
    keep = every(run.job.saving.save_last_n)
    if not keep:
        return
    for path in saved_on_the_way(run)[: -int(keep)]:
        atomic.remove(path)


def saved_on_the_way(run: Run) -> list[Path]:
    """Epoch and step files of this run, oldest first by the step they stand for."""
    pattern = re.compile(re.escape(base_name(run)) + r"-(?:step(\d{8})|(\d{6}))" + re.escape(EXTENSION))
    found = []
    for path in run.context.folder.checkpoints.iterdir():
        match = pattern.fullmatch(path.name)
        if match:
            step = int(match[1]) if match[1] else run.plan.epochs.first_update(int(match[2]))
            found.append((step, path))
    return [path for _, path in sorted(found)]
