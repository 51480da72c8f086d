"""Every command that is a task without options of its own: check the settings, then run it."""

from __future__ import annotations

from core import tasks
from core.cli.jobs import run_job
from core.cli.main import DONE
from core.cli.options import JOB, job_from, split_options
from core.cli.train import get_models


def run(name: str, words: list[str]) -> int:
    options = split_options(words, JOB, task=name)
    task, job = tasks.named(name), job_from(name, options)
    if "model" in type(job).model_fields:
        get_models(job.model, options)  # type: ignore[attr-defined]
    would = task.look(job, options.workspace())  # what is wrong or missing is reported before anything begins
    if options.values.get("check"):
        print(would)
        return DONE
    return run_job(name, job, task.title_of(job), options)
