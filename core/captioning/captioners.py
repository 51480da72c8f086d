"""What writes captions by looking at images: a settings model and a function, registered by one line.

Each captioner is a task of its own: the dataset's folders and caption settings, the settings that all captioners share
(core/settings/caption.py), and a group of its own. Which images it describes, progress, pause, preview and where captions are
saved are the same for all of them and stand here.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

from pydantic import Field, create_model

from core import tasks
from core.captioning.report import Row, caption_report
from core.dataset.captions.files import save_caption
from core.record import atomic
from core.record.context import JobContext, Outcome
from core.record.problems import ProblemsError, raise_if_errors, unwritten
from core.record.workspace import Workspace
from core.settings.base import Settings
from core.settings.job import CaptionerJob, CaptionJob
from core.settings.presets import to_values

Describe = Callable[[Sequence[Path], Any, JobContext], Iterator[str]]
CARD = tasks.Card(
    "captioners", "Caption images", "Describes the images of the dataset and writes the captions beside them."
)


def captioner(name: str, settings: type[Settings], describe: Describe, *, title: str, **about: Any) -> tasks.Task:
    """The task of a captioner.

    describe  (images, own settings, context) -> iterator with a caption for each image in their order. It loads its model
              when the first is asked for, and may look at several images at once
    about     the other fields of Task
    """
    group: Any = (settings, Field(default_factory=settings, title=title))
    job = create_model(f"{name.title()}Job", __base__=CaptionerJob, __doc__=settings.__doc__, **{name: group})
    given: dict[str, Any] = {"card": CARD, "button": "Caption images"} | about
    run = partial(run_captioner, name, describe)
    return tasks.Task(name, title, job=job, run=run, check=images_to_describe, reads=_previews, **given)


def _previews(job: CaptionerJob) -> bool:
    return job.captioning.preview is not None


def run_captioner(name: str, describe: Describe, job: CaptionerJob, context: JobContext) -> Outcome:
    """Describe the images that ask for it, one caption written after the other. A preview writes nothing."""
    done = Done(context.workspace, job)
    rows = _rows(job, done.before)
    captions = describe([row.image.path for row in rows], getattr(job, name), context)
    lines: list[str] = []
    context.stage("captioning", 0, len(rows))
    for number, (row, text) in enumerate(zip(rows, captions, strict=True), 1):
        if _previews(job):
            lines.append(f"{row.image.relative}: {text}")
        else:
            save_caption(row.image.path, text, row.settings.caption_extension)
            done.add(row)
        context.stage("captioning", number, len(rows))
        context.check()
    done.forget()
    last = f"{len(rows)} images described" + ("; nothing was written" if _previews(job) else "")
    return Outcome(lines=[*lines, last], facts={"images": len(rows), "written": 0 if _previews(job) else len(rows)})


def images_to_describe(job: CaptionerJob, workspace: Workspace) -> str:
    """The check before a start. Raises ProblemsError."""
    rows = _rows(job, Done(workspace, job).before)
    return f"{len(rows)} images to describe"


def _rows(job: CaptionerJob, done: set[str]) -> list[Row]:
    report = caption_report(CaptionJob(dataset=job.dataset, captions=job.captions))
    raise_if_errors(report.problems)
    if not report.rows:
        fix = "choose a folder with images on Dataset"
        raise ProblemsError.one("The dataset contains no images", "dataset", fix, "captioning.no-images")
    rows = report.missing if job.captioning.existing == "keep" else report.rows
    return [row for row in rows if str(row.image.path) not in done][: job.captioning.preview]


class Done:
    """The images that an unfinished job with the same settings has described: started again, it resumes with the others."""

    def __init__(self, workspace: Workspace, job: CaptionerJob):
        name = hashlib.sha256(json.dumps(to_values(job), sort_keys=True).encode()).hexdigest()[:16]
        self._file = workspace.private / "captioning" / f"{name}.txt"
        self.before: set[str] = set()
        if not _previews(job):
            with suppress(OSError):
                self.before = set(self._file.read_text("utf-8", "surrogateescape").split("\0"))

    def add(self, row: Row) -> None:
        try:
            self._file.parent.mkdir(parents=True, exist_ok=True)
            with open(self._file, "a", encoding="utf-8", errors="surrogateescape") as handle:
                handle.write(f"{row.image.path}\0")
        except OSError as error:
            what = "The list of captioned images cannot be written"
            raise unwritten(error, what, str(self._file), "captions written so far are kept") from error

    def forget(self) -> None:
        with suppress(OSError):
            atomic.remove(self._file)
