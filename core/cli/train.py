"""webui.py train: a training without the page."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from core.cli.jobs import find_run, run_job
from core.cli.main import DONE
from core.cli.options import SUBCOMMAND, job_from, split_options
from core.record.problems import Problem, ProblemsError, errors
from core.record.processes import launched_processes, only_follows
from core.settings.check import build
from core.settings.job import TrainJob
from core.settings.memory import MemorySettings
from core.settings.presets import parse

if TYPE_CHECKING:
    from core.dataset.report import Report


def run(words: list[str]) -> int:
    options = split_options(words, SUBCOMMAND["train"])
    if "continue" in options.values:
        if options.preset or options.settings or "dataset-config" in options.values:
            raise ProblemsError.one(
                "--continue takes the settings of the run and no others",
                "command line",
                "leave out the preset and the settings",
            )
        folder = find_run(options.values["continue"], options.workspace())
        preset = parse(folder.job(), str(folder.job_file))
        earlier = build(TrainJob, preset.values, str(folder.job_file))
        return run_job("train", earlier, earlier.saving.output_name, options, resume=folder)
    job = job_from("train", options)
    assert isinstance(job, TrainJob)
    if only_follows():
        return run_job("train", job, job.saving.output_name, options)
    job = job.model_copy(update={"memory": with_launched(job.memory)})
    say_advice(options.advice)
    get_models(job.model, options)
    report = check(job, options)
    if options.values.get("check"):
        print(report.sentence)
        return DONE
    return run_job("train", job, job.saving.output_name, options)


def with_launched(memory: MemorySettings) -> MemorySettings:
    """Under `accelerate launch`, as many processes as were launched; otherwise as set."""
    count = launched_processes()
    return memory.model_copy(update={"num_processes": count}) if count > 1 else memory


def check(job: TrainJob, options) -> Report:
    """The preflight: raises ProblemsError with all errors, prints advice, returns what was found."""
    from core.dataset.preflight import preflight
    from core.families.locate import model_problems
    from core.families.token_count import count_tokens
    from core.settings.rules import set_without_effect, training_problems
    from core.training.objective import objective_problems

    with checking_bar() as progress:
        report = preflight(job, options.workspace(), count_tokens=count_tokens, decode=True, progress=progress)
    found = [
        *training_problems(job),
        *set_without_effect(job),
        *report.problems,
        *model_problems(job.model, options.workspace()),
        *objective_problems(job, options.workspace()),
    ]
    if errors(found):
        raise ProblemsError(found)
    say_advice(found)
    return report


@contextmanager
def checking_bar() -> Iterator[Callable[[int, int], None]]:
    """A progress bar for looking at pictures; none where all were looked at before."""
    from tqdm import tqdm

    bars: list[Any] = []

    def on_progress(done: int, total: int) -> None:
        if not bars:
            bars.append(tqdm(total=total, unit="picture", desc="checking pictures", file=sys.stderr, leave=False))
        bars[0].update(done - bars[0].n)

    try:
        yield on_progress
    finally:
        for bar in bars:
            bar.close()


def say_advice(problems: list[Problem]) -> None:
    for problem in problems:
        print(f"advice: {problem}", file=sys.stderr)


def get_models(settings, options) -> None:
    """Download a base model or VAE that is named by a hub id and not there yet, with a progress bar."""
    from core.formats.hub import HubId, download, resolve

    workspace = options.workspace()
    for reference in (settings.base_model, settings.vae):
        if reference is None:
            continue
        found = resolve(reference, workspace.models)
        if isinstance(found, HubId) and not options.values.get("check"):
            _download(found, workspace, download)


def _download(hub_id, workspace, download) -> None:
    from tqdm import tqdm

    with tqdm(unit="B", unit_scale=True, desc=str(hub_id), file=sys.stderr) as bar:

        def on_progress(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        download(hub_id, workspace.models, on_progress)
