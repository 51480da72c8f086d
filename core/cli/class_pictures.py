"""webui.py class_pictures: regularisation pictures of a class, made with the base model."""

from __future__ import annotations

from core.cli.jobs import run_job
from core.cli.main import DONE
from core.cli.options import SUBCOMMAND, job_from, split_options
from core.cli.train import get_models
from core.settings.job import ClassPicturesJob


def run(words: list[str]) -> int:
    options = split_options(words, SUBCOMMAND["class_pictures"])
    job = job_from("class_pictures", options)
    assert isinstance(job, ClassPicturesJob)
    get_models(job.model, options)
    from core.generation.class_pictures import what_would_be_made

    print(what_would_be_made(job, options.workspace()))  # what is wrong or missing is said before anything begins
    return DONE if options.values.get("check") else run_job("class_pictures", job, "class pictures", options)
