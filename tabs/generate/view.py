"""The Generate tab as HTML: LoRAs with their strengths, and what the newest image can be used for."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from core.record.units import clock
from tabs.markup import (
    button,
)

# -- fields


def prompts(fields: str, beside: str, below: str) -> str:
    """The prompts, Generate, and the number of images. below: stands below the prompts, about the initial image"""
    draw = (
        '<button type="button" class="btn primary" id="gen-draw" data-act="draw" title="Ctrl+Enter">Generate</button>'
    )
    side = f'<div class="gen-start">{draw}<div class="concept-fields">{beside}</div></div>'
    return f'<div class="block-part gen-top"><div class="gen-texts">{fields}</div>{below}{side}</div>'


def training_words(now: dict[str, Any]) -> str:
    """How far a training is: its step and the time left, before the first step what it does."""
    if not now.get("step") or not now.get("total"):
        return str(now.get("stage") or "starting")
    left = f", {clock(now['eta_seconds'])} left" if now.get("eta_seconds") else ""
    return f"step {now['step']:,} of {now['total']:,}{left}"


# -- the newest image


@dataclass(frozen=True)
class Shown:
    """The image that stands large. name: as the gallery calls it"""

    name: str
    path: Path
    prompt: str
    seed: int | None
    settings: bool


def does(each: Shown) -> str:
    """What an image can be used for."""
    use = button("use", "Use settings", each.name, kind="quiet") if each.settings else ""
    title = "Begin the next images with this one"
    return use + button("begin", "Image to image", each.name, kind="quiet", title=title)


def strengths(unet: float, text_encoder: float | None) -> str:
    """ "0.8", with another one for the text encoder "0.8 / 0.5"."""
    return f"{unet:g}" + ("" if text_encoder in (None, unet) else f" / {text_encoder:g}")
