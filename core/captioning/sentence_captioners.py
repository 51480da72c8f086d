"""The captioners that write sentences, a line each. Listed in core/extensions.py; loads no torch."""

from __future__ import annotations

from core import extensions, tasks
from core.captioning.captioner import captioner
from core.settings import captioner_models as models
from core.settings.base import Settings

DESCRIBING = "core.captioning.sentences.describing"


def _sentences(name: str, settings: type[Settings], title: str, about: str) -> None:
    describe, ready = (extensions.later(DESCRIBING, each) for each in (name, f"check_{name}"))
    tasks.register(captioner(name, settings, describe, title=title, about=about, ready=ready, rows=True))


_sentences("blip", models.BlipSettings, "BLIP captions", "describe images with BLIP or BLIP-2")
_sentences("git_caption", models.GitSettings, "GIT captions", "describe images with GIT")
_sentences("florence", models.FlorenceSettings, "Florence-2 captions", "describe images with Florence-2")
_sentences("vlm", models.VlmSettings, "Vision-language captions", "describe images with a vision-language model")
