"""webui.py images: resized, cropped, converted and numbered copies, faces, edges."""

from __future__ import annotations

from core.cli.jobs import run_job
from core.cli.main import DONE
from core.cli.options import SUBCOMMAND, job_from, split_options
from core.settings.job import ImagesJob


def run(words: list[str]) -> int:
    from core.tools.images import check_images

    options = split_options(words, SUBCOMMAND["images"])
    job = job_from("images", options)
    assert isinstance(job, ImagesJob)
    folder, output = check_images(job, options.workspace())
    if options.values.get("check"):
        print(f"{job.images.action}: from {folder} to {output}")
        return DONE
    return run_job("images", job, f"{job.images.action} {folder.name}", options)
