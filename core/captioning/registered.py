"""The captioners that come with Atelier, a line each. Listed in core/extensions.py; loads neither torch nor onnxruntime."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

from core import extensions, tasks
from core.captioning.captioner import captioner
from core.captioning.sentences.profiles import PROFILES as SENTENCES
from core.captioning.tagger.profile import PROFILES as TAGGERS
from core.settings.base import Settings
from core.settings.captioning.sources import ImageTextSettings, NamesSettings, SidecarSettings
from core.settings.captioning.tagger import RetagSettings, TagSettings
from core.settings.growth import add_choice

TAGGING = "core.captioning.tagger.tagging"
DESCRIBING = "core.captioning.sentences.describing"
RUN = extensions.later("core.captioning.captioners", "run_captioner")


def _from_text(name: str, module: str, settings: type[Settings], title: str, about: str) -> None:
    """`describe` of these modules takes the job before what all captioners are given: they use its separator and folders."""
    describe, check = (
        extensions.later(f"core.captioning.source.{module}", function) for function in ("describe", "check")
    )
    task = captioner(name, settings, describe, title=title, about=about, ready=check, lane="light")
    tasks.register(replace(task, run=lambda job, context: RUN(name, title, partial(describe, job), job, context)))


for _name, _profile in TAGGERS.items():
    for _settings in (TagSettings, RetagSettings):
        add_choice(_settings, "repo_id", _name, _profile.title)

tasks.register(
    captioner(
        "tag",
        TagSettings,
        extensions.later(TAGGING, "tag"),
        title="Tag images (WD14)",
        about="tag images with WD14 or another ONNX tagger",
        ready=extensions.later(TAGGING, "check_tag"),
        button="Tag images",
        on_cpu=True,
    )
)
tasks.register(
    captioner(
        "retag",
        RetagSettings,
        extensions.later(TAGGING, "retag"),
        existing="replace",
        title="Tags from kept scores",
        about="write tags again from kept scores, with other settings",
        ready=extensions.later(TAGGING, "check_retag"),
        lane="light",
        values="tag",
        button="Write tags",
    )
)
for _row in SENTENCES.values():
    tasks.register(
        captioner(
            _row.task,
            _row.settings,
            partial(extensions.later(DESCRIBING, "describe"), _row.task),
            title=_row.title,
            about=_row.about,
            ready=partial(extensions.later(DESCRIBING, "check_sentences"), _row.task),
            rows=True,
        )
    )
_from_text("caption_names", "names", NamesSettings, "From names", "caption images by file and folder names")
_from_text(
    "caption_sidecars", "sidecars", SidecarSettings, "From sidecar JSON", "caption images from JSON next to them"
)
_from_text(
    "caption_metadata",
    "metadata",
    ImageTextSettings,
    "From image metadata",
    "caption images from prompts, EXIF, XMP and IPTC",
)
