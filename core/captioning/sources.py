"""The captioners that look at no image: captions from names, JSON files and metadata. Listed in core/extensions.py."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

from core import extensions, tasks
from core.captioning.captioner import captioner
from core.settings.base import Settings
from core.settings.caption_sources import ImageTextSettings, NamesSettings, SidecarSettings

RUN = extensions.later("core.captioning.captioners", "run_captioner")


def _register(name: str, module: str, settings: type[Settings], title: str, about: str) -> None:
    """`describe` of these modules takes the job before what all captioners are given: they use its separator and folders."""
    describe, check = (
        extensions.later(f"core.captioning.source.{module}", function) for function in ("describe", "check")
    )
    task = captioner(name, settings, describe, title=title, about=about, ready=check, lane="light")
    tasks.register(replace(task, run=lambda job, context: RUN(name, title, partial(describe, job), job, context)))


_register("caption_names", "names", NamesSettings, "From names", "caption images by file and folder names")
_register("caption_sidecars", "sidecars", SidecarSettings, "From sidecar JSON", "caption images from JSON beside them")
_register(
    "caption_metadata",
    "metadata",
    ImageTextSettings,
    "From image metadata",
    "caption images from prompts, EXIF, XMP and IPTC",
)
