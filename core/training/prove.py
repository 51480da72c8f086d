"""Check that a stopped and resumed run equals an uninterrupted one, to the bit."""

import hashlib
import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import inf
from pathlib import Path
from typing import Any

from core.record import atomic
from core.record.cancel import CancelToken
from core.record.commands import NoCommands
from core.record.context import JobContext
from core.record.journal import Journal, read_lines
from core.record.lazy_torch import torch
from core.record.problems import ProblemsError
from core.record.run_folder import RunFolder, newest_state
from core.record.workspace import Workspace
from core.settings.hub import HubSettings
from core.settings.job import TrainJob
from core.settings.presets.files import dump
from core.training.saving.states import STATE_FILE
from core.training.start import run_training

NOT_TRAINED = ("seconds", "made_with")  # entries of a state that may differ


@dataclass(frozen=True)
class Proof:
    """Comparison of an uninterrupted and a resumed training of the same job.

    whole, resumed   SHA-256 of the last training state of each
    losses_equal     whether the losses of all steps are equal
    different        names of the entries of the training states that differ
    losses_apart     largest relative difference of a step's losses
    """

    steps: int
    stopped_at: int
    whole: str
    resumed: str
    losses_equal: bool
    different: tuple[str, ...] = ()
    losses_apart: float = 0.0

    @property
    def equal(self) -> bool:
        """Whether both trainings have equal training states and losses."""
        return self.whole == self.resumed and self.losses_equal

    def report(self) -> str:
        """Return the comparison as lines for a terminal."""
        lines = [
            f"{self.steps} steps in one go:               {self.whole}",
            f"{self.stopped_at} steps, stopped, {self.steps - self.stopped_at} more steps:  {self.resumed}",
            "equal to the bit" if self.equal else "NOT equal",
        ]
        if self.different:
            lines.append("different: " + ", ".join(self.different[:10]))
        return "\n".join(lines)


def prove(
    job: TrainJob,
    workspace: Workspace,
    device: str,
    steps: int,
    *,
    token: CancelToken | None = None,
    say: Callable[[str], None] = lambda text: None,
) -> Proof:
    """Train `steps` steps of the job twice, once with a stop and resume in the middle, in temporary folders; return the comparison. Raises
    ProblemsError if a training fails, ends early or saves no state; Cancelled.
    say: called with a message before each training"""
    atomic.remove_folder(workspace.private / "proofs")  # left by a killed check
    parent = workspace.private / "proofs" / secrets.token_hex(4)
    short_run = short_job(job, steps)
    half = steps // 2
    token = token or CancelToken()
    try:
        say(f"training {steps} steps in one go")
        whole = RunFolder.create(parent, "whole", dump(short_run))
        _train(short_run, workspace, whole, device, token)
        stopped = RunFolder.create(parent, "broken", dump(short_run))
        say(f"training {half} steps, then stopping")
        _train(short_run, workspace, stopped, device, token, stop_at=half)
        torch.manual_seed(secrets.randbelow(2**31))  # as a new process would have another global seed
        say(f"resuming up to step {steps}")
        _train(short_run, workspace, stopped, device, token)
        first, second = _state_hashes(whole), _state_hashes(stopped)
        different = tuple(name for name in sorted(first.keys() | second.keys()) if first.get(name) != second.get(name))
        losses, resumed_losses = _journal_losses(whole), _journal_losses(stopped)
        return Proof(
            steps,
            half,
            _hash_of_all(first),
            _hash_of_all(second),
            losses == resumed_losses,
            different,
            _largest_difference(losses, resumed_losses),
        )
    finally:
        atomic.remove_folder(parent)


def short_job(job: TrainJob, steps: int) -> TrainJob:
    """Return the job with `steps` steps and a seed, without samples, validation, trackers, uploads and intermediate saves."""
    seed = job.schedule.seed if job.schedule.seed is not None else secrets.randbelow(2**32)
    schedule = {"max_train_steps": steps, "max_train_epochs": None, "seed": seed}
    quiet = {
        "save_every_n_epochs": None,
        "save_every_n_steps": None,
        "save_every_minutes": None,
        "save_n_evenly": None,
        "save_n_epoch_ratio": None,
        "save_state": True,
        "copy_to": None,
    }
    no_samples: dict[str, Any] = {"sample_prompts": [], "sample_prompts_file": None}
    no_validation = {"validate_every_n_steps": None, "validate_every_n_epochs": None}
    return job.with_settings(
        schedule=schedule,
        saving=quiet,
        samples=no_samples,
        validation=no_validation,
        logging={"log_with": "none"},
        hub=HubSettings().model_dump(),
    )


def _train(
    job: TrainJob, workspace: Workspace, folder: RunFolder, device: str, token: CancelToken, stop_at: int | None = None
) -> None:
    """Train the run in `folder` to its end or to step `stop_at`. Raises ProblemsError where training ends in another state."""
    with Journal(folder.path) as journal:
        context = JobContext(workspace, folder, journal, NoCommands(), device, token)
        state = run_training(job, context, stop_at)
    token.check()
    if state != ("done" if stop_at is None else "stopped"):
        what = f"A training of the resume check ended with the state '{state}'"
        raise ProblemsError.one(what, "resume check", "start the training itself to see why", code="proof.unfinished")


def _state_hashes(folder: RunFolder) -> dict[str, str]:
    """Return {name: SHA-256} of the entries of a run's newest training state. Raises ProblemsError where the run has none."""
    state = newest_state(folder.states)
    if state is None:
        what = "A training of the resume check saved no training state"
        raise ProblemsError.one(what, "resume check", "check the free space on the disk", code="proof.no-state")
    hashes: dict[str, str] = {}
    for path in sorted(Path(state).glob("*.pt")):  # with DeepSpeed several, with partitions of the weights
        content = torch.load(path, map_location="cpu", weights_only=True)
        prefix = "" if path.name == STATE_FILE else path.stem
        hashes |= _hashes({name: value for name, value in content.items() if name not in NOT_TRAINED}, prefix)
    return hashes


def _hashes(value: Any, name: str) -> list[tuple[str, str]]:
    """Return [(path of a leaf, SHA-256)] of nested mappings and sequences. Tensors are hashed by dtype, shape and bytes, other values by
    `repr`.
    name: path of `value` itself"""
    if isinstance(value, Mapping):
        return [entry for key, inner in value.items() for entry in _hashes(inner, f"{name}/{key}")]
    if isinstance(value, Sequence) and not isinstance(value, (str, bytes)):
        return [entry for index, inner in enumerate(value) for entry in _hashes(inner, f"{name}/{index}")]
    if isinstance(value, torch.Tensor):
        raw = value.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes() if value.numel() else b""
        about = f"{value.dtype} {tuple(value.shape)}".encode()
        return [(name, hashlib.sha256(about + raw).hexdigest())]
    return [(name, hashlib.sha256(repr(value).encode()).hexdigest())]


def _hash_of_all(content: Mapping[str, str]) -> str:
    """Return the SHA-256 of all entries of a training state, from {name: SHA-256}."""
    lines = "\n".join(f"{name} {digest}" for name, digest in sorted(content.items()))
    return hashlib.sha256(lines.encode()).hexdigest()


def _largest_difference(losses: Mapping[int, float], resumed_losses: Mapping[int, float]) -> float:
    """Return the largest relative difference of a step's losses, from {step: loss}; infinity where the steps differ."""
    if losses.keys() != resumed_losses.keys():
        return inf
    return max((abs(resumed_losses[step] - loss) / max(abs(loss), 1e-12) for step, loss in losses.items()), default=inf)


def _journal_losses(folder: RunFolder) -> dict[int, float]:
    """Return {step: loss} from a run's journal."""
    return {
        step: loss
        for line in read_lines(folder.journal_file)
        if line["kind"] == "steps"
        for step, loss in zip(line["steps"], line["losses"], strict=True)
    }
