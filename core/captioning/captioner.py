"""Defines captioners: `captioner` turns a settings model and a function from images to captions into a task.

Its job has the dataset's folders and caption settings, the settings that all captioners share (core/settings/caption.py), and a
group of settings for this captioner. The shared code is in captioners.py.
"""

from collections.abc import Callable, Iterator
from copy import copy
from functools import partial
from typing import Any

from pydantic import Field, create_model

from core import extensions, tasks
from core.captioning.described import CaptionResult
from core.record.workspace import Workspace
from core.settings.base import Settings
from core.settings.caption import CaptionerJob, CaptioningSettings

Describe = Callable[..., Iterator[str | CaptionResult]]
Ready = Callable[[Any, Workspace], object]
CARD = tasks.Card(
    "captioners",
    "Caption images",
    "Caption images with a tagger or captioner, or from names, JSON files or image metadata.",
    "Captions",
)


def captioner(
    name: str,
    settings: type[Settings],
    describe: Describe,
    *,
    title: str,
    ready: Ready | None = None,
    existing: str = "missing",
    rows: bool = False,
    with_job: bool = False,
    **about: Any,
) -> tasks.Task:
    """Return the task of a captioner. `name` and `title` are the task's.

    settings   model of the captioner's settings, a group of the job named `name`
    describe   (images, settings, context) -> iterator of captions in the images' order. It loads its model at the first iteration, and
               may process several images at once
    ready      (settings, workspace): raises ProblemsError for missing requirements, before the start; None for none
    existing   default of `CaptioningSettings.existing`: "missing", "keep", "replace", "append", "prepend" or "line"
    rows       whether `describe` gets each image as a `Row` (report.py), with its caption and settings, instead of its path
    with_job   whether `describe` gets the job as its first argument, for separator and folders
    about      other fields of Task
    """
    group: Any = (settings, Field(default_factory=settings, title=title))
    shared: dict[str, Any] = {}
    if existing != "missing":
        info = copy(CaptioningSettings.model_fields["existing"])
        info.default = existing
        override: Any = {"existing": (info.annotation, info)}
        documented = CaptioningSettings.__doc__
        captioning = create_model("CaptioningSettings", __base__=CaptioningSettings, __doc__=documented, **override)
        shared["captioning"] = (captioning, Field(default_factory=captioning, title="Captioning"))
    job = create_model(
        f"{name.title().replace('_', '')}Job", __base__=CaptionerJob, __doc__=settings.__doc__, **{name: group} | shared
    )
    fields: dict[str, Any] = {
        "card": CARD,
        "button": "Caption images",
        "under": "caption",
        "values": name,
        "takes": "dataset.folder",
    } | about
    run = extensions.later("core.captioning.captioners", "run_captioner")
    check = partial(extensions.later("core.captioning.captioners", "images_to_describe"), name, ready)
    return tasks.Task(
        name,
        title,
        job=job,
        run=lambda job, context: run(name, title, partial(describe, job) if with_job else describe, job, context, rows),
        check=check,
        reads=lambda job: job.captioning.preview is not None,
        **fields,
    )
