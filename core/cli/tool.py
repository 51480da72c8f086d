"""webui.py tool: small jobs on files."""

from __future__ import annotations

from core.cli.jobs import run_job
from core.cli.main import DONE
from core.cli.options import SUBCOMMAND, job_from, split_options
from core.settings.job import ToolJob


def run(words: list[str]) -> int:
    options = split_options(words, SUBCOMMAND["tool"])
    job = job_from("tool", options)
    assert isinstance(job, ToolJob)
    if options.values.get("check"):
        print("The settings are right.")
        return DONE
    return run_job("tool", job, job.tool.name, options)
