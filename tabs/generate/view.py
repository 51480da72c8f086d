"""The top of the Generate tab as HTML, and what the newest image can be used for."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from tabs.markup import button

# -- fields


def prompts(fields: str, beside: str, below: str) -> str:
    """The prompts, Generate, and the number of images. below: stands below the prompts, about the initial image"""
    draw = (
        '<button type="button" class="btn primary" id="gen-draw" data-act="draw" title="Ctrl+Enter">Generate</button>'
    )
    side = f'<div class="gen-start">{draw}<div class="concept-fields">{beside}</div></div>'
    return f'<div class="block-part gen-top"><div class="gen-texts">{fields}</div>{below}{side}</div>'


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
