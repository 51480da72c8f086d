"""What writes captions by looking at images: a settings model and a function, registered by one line.

Each captioner is a task of its own: the dataset's folders and caption settings, the settings that all captioners share
(core/settings/caption.py), and a group of its own. Which images it describes, progress, pause, preview and where captions are
saved are the same for all of them and stand here.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from pydantic import Field, create_model

from core import tasks
from core.captioning.combining import combined, pattern_problems
from core.captioning.report import Row, caption_report
from core.dataset.captions.files import as_file, caption_change
from core.dataset.captions.history import History, check_folders, only_one_writes
from core.record.context import JobContext, Outcome
from core.record.problems import ProblemsError, raise_if_errors
from core.record.units import count
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
    run = partial(run_captioner, name, title, describe)
    return tasks.Task(name, title, job=job, run=run, check=images_to_describe, reads=_previews, **given)


def _previews(job: CaptionerJob) -> bool:
    return job.captioning.preview is not None


def run_captioner(name: str, title: str, describe: Describe, job: CaptionerJob, context: JobContext) -> Outcome:
    """Describe the images that ask for it, one caption written after the other. A preview writes nothing."""
    history = History(context.workspace.captions)
    about = {"task": name, "job": _fingerprint(job)}
    if _previews(job):
        rows = _rows(job)
        described = describe([row.image.path for row in rows], getattr(job, name), context)
        lines = [
            _difference(row, text, job) for row, text in zip(rows, _counted(described, rows, context), strict=True)
        ]
        return Outcome(lines=[*lines, f"{len(rows)} images described; nothing was written"], facts=_facts(len(rows), 0))
    with only_one_writes(context), history.open(title, about, history.unfinished(about)) as opened:
        done = opened.done()
        files = [(row, caption_change(row.image.path, "", row.settings.caption_extension)) for row in _rows(job)]
        files = [(row, file) for row, file in files if file.path not in done]
        check_folders(file.path.parent for _, file in files)
        rows = [row for row, _ in files]
        described = describe([row.image.path for row in rows], getattr(job, name), context)
        written, since, empty = 0, 0, 0
        for (row, file), text in zip(files, _counted(described, rows, context), strict=True):
            new = combined(_own(row), text, job.captioning)
            result = opened.write([replace(file, new=as_file(new))] if new else [])
            written, since, empty = written + len(result.written), since + len(result.changed_since), empty + (not new)
    return Outcome(lines=_last_lines(len(rows), written, since, empty), facts=_facts(len(rows), written))


def _counted(described: Iterator[str], rows: Sequence[Row], context: JobContext) -> Iterator[str]:
    """The captions as they come, with progress, and a place to pause or stop after each."""
    context.stage("captioning", 0, len(rows))
    for number, text in enumerate(described, 1):
        yield text
        context.stage("captioning", number, len(rows))
        context.check()


def _own(row: Row) -> str:
    """The caption of the image's own file."""
    return row.caption.text if row.caption.source == "file" else ""


def _difference(row: Row, text: str, job: CaptionerJob) -> str:
    before, after = _own(row), combined(_own(row), text, job.captioning)
    return f"{row.image.relative}: {after}" + (f"   (was: {before})" if before and before != after else "")


def _last_lines(images: int, written: int, since: int, empty: int) -> list[str]:
    lines = [f"{images} images described, {written} captions written"]
    lines += [f"{since} captions were edited in the meantime and were left alone"] if since else []
    lines += [f"{empty} images got no caption: nothing was found to say of them"] if empty else []
    return lines


def _facts(images: int, written: int) -> dict[str, int]:
    return {"images": images, "written": written}


def images_to_describe(job: CaptionerJob, workspace: Workspace) -> str:
    """The check before a start. Raises ProblemsError."""
    return f"{count(len(_rows(job)), 'image')} to describe"


def _rows(job: CaptionerJob) -> list[Row]:
    report = caption_report(CaptionJob(dataset=job.dataset, captions=job.captions))
    bad = pattern_problems(job.captioning.remove_words, "captioning.remove_words")
    raise_if_errors([*report.problems, *bad])
    if not report.rows:
        fix = "choose a folder with images on Dataset"
        raise ProblemsError.one("The dataset contains no images", "dataset", fix, "captioning.no-images")
    return [row for row in report.rows if _asks(row, job.captioning.existing)][: job.captioning.preview]


def _asks(row: Row, existing: str) -> bool:
    """Whether an image is described. Captions from metadata files are not changed."""
    without = ("words", "none") if existing == "keep" else ("words", "none", "blank")
    return row.caption.source in without if existing in ("keep", "missing") else row.caption.source != "metadata"


def _fingerprint(job: CaptionerJob) -> str:
    return hashlib.sha256(json.dumps(to_values(job), sort_keys=True).encode()).hexdigest()[:16]
