"""webui.py prepare: look at a dataset, and fill the caches that a training will use."""

from __future__ import annotations

from core.cli.jobs import run_job
from core.cli.main import DONE
from core.cli.options import SUBCOMMAND, job_from, split_options
from core.cli.train import check, get_models, say_advice
from core.settings.job import PrepareJob


def run(words: list[str]) -> int:
    options = split_options(words, SUBCOMMAND["prepare"])
    job = job_from("prepare", options)
    assert isinstance(job, PrepareJob)
    say_advice(options.advice)
    get_models(job.model, options)
    print(check(job, options))
    return DONE if options.values.get("check") else run_job("prepare", job, "prepare", options)
