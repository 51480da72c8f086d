"""webui.py prepare: look at a dataset, and fill the caches that a training will use."""

from __future__ import annotations

from core.cli.jobs import run_job
from core.cli.main import DONE
from core.cli.options import SUBCOMMAND, job_from, split_options
from core.cli.train import check, get_models, say_advice
from core.record.problems import ProblemsError
from core.settings.job import PrepareJob


def run(words: list[str]) -> int:
    options = split_options(words, SUBCOMMAND["prepare"])
    job = job_from("prepare", options)
    assert isinstance(job, PrepareJob)
    say_advice(options.advice)
    epochs = _epochs(options.values.get("debug-dataset"))
    only_look = bool(options.values.get("check")) or epochs > 0
    if not only_look:
        get_models(job.model, options)
    report = check(job, options)
    if not only_look:
        print(report.sentence)
        return run_job("prepare", job, "prepare", options)
    from core.cli.dataset_report import batch_lines, report_lines

    for line in batch_lines(job, report, epochs) if epochs else report_lines(job, report):
        print(line)
    return DONE


def _epochs(text: str | None) -> int:
    """How many epochs to list; 0 when nothing was asked."""
    if text is None:
        return 0
    if not (text.isdecimal() and 0 < int(text) <= 1000):
        raise ProblemsError.one(
            f"--debug-dataset is '{text}'", "command line", "give a number of epochs, from 1 to 1000"
        )
    return int(text)
