"""Trains a ControlNet with the image pairs that a tool made, and uses pairs as sample prompts."""

from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

from core.dataset.preflight import preflight
from core.engine.light import LightTask
from core.record.problems import ProblemsError
from core.record.units import count
from core.record.workspace import display_path, resolve_path
from core.settings.control import CONTROLNET
from core.settings.dataset.source import Source
from core.settings.job import TrainJob
from core.settings.named import CONTROL_IMAGE
from core.training.checks.demo_setup import PROMPTS, prompts_of_pairs
from tabs.context import Page
from tabs.dataset.concepts import entries_of, with_entries
from tabs.form.project import with_value
from tabs.server.browsers import Browser

FOLDER, SUFFIX = "conditioning_data_dir", "conditioning_suffix"
QUICK_SECONDS = 0.4  # most pairs are read by then, and the press is answered with Train


def train_pairs(page: Page, data: dict[str, Any], browser: Browser) -> None:
    """Fill in Train with the image pairs of the tool job data["work"], in the background, since the pairs are read first."""
    pairs = next((work.facts(page.engine)["pairs"] for work in page.works.works() if work.id == data.get("work")), None)
    if pairs is None:
        return
    images, control = (display_path(Path(pairs[name])) for name in ("images", "control"))
    task = page.engine.light(
        partial(_fill_in, page, browser, images, control),
        with_pairs(page.project.job, images, control),
        title="Reading the pairs",
    )
    _wait(task)


def _fill_in(page: Page, browser: Browser, images: str, control: str, job: TrainJob, task: LightTask) -> None:
    """Fill in Train with a pair dataset as one undo step; sample prompts that do not use its control images are replaced.

    images, control: folders of images and control images; job: Train's job with these folders, to read the pairs
    """
    before = page.project.job.dataset.conditioning_data_dir
    earlier = resolve_path(before) if before and resolve_path(before) != resolve_path(control) else None
    report = preflight(job, page.workspace, cancel=task.token)
    fits = all(_fits(line, earlier) for line in job.samples.sample_prompts)
    prompts = None if fits else prompts_of_pairs(job, report)
    with page.project.lock:
        job = with_pairs(page.project.job, images, control)
        if prompts:
            job = with_value(job, PROMPTS, prompts[0])
        page.project.change(job, did="training with pairs")
    page.reading.want()
    pairs = count(sum(row.trains and row.control is not None for row in report.rows), "pair")
    page.browsers.say(browser, "done", f"Ready to train with {pairs}.", go="Train", undo=page.project.can_undo)


def sample_pairs(page: Page, browser: Browser) -> None:
    """Set sample prompts made of captions and control images of the dataset, those of validation images first."""
    _wait(page.engine.light(partial(_use_as_samples, page, browser), page.project.job, title="Reading the pairs"))


def _use_as_samples(page: Page, browser: Browser, job: TrainJob, task: LightTask) -> None:
    """Set the sample prompts from the job's pairs as one undo step. A problem is shown in `browser`."""
    with page.browsers.reporting(browser, PROMPTS):
        prompts = prompts_of_pairs(job, preflight(job, page.workspace, cancel=task.token))
        if prompts is None:
            what, fix = "No image has a control image and a caption", "choose the folder of control images first"
            raise ProblemsError.one(what, f"dataset.{FOLDER}", fix, code="pairs.none")
        with page.project.lock:
            page.project.set_values({PROMPTS: prompts[0]}, did="sampling with pairs")
        page.browsers.say(browser, "done", f"Samples: {prompts[1]}.", undo=page.project.can_undo)


def _wait(task: LightTask) -> None:
    """Wait up to QUICK_SECONDS for the task, so that the response to the click shows its result if possible."""
    with suppress(TimeoutError):
        task.wait(QUICK_SECONDS)


def _fits(prompt: str, earlier: Path | None) -> bool:
    """Return whether a sample prompt has a control image, which must be outside of folder `earlier` unless that is None."""
    match = CONTROL_IMAGE.search(prompt)
    return match is not None and not (earlier and resolve_path(match[1].strip()).is_relative_to(earlier))


def with_pairs(job: TrainJob, images: str, control: str) -> TrainJob:
    """Return the job with image folder `images` and its control images `control`.

    A dataset of several folders that includes `images` keeps the others; any other dataset becomes this folder alone. The method becomes
    ControlNet unless it trains with control images already. Names in `control` have no suffix, so the folder has none.
    """
    if not job.method.traits.control_images:
        job = with_value(job, "method.kind", CONTROLNET)
    shared_suffix, entries = job.dataset.conditioning_suffix, entries_of(job)
    job = with_value(job, f"dataset.{SUFFIX}", None)
    is_same = [resolve_path(entry.folder) == resolve_path(images) for entry in entries]
    if len(entries) > 1 and any(is_same):
        pair = {FOLDER: control, SUFFIX: None}
        changed = [
            each.model_copy(update=pair if matches else {SUFFIX: getattr(each, SUFFIX) or shared_suffix})
            for each, matches in zip(entries, is_same, strict=True)
        ]
        return with_entries(job, changed)
    both = dict.fromkeys((FOLDER, SUFFIX))
    remaining = [each.model_copy(update=both) for each, matches in zip(entries, is_same, strict=True) if matches]
    return with_value(with_entries(job, remaining or [Source(folder=images)]), f"dataset.{FOLDER}", control)
