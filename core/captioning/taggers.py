"""The captioners that tag, and the models to choose from. Listed in core/extensions.py; loads no onnxruntime."""

from __future__ import annotations

from core import extensions, tasks
from core.captioning.captioner import captioner
from core.captioning.tagger.profile import PROFILES
from core.settings.growth import add_choice
from core.settings.tagger import RetagSettings, TagSettings

TAGGING = "core.captioning.tagger.tagging"

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
