"""webui.py TASK, for tasks without a file in this folder: check the settings, then run the job."""

from core import tasks
from core.cli.jobs import run_job
from core.cli.main import DONE
from core.cli.options import JOB, job_from, split_options
from core.cli.train import download_models


def run(name: str, argv: list[str]) -> int:
    """Run task `name` with these arguments and return the exit code. Raises ProblemsError."""
    options = split_options(argv, JOB, task=name)
    task, job = tasks.named(name), job_from(name, options)
    if "model" in type(job).model_fields:
        download_models(job.model, options)  # type: ignore[attr-defined]
    plan = task.check_job(job, options.workspace())  # errors are reported before anything begins
    if options.values.get("check"):
        print(plan)
        return DONE
    return run_job(name, job, task.title_of(job), options)
