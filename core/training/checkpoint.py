"""States to continue from: everything that learning depends on, whole or absent."""

from __future__ import annotations

import platform
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from core.formats.tensor_writer import save_pickle
from core.record import atomic
from core.record.run_folder import newest_state, seal_state, state_step
from core.settings.base import every

if TYPE_CHECKING:
    from core.training.run import Run

STATE_FILE = "training.pt"


def save_state(run: Run) -> Path:
    """Write state/step00000120/: into a new folder, sealed last, then renamed. A whole state of this step is left as it is."""
    states = run.context.folder.states
    states.mkdir(parents=True, exist_ok=True)
    name = f"step{run.state.step:08d}"
    newest = newest_state(states)
    if newest is not None and state_step(newest) == run.state.step:
        return newest
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
    sealed = [path for path in states.iterdir() if (path / "complete.json").is_file() and state_step(path) >= 0]
    sealed.sort(key=lambda path: (state_step(path), path.name))
    for folder in states_no_longer_kept(run, sealed):
        atomic.remove_folder(folder)


def states_no_longer_kept(run: Run, sealed: list[Path]) -> list[Path]:
    """Those to remove of `sealed`, oldest first. The newest is never among them."""
    settings, step = run.job.saving, run.state.step
    steps, epochs = every(settings.save_last_n_steps_state), every(settings.save_last_n_epochs_state)
    if not steps and not epochs:
        return sealed[: -settings.save_last_n_states]
    oldest = []
    if steps:
        oldest.append(step - int(steps))
    if epochs:
        oldest.append(run.plan.epochs.first_update(max(0, run.plan.epoch_of(step) - int(epochs))) + 1)
    return [path for path in sealed[:-1] if state_step(path) < min(oldest)]


def load_state(run: Run) -> bool:
    """Put the newest whole state in force; False when there is none."""
    folder = newest_state(run.context.folder.states)
    if folder is None:
        return False
    use_state(run, folder)
    return True


def use_state(run: Run, folder: Path) -> None:
    """Put this state in force. One made elsewhere is taken, and that is said; one of other weights is refused."""
    import torch

    content = torch.load(folder / STATE_FILE, map_location="cpu", weights_only=True)
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
            "The state was made with another " + ", ".join(other) + ": the result may differ in the last digits",
            "warning",
        )
