"""Starts a run from a training state of another run or of the Hugging Face hub, or at a later step."""

from __future__ import annotations

import os
import re
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
from core.settings.check import build
from core.settings.presets.files import parse
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
    """Return the error of a training that would start at or after its last step, else the warning of a learning rate that jumps. A missing
    or damaged training state gives no problem here."""
    settings, step, state = job.resume, None, None
    if settings.resume and not settings.resume_from_huggingface:
        with suppress(ProblemsError):
            state = find_state(settings.resume, workspace, quick=True)
            step = state_step(state)
    if settings.initial_step is not None or settings.initial_epoch is not None:
        step = first_step(job, Plan(report.placed, job, 0, report.total_steps))
    if step is None or not report.total_steps:
        return []
    return _after_end_error(job, step, report.total_steps) or _rate_jump_warning(job, state, step, report.total_steps)


def _rate_jump_warning(job: TrainJob, state: Path | None, step: int, total: int) -> list[Problem]:
    """Return the warning that the learning rate at step `step` differs much from that of the run which saved `state`; [] without a jump, a
    state, or a readable run.
    total: last step of the new training"""
    folder = RunFolder(state.parent.parent) if state else None
    if folder is None or not folder.job_file.is_file():
        return []
    try:
        earlier_job = build(type(job), parse(folder.job(), str(folder.job_file)).values, str(folder.job_file))
    except ProblemsError:  # of an earlier version, or of no run
        return []
    return jump_advice(folder, earlier_job, job, step, total)


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
