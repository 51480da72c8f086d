"""webui.py class_images: regularization images of a class, made with the base model."""

from __future__ import annotations

from core.cli.jobs import run_job
from core.cli.main import DONE
from core.cli.options import SUBCOMMAND, job_from, split_options
from core.cli.train import get_models
from core.settings.job import ClassImagesJob


def run(words: list[str]) -> int:
    options = split_options(words, SUBCOMMAND["class_images"])
    job = job_from("class_images", options)
    assert isinstance(job, ClassImagesJob)
    get_models(job.model, options)
    from core.generation.class_images import what_would_be_made

    print(what_would_be_made(job, options.workspace()))  # what is wrong or missing is said before anything begins
    return DONE if options.values.get("check") else run_job("class_images", job, "regularization images", options)
