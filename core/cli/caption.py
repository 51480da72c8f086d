"""webui.py caption: what the captions of a folder are, and writing the missing ones."""

from __future__ import annotations

from core.cli.jobs import run_job
from core.cli.main import DONE
from core.cli.options import SUBCOMMAND, job_from, split_options
from core.record.problems import errors, raise_if_errors
from core.settings.job import CaptionJob


def run(words: list[str]) -> int:
    from core.captioning.report import caption_report

    options = split_options(words, SUBCOMMAND["caption"])
    job = job_from("caption", options)
    assert isinstance(job, CaptionJob)
    report = caption_report(job)
    raise_if_errors(report.problems)
    print(report.text())
    assert not errors(report.problems)
    if options.values.get("check") or not job.caption.write_missing:
        return DONE
    return run_job("caption", job, "captions", options)
