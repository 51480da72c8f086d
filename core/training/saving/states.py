"""Training states: everything that resuming needs, written completely or not at all."""

from __future__ import annotations

import platform
import shutil
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from core.formats.tensors.pickles import load_state_file
from core.formats.tensors.writer import save_pickle
from core.record import atomic
from core.record.journal import read_lines
from core.record.lazy_torch import torch
from core.record.problems import ProblemsError
from core.record.run_folder import is_whole, seal_state, state_step, state_to_resume, states_in
from core.record.workspace import display_path
from core.settings.base import every
from core.settings.saving import SavingSettings
from core.training.loop.run import Run
from core.training.saving.checkpoints import epochs_between_saves

if TYPE_CHECKING:
    from core.dataset.buckets.plan import Plan
    from core.formats.hub.upload import Uploads
    from core.record.context import JobContext

STATE_FILE = "training.pt"


@dataclass
class States:
    """Saves, loads and removes the training states of a run."""

    run: Run
    uploads: Uploads

    def save(self) -> Path:
        """Write the training state to state/step<8 digits>/ atomically and return the folder. An existing complete state of this step is
        returned instead."""
        run, states = self.run, self.run.context.folder.states
        run.context.warn_if_moved()
        atomic.make_folders(states)
        name = f"step{run.state.step:08d}"
        for state in states_in(states):
            if state_step(state) == run.state.step and is_whole(state):
                return state
        target = next(
            path for path in (states / (name if n == 0 else f"{name}-{n}") for n in range(1000)) if not path.exists()
        )
        temporary = states / f".tmp-{name}"
        atomic.remove_folder(temporary)
        temporary.mkdir()
        try:
            save_pickle(self._content(), temporary / STATE_FILE)
            atomic.sync_file(temporary / STATE_FILE)
            run.stepper.write_parts(temporary)
            seal_state(temporary)
            atomic.replace(temporary, target)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise
        atomic.sync_folder(states)
        self.uploads.send_state(target)
        return target

    def _content(self) -> dict[str, Any]:
        """Return the entries of the state's file: "step", "seconds" trained, "watch" (loss statistics), "made_with" (`environment`), and
        those of the stepper's `state_dict`."""
        run = self.run
        return {
            "step": run.state.step,
            "seconds": run.reports.clock.total,
            **run.stepper.state_dict(),
            "watch": run.reports.watch.state_dict(),
            "made_with": environment(run),
        }

    def remove_old(self) -> None:
        """Remove expired training states; by default all but the newest two, so that one is left if the newest is damaged."""
        step = self.run.state.step
        candidates = [path for path in states_in(self.run.context.folder.states)[::-1] if state_step(path) <= step]
        expired = expired_states(self.run.job.saving, self.run.plan, step, candidates)
        if expired and self.run.job.hub.save_state_to_huggingface:
            self.uploads.finish()  # one of them may be in an upload
        for folder in expired:
            atomic.discard(folder)

    def load(self) -> bool:
        """Load the newest complete training state; return whether one exists. Newer damaged states are renamed with a warning. Raises
        as `state_to_resume`."""
        context = self.run.context
        folder, states = state_to_resume(context.folder.states), states_in(context.folder.states)
        if folder is None:
            if any(line["kind"] == "steps" for line in read_lines(context.folder.journal_file)):
                context.say("This run has no training state yet, so it starts from the beginning", "warning")
            return False
        for damaged in states[: states.index(folder)]:
            _rename_damaged(context, damaged, folder)
        self.use(folder)
        return True

    def use(self, folder: Path) -> None:
        """Load the training state in `folder`. Warns if the machine or precision differs from when it was saved; raises ProblemsError if
        its weights or optimizer state do not fit this run."""
        run, content = self.run, _read_state(folder)
        run.stepper.load(content, folder)
        run.state.step, run.reports.clock.total = content["step"], content["seconds"]
        if "watch" in content:  # states of earlier versions have none
            run.reports.watch.load_state_dict(content["watch"])
        earlier = content["made_with"]
        differences = [
            f"{name} {earlier.get(name)} (now {value})"
            for name, value in environment(run).items()
            if earlier.get(name) != value
        ]
        if differences:
            run.context.say(
                f"This training state was saved with another {', '.join(differences)}: the result may differ in the last digits",
                "warning",
            )


def environment(run: Run) -> dict[str, str]:
    """Return what must be unchanged for a resumed run to be equal bit for bit: {"torch": version, "threads", "device", "processor",
    "precision"}, each as text."""
    return {
        "torch": str(torch.version.__version__),
        "threads": str(torch.get_num_threads()),
        "device": run.context.device,
        "processor": platform.processor() or platform.machine(),
        "precision": run.passes.precision.name,
    }


def expired_states(settings: SavingSettings, plan: Plan, step: int, states: list[Path]) -> list[Path]:
    """Return the training states to remove at optimizer step `step`; never the newest. states: folders, ascending by step"""
    steps, epochs = every(settings.save_last_n_steps_state), every(settings.save_last_n_epochs_state)
    if not steps and not epochs:
        return states[: -settings.save_last_n_states]
    oldest = []
    if steps:
        oldest.append(step - int(steps))
    if epochs:  # sd-scripts counts saves: of every second epoch, two are those of the last four
        epochs_back = int(epochs) * (epochs_between_saves(settings, plan, plan.total) or 1)
        oldest.append(plan.epochs.first_step(max(0, plan.epoch_of(step) - epochs_back)) + 1)
    return [path for path in states[:-1] if state_step(path) < min(oldest)]


def _rename_damaged(context: JobContext, damaged: Path, intact: Path) -> None:
    """Rename the folder of a damaged training state and warn that the run resumes from `intact` instead."""
    fix = "check the disk; this state is no longer used"
    if context.processes.first:
        names = (damaged.with_name(f"damaged-{damaged.name}" + (f"-{n}" if n else "")) for n in range(1000))
        target = next(path for path in names if not path.exists())
        with suppress(OSError):
            atomic.replace(damaged, target)
            fix = f"check the disk; the damaged state was moved to {display_path(target)} and may be deleted"
    what = f"The state of step {state_step(damaged)} is damaged, so the run resumes from step {state_step(intact)}"
    context.say(what, "warning", fix)


def _read_state(folder: Path) -> dict[str, Any]:
    """Return the content of a training state's file. Raises ProblemsError for a file that is not a training state."""
    path = folder / STATE_FILE
    content = load_state_file(path)
    kinds: dict[str, Any] = {"step": int, "seconds": (int, float), "made_with": dict}
    if not isinstance(content, dict) or not all(isinstance(content.get(name), kind) for name, kind in kinds.items()):
        fix = "resume from another state, or start a new run from the last checkpoint"
        what = "The file is not a training state: its step, time or machine is missing"
        raise ProblemsError.one(what, str(path), fix, code="state.invalid")
    return content
