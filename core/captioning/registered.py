"""The captioners that come with Atelier, a line each. Listed in core/extensions.py; loads neither torch nor onnxruntime."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

from core import extensions, tasks
from core.captioning.captioner import captioner
from core.captioning.tagger.profile import PROFILES
from core.settings.base import Settings
from core.settings.captioning import sentences as models
from core.settings.captioning.sources import ImageTextSettings, NamesSettings, SidecarSettings
from core.settings.captioning.tagger import RetagSettings, TagSettings
from core.settings.growth import add_choice

TAGGING = "core.captioning.tagger.tagging"
DESCRIBING = "core.captioning.sentences.describing"
RUN = extensions.later("core.captioning.captioners", "run_captioner")


def _sentences(name: str, settings: type[Settings], title: str, about: str) -> None:
    describe = extensions.later(DESCRIBING, name)
    ready = partial(extensions.later(DESCRIBING, "check_sentences"), name)
    tasks.register(captioner(name, settings, describe, title=title, about=about, ready=ready, rows=True))


def _from_text(name: str, module: str, settings: type[Settings], title: str, about: str) -> None:
    """`describe` of these modules takes the job before what all captioners are given: they use its separator and folders."""
    describe, check = (
        extensions.later(f"core.captioning.source.{module}", function) for function in ("describe", "check")
    )
    task = captioner(name, settings, describe, title=title, about=about, ready=check, lane="light")
    tasks.register(replace(task, run=lambda job, context: RUN(name, title, partial(describe, job), job, context)))


for _name, _profile in PROFILES.items():
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
_sentences("blip", models.BlipSettings, "BLIP captions", "describe images with BLIP or BLIP-2")
_sentences("git_caption", models.GitSettings, "GIT captions", "describe images with GIT")
_sentences("florence", models.FlorenceSettings, "Florence-2 captions", "describe images with Florence-2")
_sentences("vlm", models.VlmSettings, "Vision-language captions", "describe images with a vision-language model")
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
