"""HTML of the top of the Generate tab, and of the buttons below the newest image."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from tabs.markup import button

# -- fields


def prompts(fields: str, start_fields: str, below: str) -> str:
    """HTML of the prompts and the Generate button. start_fields: HTML next to the button; below: HTML below the prompts"""
    draw = (
        '<button type="button" class="btn primary" id="gen-draw" data-act="draw" title="Ctrl+Enter">Generate</button>'
    )
    side = f'<div class="gen-start">{draw}<div class="concept-fields">{start_fields}</div></div>'
    return f'<div class="block-part gen-top"><div class="gen-texts">{fields}</div>{below}{side}</div>'


# -- the newest image


@dataclass(frozen=True)
class Shown:
    """The large image. name: in the gallery; settings: whether its settings can be loaded"""

    name: str
    path: Path
    prompt: str
    seed: int | None
    settings: bool


def does(each: Shown) -> str:
    """HTML of the buttons of an image."""
    use = button("use", "Use settings", each.name, kind="quiet") if each.settings else ""
    title = "Begin the next images with this one"
    return use + button("begin", "Image to image", each.name, kind="quiet", title=title)


def strengths(unet: float, text_encoder: float | None) -> str:
    """Text of a LoRA's strength: "0.8", or "0.8 / 0.5" if that of the text encoder differs."""
    return f"{unet:g}" + ("" if text_encoder in (None, unet) else f" / {text_encoder:g}")
