"""webui.py pictures: resized, cropped, converted and numbered copies, faces, edges."""

from __future__ import annotations

from core.cli.jobs import run_job
from core.cli.main import DONE
from core.cli.options import SUBCOMMAND, job_from, split_options
from core.settings.job import PicturesJob


def run(words: list[str]) -> int:
    from core.tools.pictures import check_pictures

    options = split_options(words, SUBCOMMAND["pictures"])
    job = job_from("pictures", options)
    assert isinstance(job, PicturesJob)
    folder, output = check_pictures(job, options.workspace())
    if options.values.get("check"):
        print(f"{job.pictures.action}: from {folder} to {output}")
        return DONE
    return run_job("pictures", job, f"{job.pictures.action} {folder.name}", options)
