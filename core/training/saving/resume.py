"""Starts a run from a training state of another run or of the Hugging Face hub, or at a later step."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from core.dataset.buckets.plan import Plan
from core.optimization.jumps import jump_advice
from core.record.allowed import may_reach
from core.record.problems import Problem, ProblemsError, raise_if_errors
from core.record.run_folder import RunFolder, is_whole, newest_state, state_step, states_in
from core.record.secrets import secret
from core.record.workspace import Workspace, display_path, resolve_path
from core.settings.base import declared, value_of
from core.settings.check import build
from core.settings.optimization.optimizers import find
from core.settings.presets.files import parse
from core.settings.rules import ineffective
from core.settings.values import shown_value
from core.training.loop.run import Run

if TYPE_CHECKING:
    from core.dataset.report import Report
    from core.settings.job import TrainJob
    from core.training.saving.states import States

WHERE = "resume.resume"
ADDRESS = re.compile(r"(?P<repository>[\w.-]+/[\w.-]+)/(?P<path>[^:]+)(?::(?P<revision>[^:]*))?(?::(?P<kind>[^:]*))?")
KINDS = ("model", "dataset", "space")


def first_step(job: TrainJob, plan: Plan) -> int | None:
    """Return the step to start at, by `initial_step`, else `initial_epoch`; None where neither is set."""
    if job.resume.initial_step is not None:
        return job.resume.initial_step
    if job.resume.initial_epoch is not None:
        return plan.epochs.first_step(job.resume.initial_epoch - 1)
    return None


def start_step_problems(job: TrainJob, workspace: Workspace, report: Report) -> list[Problem]:
    """Return the errors of settings that the training state does not fit, else of a training that would start at or after its last step,
    else the warning of a learning rate that jumps. A missing or damaged training state gives no problem here."""
    settings, step, state = job.resume, None, None
    if settings.resume and not settings.resume_from_huggingface:
        with suppress(ProblemsError):
            state = find_state(settings.resume, workspace, quick=True)
            step = state_step(state)
    folder = RunFolder(state.parent.parent) if state else None
    earlier = _job_of(folder, type(job)) if folder else None
    if earlier and (misfits := list(_misfits(earlier, job))):
        return misfits
    if settings.initial_step is not None or settings.initial_epoch is not None:
        step = first_step(job, Plan(report.placed, job, 0, report.total_steps))
    if step is None or not report.total_steps:
        return []
    ended = _after_end_error(job, step, report.total_steps)
    return ended or (jump_advice(folder, earlier, job, step, report.total_steps) if folder and earlier else [])


def _job_of(folder: RunFolder, kind: type[TrainJob]) -> TrainJob | None:
    """Return the job of a run; None if it is of an earlier version, or the folder is of no run."""
    if not folder.job_file.is_file():
        return None
    try:
        return build(kind, parse(folder.job(), str(folder.job_file)).values, str(folder.job_file))
    except ProblemsError:
        return None


def _misfits(earlier: TrainJob, job: TrainJob) -> Iterator[Problem]:
    """Yield the error of each setting of `job` for which a training state of `earlier` is of another shape. What only the loaded model can
    tell is refused when the state is loaded."""
    if earlier.method.traits != job.method.traits:
        yield _misfit("method.kind", earlier, job)
        return
    optimizers = [find(each.optimizer.optimizer_type) for each in (earlier, job)]
    if len({each.path if each else "" for each in optimizers}) > 1:
        yield _misfit("optimizer.optimizer_type", earlier, job)
    before, after = earlier.network, job.network
    if not job.method.traits.uses_network or before.network_weights or after.network_weights:
        return
    unused = ineffective(earlier).keys() | ineffective(job).keys()
    if before.kind != after.kind:
        yield _misfit("network.kind", earlier, job)
    elif before.layer_dims or after.layer_dims or "network.rank" in unused:
        return
    elif before.rank != after.rank:
        yield _misfit("network.rank", earlier, job)
    elif "network.alpha" not in unused and (before.alpha or before.rank) != (after.alpha or after.rank):
        yield _misfit("network.alpha", earlier, job)


def _misfit(path: str, earlier: TrainJob, job: TrainJob) -> Problem:
    """Return the error of a setting that differs from that of the run which saved the training state."""
    entry = next(each for each in declared(type(job)) if each.path == path)
    saved, used = (shown_value(entry, value_of(each, path)) for each in (earlier, job))
    what = f"{entry.title} is {used}, but the training state was saved with {saved}"
    fix = f"use {saved}, or start from a checkpoint of that run instead"
    return Problem(what, path, fix, code="state.other-settings")


def _after_end_error(job: TrainJob, step: int, total: int) -> list[Problem]:
    """Return the error that training would start at `step`, which is not before its last step `total`; [] where it is before."""
    if step < total:
        return []
    names = [name for name in ("initial_step", "initial_epoch") if getattr(job.resume, name) is not None]
    what = f"Training would start at step {step}, but ends at step {total}"
    where = f"resume.{names[0]}" if names else WHERE
    return [Problem(what, where, "start earlier, or train longer", code="resume.after-end")]


def begin(run: Run, states: States) -> None:
    """Load the training state that the settings name into a new run, and set the step to start at. Raises ProblemsError where no state
    fits, and for a step at or after the end."""
    settings, context = run.job.resume, run.context
    if settings.resume:
        if settings.resume_from_huggingface:
            folder = fetch_state(settings.resume, context.folder.path / "resumed")
        else:
            folder = find_state(settings.resume, context.workspace)
        states.use(folder)
        context.say(f"Starting from the training state of step {run.state.step}: {display_path(folder)}")
    start = first_step(run.job, run.plan)
    if start is not None:
        if settings.resume and start != run.state.step:
            message = f"The training state is from step {run.state.step}; training starts at step {start}, as set"
            context.say(message, "warning")
        run.state.step = start
    raise_if_errors(_after_end_error(run.job, run.state.step, run.total))
    run.state.start_step = run.state.step


def find_state(text: str, workspace: Workspace, *, quick: bool = False) -> Path:
    """Return the folder of a complete training state. Raises ProblemsError where none exists or all are damaged.

    text    path of the state's folder or of its run's folder, or the name of the run
    quick   as in `is_whole`
    """
    candidates = [resolve_path(text)]
    if text == Path(text).name:
        candidates.append(workspace.runs / text)
    candidates = [folder for folder in candidates if may_reach(folder) and os.path.isdir(folder)]
    for folder in candidates:
        if (folder / "complete.json").is_file():
            if is_whole(folder, quick=quick):
                return folder
            what, fix = "This training state is damaged", "choose an older one"
            raise ProblemsError.one(what, display_path(folder), fix, code="state.damaged")
        state = newest_state(folder / "state", quick=quick) or newest_state(folder, quick=quick)
        if state is not None:
            return state
    damaged = next((folder for folder in candidates if states_in(folder / "state") or states_in(folder)), None)
    if damaged is not None:
        what = f"All training states in '{text}' are damaged"
        fix = "choose another run, or start from its last checkpoint"
        raise ProblemsError.one(what, display_path(damaged), fix, code="state.damaged")
    if candidates:
        what = f"There is no training state in '{text}'"
        fix = "choose a run of Atelier, or one of its folders under state/; states of sd-scripts do not work here"
        raise ProblemsError.one(what, WHERE, fix, code="resume.no-state")
    fix = "choose a run, or one of its folders under state/"
    raise ProblemsError.one(f"There is no folder '{text}'", WHERE, fix, code="resume.no-folder")


@dataclass(frozen=True)
class HubState:
    """Address of a training state on the Hugging Face hub.

    repository   owner/name
    path         folder in the repository
    revision     branch or commit; None for the default branch
    kind         of the repository, one of KINDS
    """

    repository: str
    path: str
    revision: str | None
    kind: str


def parse_address(text: str) -> HubState:
    """Parse `owner/name/folder[:revision[:kind]]`; `kind` is one of KINDS, by default "model". Raises ProblemsError for other texts."""
    match = ADDRESS.fullmatch(text.strip())
    if match is None or (match["kind"] or "model") not in KINDS:
        what = f"'{text}' is not the address of a training state on the hub"
        raise ProblemsError.one(what, WHERE, "write owner/name/folder:revision:model", "resume.bad-address")
    return HubState(match["repository"], match["path"].strip("/"), match["revision"] or None, match["kind"] or "model")


def fetch_state(text: str, target: Path) -> Path:
    """Download a training state from the hub into `target` and return its folder; a complete download is not repeated. Raises ProblemsError
    if it fails or is incomplete.
    text: address of the state, see `parse_address`"""
    from huggingface_hub import HfApi

    address = parse_address(text)
    folder = target / address.path.rsplit("/", 1)[-1]
    if is_whole(folder):
        return folder
    try:
        api = HfApi(token=secret("huggingface_token") or False)
        options = {"repo_id": address.repository, "repo_type": address.kind, "revision": address.revision}
        names = [name for name in api.list_repo_files(**options) if name.startswith(address.path + "/")]
        fetched = [Path(api.hf_hub_download(filename=name, local_dir=str(target / "hub"), **options)) for name in names]
    except Exception as error:
        lines = str(error).strip().splitlines()
        what = f"The training state '{text}' could not be downloaded: {lines[0] if lines else error!r}"
        fix = "check the address and the token, or download it by hand"
        raise ProblemsError.one(what, WHERE, fix, code="resume.not-downloaded") from None
    if not fetched:
        what = f"There are no files under '{address.path}' in {address.repository}"
        raise ProblemsError.one(what, WHERE, "write the folder of the training state", code="resume.no-files")
    folder.mkdir(parents=True, exist_ok=True)
    for path in fetched:
        path.replace(folder / path.name)
    if not is_whole(folder):
        what, fix = "The download is not a complete training state", "choose a folder that contains complete.json"
        raise ProblemsError.one(what, text, fix, code="state.incomplete")
    return folder
