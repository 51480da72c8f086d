"""A captioner: a settings model and a function from images to captions, registered by one line.

Each captioner is a task of its own: the dataset's folders and caption settings, the settings that all captioners share
(core/settings/caption.py), and a group of its own. What is the same for all of them stands in captioners.py.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from copy import copy
from functools import partial
from typing import Any

from pydantic import Field, create_model

from core import extensions, tasks
from core.captioning.described import Described
from core.record.workspace import Workspace
from core.settings.base import Settings
from core.settings.caption import CaptionerJob, CaptioningSettings

Describe = Callable[..., Iterator[str | Described]]
Ready = Callable[[Any, Workspace], object]
CARD = tasks.Card(
    "captioners",
    "Caption images",
    "Caption images with a tagger or captioner, or from names, JSON files or image metadata.",
    "Captions",
)


def _with_default(name: str, default: str) -> type[CaptioningSettings]:
    """The settings that all captioners share, with another default for one of them."""
    info = copy(CaptioningSettings.model_fields[name])
    info.default = default
    override: Any = {name: (info.annotation, info)}
    return create_model(
        "CaptioningSettings", __base__=CaptioningSettings, __doc__=CaptioningSettings.__doc__, **override
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
    """The task of a captioner.

    describe  (images, own settings, context) -> iterator with a caption for each image in their order. It loads its model
              when the first is asked for, and may look at several images at once
    ready     (own settings, workspace): raises ProblemsError for what the captioner lacks, before anything begins
    existing  what it does with captions that are there unless the job says otherwise
    rows      `describe` is given each image as a `Row` (report.py), with its caption and settings, in place of its path
    with_job  `describe` is given the job before the images, for its separator and folders
    about     the other fields of Task
    """
    group: Any = (settings, Field(default_factory=settings, title=title))
    shared: dict[str, Any] = {}
    if existing != "missing":
        group = _with_default("existing", existing)
        shared["captioning"] = (group, Field(default_factory=group, title="Captioning"))
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
