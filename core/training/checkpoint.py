"""Training states: everything that training depends on, complete or absent."""

from __future__ import annotations

import platform
import shutil
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from core.formats.pickles import load_state_file
from core.formats.tensor_writer import save_pickle
from core.record import atomic
from core.record.journal import read_lines
from core.record.problems import ProblemsError
from core.record.run_folder import is_whole, seal_state, state_step, states_in
from core.record.workspace import display_path
from core.settings.base import every
from core.training.saving import epochs_between_saves

if TYPE_CHECKING:
    from core.training.run import Run

STATE_FILE = "training.pt"


def save_state(run: Run) -> Path:
    """Write state/step00000120/: into a new folder, sealed last, then renamed. An existing complete state of this step is kept."""
    states = run.context.folder.states
    states.mkdir(parents=True, exist_ok=True)
    name = f"step{run.state.step:08d}"
    for there in states_in(states):
        if state_step(there) == run.state.step and is_whole(there):
            return there
    target = next(
        path for path in (states / (name if n == 0 else f"{name}-{n}") for n in range(1000)) if not path.exists()
    )
    temporary = states / f".tmp-{name}"
    atomic.remove_folder(temporary)
    temporary.mkdir()
    try:
        save_pickle(_content(run), temporary / STATE_FILE)
        atomic.sync_file(temporary / STATE_FILE)
        run.stepper.write_parts(temporary)
        seal_state(temporary)
        atomic.replace(temporary, target)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    atomic.sync_folder(states)
    _remove_old(run, states)
    run.uploads.send_state(target)
    return target


def _content(run: Run) -> dict[str, Any]:
    return {
        "step": run.state.step,
        "seconds": run.state.seconds,
        **run.stepper.state_dict(),
        "watch": run.watch.state_dict(),
        "made_with": made_with(run),
    }


def made_with(run: Run) -> dict[str, str]:
    """What bit-equality of a resumed run depends on besides the settings."""
    import torch

    return {
        "torch": str(torch.__version__),
        "threads": str(torch.get_num_threads()),
        "device": run.context.device,
        "processor": platform.processor() or platform.machine(),
        "precision": run.precision.name,
    }


def _remove_old(run: Run, states: Path) -> None:
    """Keep the newest states, by default two, so that a damaged newest leaves another."""
    there = [path for path in states_in(states)[::-1] if state_step(path) <= run.state.step]
    gone = states_no_longer_kept(run, there)
    if gone and run.job.hub.save_state_to_huggingface:
        run.uploads.finish()  # one of them may be on its way
    for folder in gone:
        atomic.remove_folder(folder)


def states_no_longer_kept(run: Run, there: list[Path]) -> list[Path]:
    """Those to remove of `there`, oldest first. The newest is never among them."""
    settings, step = run.job.saving, run.state.step
    steps, epochs = every(settings.save_last_n_steps_state), every(settings.save_last_n_epochs_state)
    if not steps and not epochs:
        return there[: -settings.save_last_n_states]
    oldest = []
    if steps:
        oldest.append(step - int(steps))
    if epochs:  # sd-scripts counts saves: of every second epoch, two are those of the last four
        back = int(epochs) * (epochs_between_saves(run.job.saving, run.plan, run.total) or 1)
        oldest.append(run.plan.epochs.first_update(max(0, run.plan.epoch_of(step) - back)) + 1)
    return [path for path in there[:-1] if state_step(path) < min(oldest)]


def load_state(run: Run) -> bool:
    """Load the newest complete state; False when there is none. Newer damaged ones are moved aside with a warning.
    ProblemsError where all are damaged: training must not restart silently."""
    there = states_in(run.context.folder.states)
    folder = next((path for path in there if is_whole(path)), None)
    if folder is None and there:
        what = "All training states of this run are damaged"
        fix = "start a new run from its last checkpoint (network.network_weights, model.base_model)"
        raise ProblemsError.one(what, str(run.context.folder.states), fix, code="state.damaged")
    if folder is None:
        if any(line["kind"] == "steps" for line in read_lines(run.context.folder.journal_file)):
            run.context.say("This run has no training state yet, so it starts from the beginning", "warning")
        return False
    for damaged in there[: there.index(folder)]:
        _put_aside(run, damaged, folder)
    use_state(run, folder)
    return True


def _put_aside(run: Run, damaged: Path, whole: Path) -> None:
    """Rename a damaged state, so that it is not counted among those to keep."""
    fix = "check the disk; this state is not used any more"
    if run.context.processes.first:
        free = (damaged.with_name(f"damaged-{damaged.name}" + (f"-{n}" if n else "")) for n in range(1000))
        target = next(path for path in free if not path.exists())
        with suppress(OSError):
            atomic.replace(damaged, target)
            fix = f"check the disk; the damaged state was moved to {display_path(target)} and may be deleted"
    what = f"The state of step {state_step(damaged)} is damaged, so the run resumes from step {state_step(whole)}"
    run.context.say(what, "warning", fix)


def _read_state(folder: Path) -> dict[str, Any]:
    """The content of a state's file. Raises ProblemsError for a file that is not a training state."""
    path = folder / STATE_FILE
    content = load_state_file(path)
    step, seconds, made = ("step", int), ("seconds", (int, float)), ("made_with", dict)
    if not isinstance(content, dict) or not all(
        isinstance(content.get(name), kind) for name, kind in (step, seconds, made)
    ):
        fix = "resume from another state, or start a new run from the last checkpoint"
        what = "The file is not a training state: its step, time or machine is missing"
        raise ProblemsError.one(what, str(path), fix, code="state.invalid")
    return content


def use_state(run: Run, folder: Path) -> None:
    """Load this state. One made on another machine gets a warning; one of other weights raises ProblemsError."""
    content = _read_state(folder)
    run.stepper.load(content, folder)
    run.state.step, run.state.seconds = content["step"], content["seconds"]
    if "watch" in content:  # states of earlier versions have none
        run.watch.load_state_dict(content["watch"])
    now = made_with(run)
    other = [
        f"{name} {content['made_with'].get(name)} (now {value})"
        for name, value in now.items()
        if content["made_with"].get(name) != value
    ]
    if other:
        run.context.say(
            "This training state was saved with another "
            + ", ".join(other)
            + ": the result may differ in the last digits",
            "warning",
        )
