"""The captioners that write sentences, a line each. Listed in core/extensions.py; loads no torch."""

from __future__ import annotations

from typing import Any

from core.captioning.captioner import captioner
from core.extensions import later
from core.settings import captioner_models as models
from core.settings.base import Settings
from core.tasks import register

DESCRIBING = "core.captioning.sentences.describing"


def _sentences(name: str, settings: type[Settings], title: str, about: str, **more: Any) -> None:
    ready = later(DESCRIBING, f"check_{name}")
    register(
        captioner(name, settings, later(DESCRIBING, name), title=title, about=about, ready=ready, rows=True, **more)
    )


_sentences("blip", models.BlipSettings, "BLIP captions", "describe images with BLIP or BLIP-2")
_sentences("git_caption", models.GitSettings, "GIT captions", "describe images with GIT")
_sentences("florence", models.FlorenceSettings, "Florence-2 captions", "describe images with Florence-2")
_sentences("vlm", models.VlmSettings, "Vision-language captions", "describe images with a vision-language model")
