"""webui.py train: train without the page."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

from core.cli.jobs import find_run, inbox_entries, run_job, stored_queue
from core.cli.main import DONE, FAILED
from core.cli.options import COMMAND_OPTIONS, Options, job_from, split_options
from core.engine.extend import check_not_queued, extend, extended, job_to_resume
from core.engine.moved_model import with_moved_model
from core.engine.owner import Ownership
from core.optimization.jumps import jump_advice
from core.record.machine import gpu_memory
from core.record.problems import Problem, ProblemsError, errors, errors_first, raise_any
from core.record.processes import check_launch, is_follower, launched_processes
from core.record.run_folder import RunFolder, newest_state, state_step
from core.settings.base import Settings
from core.settings.flags import read_flags
from core.settings.job import TrainJob
from core.settings.memory import MemorySettings
from core.settings.model import ModelSettings

if TYPE_CHECKING:
    from core.dataset.report import Report
    from core.formats.hub.references import HubId


FIRST_ALONE = ("check", "probe", "queue")  # what the first of several processes does by itself


def run(argv: list[str]) -> int:
    """Run `webui.py train` with these arguments and return the exit code. Raises ProblemsError."""
    options = split_options(argv, COMMAND_OPTIONS["train"], task="train")
    check_launch()
    if is_follower() and not options.values.keys().isdisjoint(FIRST_ALONE):
        return DONE
    if "continue" in options.values:
        return resume(options)
    return train_job(job_from("train", options), options)


def train_job(job: Settings, options: Options, resume: RunFolder | None = None) -> int:
    """Train after the checks, or do only what an option such as --check says. Return the exit code.
    resume: folder of the run whose resuming --check or --probe examines"""
    assert isinstance(job, TrainJob)
    if is_follower():
        return run_job("train", job, job.saving.output_name, options)
    job = job.model_copy(update={"memory": with_launched_processes(job.memory)})
    print_advice(options.advice)
    report = check(job, options, resume=resume)
    if options.values.get("check"):
        state = newest_state(resume.states) if resume else None
        resumes = f"Resumes from step {state_step(state)}" if state else ""
        for line in filter(None, (report.sentence, report.held_out, resumes)):
            print(line)
        return DONE
    if options.values.get("probe"):
        return run_job("probe", job, job.saving.output_name, options)
    if "prove" in options.values:
        return prove_resume(job, options)
    return run_job("train", job, job.saving.output_name, options)


def resume(options: Options) -> int:
    """Resume the run of --continue with its own settings and changes to length, saving, samples and logging. Return the exit code.

    --check and --probe only examine the changed settings. Raises ProblemsError for an unknown run and for other changes.
    """
    raise_any(options.problems)
    if options.preset or options.argument or "dataset-config" in options.values:
        what, fix = "--continue takes the settings of the run", "leave out the preset and the dataset file"
        raise ProblemsError.one(what, "command line", fix, "cli.continue-with-preset")
    folder = find_run(options.values["continue"], options.workspace())
    changes, wrong = read_flags(TrainJob, options.settings)
    raise_any(wrong)
    before = job_to_resume(folder)
    if "check" in options.values or "probe" in options.values:
        job = with_moved_model(extended(before, changes, folder), folder, options.workspace())
        print_advice(jump_advice(folder, before, job))
        return train_job(job, options, resume=folder)
    if "queue" in options.values:
        workspace = options.workspace()
        check_not_queued(folder, [*stored_queue(workspace).entries, *inbox_entries(workspace)])
    elif changes and not is_follower():  # a folder in use is refused before the run's settings change
        Ownership(options.workspace(), f"train --continue {folder.name}").release()
    job = extend(folder, changes) if changes and not is_follower() else before
    job = with_moved_model(job, folder, options.workspace())
    print_advice(jump_advice(folder, before, job))
    return run_job("train", job, job.saving.output_name, options, resume=folder)


def prove_resume(job: TrainJob, options: Options) -> int:
    """Train the number of steps of --prove in one run, then in two with a resume, and compare the results. Return the exit code. Raises
    ProblemsError for an invalid number."""
    from core.training.prove import prove

    text = str(options.values["prove"])
    if not text.isdigit() or int(text) < 2:
        what = f"'{text}' is not a number of steps"
        raise ProblemsError.one(what, "--prove", "use 2 or more, such as 10", "cli.bad-steps")
    workspace, device = options.workspace(), options.device()
    with Ownership(workspace, "--prove on the command line"):
        proof = prove(job, workspace, device, int(text), say=lambda line: print(line, file=sys.stderr))
    print(proof.report())
    return DONE if proof.equal else FAILED


def with_launched_processes(memory: MemorySettings) -> MemorySettings:
    """Return memory settings with num_processes as started by `accelerate launch`; unchanged without it."""
    count = launched_processes()
    return memory.model_copy(update={"num_processes": count}) if count > 1 else memory


def check(job: TrainJob, options: Options, *, trains: bool = True, resume: RunFolder | None = None) -> Report:
    """Run the preflight, print its advice and return its report. Raises ProblemsError with all errors. Without errors a model
    named by a hub id is downloaded, except with --check.

    trains  whether a training follows: then the device is checked, and no image may both train and validate
    resume  folder of the run to resume
    """
    from core.dataset.preflight import preflight
    from core.families.locate import base_model_family
    from core.families.token_count import count_tokens
    from core.settings.rules import set_without_effect
    from core.training.checks.before_start import problems_before_start, upload_problems
    from core.training.checks.recipe_fit import recipe_problems
    from core.training.saving.checkpoints import bytes_of

    workspace, device = options.workspace(), options.device() if trains else None
    new_run = resume is None or not resume.states.is_dir()
    written = bytes_of(resume.checkpoints) + bytes_of(resume.states) if resume else 0
    with checking_bar() as progress:
        report = preflight(job, workspace, count_tokens=count_tokens, decode=True, progress=progress)
    problems = problems_before_start(job, workspace, report, device, new_run=new_run, copies=trains, model=False)
    if trains and not errors(problems):
        problems += upload_problems(job)
    if not errors(problems):
        download_models(job.model, options)
    if not errors(problems) or options.values.get("check") or not _to_download(job.model, options):
        problems += problems_before_start(
            job, workspace, report, device, new_run=new_run, copies=trains, written=written
        )
        problems += recipe_problems(
            options.preset_read, base_model_family(job.model, workspace), gpu_memory(device) if device else None
        )
    problems = errors_first([*problems, *set_without_effect(job)])
    if errors(problems):
        raise ProblemsError(problems)
    print_advice(problems)
    return report


@contextmanager
def checking_bar() -> Iterator[Callable[[int, int], None]]:
    """Context that yields a callback (done, total) -> None, which shows a progress bar of checked images."""
    from tqdm import tqdm

    bars: list[Any] = []

    def on_progress(done: int, total: int) -> None:
        if not bars:
            bars.append(tqdm(total=total, unit="image", desc="checking images", file=sys.stderr, leave=False))
        bars[0].update(done - bars[0].n)

    try:
        yield on_progress
    finally:
        for bar in bars:
            bar.close()


def print_advice(problems: list[Problem]) -> None:
    """Print problems to stderr with their levels."""
    for problem in problems:
        print(f"{problem.level}: {problem}", file=sys.stderr)


def download_models(settings: ModelSettings, options: Options) -> None:
    """Download the base model and VAE if they are hub ids and not on this machine, with a progress bar; not with --check. Raises
    ProblemsError."""
    from core.formats.hub.references import download

    if options.values.get("check"):
        return
    for hub_id in _to_download(settings, options):
        _download(hub_id, options.workspace(), download)


def _to_download(settings: ModelSettings, options: Options) -> list[HubId]:
    """Return the hub ids of base model and VAE that are not on this machine. Invalid names are skipped: the checks report them."""
    from core.formats.hub.references import HubId, resolve

    downloads = []
    for reference in (settings.base_model, settings.vae):
        with suppress(ProblemsError):
            space = options.workspace()
            path = resolve(reference, space.models, space.outputs) if reference else None
            downloads += [path] if isinstance(path, HubId) else []
    return downloads


def _download(hub_id, workspace, download) -> None:
    """Download a model to the models folder of `workspace` with a progress bar.

    hub_id     `HubId` of the model
    download   (hub id, models folder, on_progress(bytes done, bytes in all))
    """
    from tqdm import tqdm

    with tqdm(unit="B", unit_scale=True, desc=str(hub_id), file=sys.stderr) as bar:

        def on_progress(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        download(hub_id, workspace.models, on_progress)
