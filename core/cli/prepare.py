"""webui.py prepare: check a dataset, and fill the caches that its training will use."""

from __future__ import annotations

from typing import TYPE_CHECKING

from core.cli.jobs import run_job
from core.cli.main import DONE
from core.cli.options import COMMAND_OPTIONS, Options, job_from, split_options
from core.cli.train import check, checking_bar, print_advice
from core.record.problems import ProblemsError, errors
from core.settings.job import PrepareJob

if TYPE_CHECKING:
    from core.dataset.report import Report


def run(argv: list[str]) -> int:
    """Run `webui.py prepare` with these arguments and return the exit code. Raises ProblemsError."""
    options = split_options(argv, COMMAND_OPTIONS["prepare"], task="prepare")
    job = job_from("prepare", options)
    assert isinstance(job, PrepareJob)
    print_advice(options.advice)
    epochs = _epochs(options.values.get("debug-dataset"))
    only_look = bool(options.values.get("check")) or epochs > 0
    report = check(job, options, trains=False)
    if not only_look:
        for line in filter(None, (report.sentence, report.held_out)):
            print(line)
        return run_job("prepare", job, "prepare", options)
    from core.cli.dataset_report import batch_lines, report_lines

    for line in batch_lines(job, report, epochs) if epochs else ():
        print(line)
    if options.values.get("check"):
        for line in report_lines(job, report):
            print(line)
        _print_findings(report, options)
    return DONE


def _print_findings(report: Report, options: Options) -> None:
    """Print the findings of the dataset doctor. Raises ProblemsError if one is an error: an image in both training and validation."""
    from core.dataset.doctor.examine import examine

    with checking_bar() as progress:
        findings = examine(report, options.workspace().private / "index.sqlite", progress=progress)
    # The check has listed images without captions.
    problems = [finding.problem() for finding in findings if finding.kind != "no caption"]
    if errors(problems):
        raise ProblemsError(problems)
    print_advice(problems)


def _epochs(text: str | None) -> int:
    """Parse the value of --debug-dataset; 0 for None. Raises ProblemsError unless it is 1 to 1000."""
    if text is None:
        return 0
    if not (text.isdecimal() and 0 < int(text) <= 1000):
        fix = "use a number of epochs, 1 to 1000"
        raise ProblemsError.one(f"--debug-dataset is '{text}'", "command line", fix, "cli.bad-epochs")
    return int(text)
