"""Registers the built-in captioners. Listed in core/extensions.py; loads neither torch nor onnxruntime."""

from functools import partial
from typing import Any

from core import extensions, tasks
from core.captioning.captioner import captioner
from core.captioning.sentences.profiles import PROFILES as SENTENCES
from core.captioning.tagger.profile import PROFILES as TAGGERS
from core.settings.captioning.sources import ImageTextSettings, NamesSettings, SidecarSettings
from core.settings.captioning.tagger import RetagSettings, TagSettings
from core.settings.growth import add_choice

TAGGING = "core.captioning.tagger.tagging"
DESCRIBING = "core.captioning.sentences.describing"
# Captions from names, JSON files and metadata: task, module, settings, title, about
SOURCES = (
    ("caption_names", "names", NamesSettings, "From names", "caption images by file and folder names"),
    ("caption_sidecars", "sidecars", SidecarSettings, "From sidecar JSON", "caption images from JSON next to them"),
    ("caption_metadata", "metadata", ImageTextSettings, "From image metadata", "caption images from prompts, EXIF, XMP and IPTC"),
)  # fmt: skip

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
for _task, _module, _of_source, _title, _about in SOURCES:
    _describe, _check = (
        extensions.later(f"core.captioning.source.{_module}", _function) for _function in ("describe", "check")
    )
    _options: dict[str, Any] = {"ready": _check, "lane": "light", "with_job": True, "rows": _module == "names"}
    tasks.register(captioner(_task, _of_source, _describe, title=_title, about=_about, **_options))
