"""The Generate tab as HTML: LoRAs with their strengths, and what the newest image can be used for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from core.generation.prompt.tags import LoraTag
from core.record.units import clock
from tabs.markup import (
    button,
    esc,
)

# -- fields


def prompts(fields: str, beside: str) -> str:
    """The prompts, the button that draws, and how many it draws."""
    draw = (
        '<button type="button" class="btn primary" id="gen-draw" data-act="draw" title="Ctrl+Enter">Generate</button>'
    )
    side = f'<div class="gen-start">{draw}<div class="concept-fields">{beside}</div></div>'
    return f'<div class="block-part gen-top"><div class="gen-texts">{fields}</div>{side}</div>'


# -- LoRAs


def loras(
    uses: Sequence[dict[str, Any]],
    marked: Sequence[str] = (),
    schedule: str = "auto",
    tags: Sequence[LoraTag] = (),
) -> str:
    """One row a LoRA: name, strength as slider and number, remove. Below, those of the prompt, and what was found of
    zero terminal SNR.

    marked   files that say they were trained with it      schedule   the setting: "auto", "on" or "off"
    """
    named = ", ".join(f"{tag.name} {strengths(tag.unet, tag.text_encoder)}" for tag in tags)
    said = f'<p class="hint">From the prompt: {esc(named)}</p>' if named else ""
    if marked:
        used = "but it is off." if schedule == "off" else "and it is used."
        said += f'<p class="hint">Trained with zero terminal SNR: {esc(", ".join(marked))}, {used}</p>'
    if not uses and tags:
        return said
    if not uses:
        return (
            '<p class="hint">No LoRA: only the base model is used. Add one above; the list includes the results of your runs.'
            f"</p>{said}"
        )
    return f'<ul class="loras">{"".join(_lora(number, use) for number, use in enumerate(uses))}</ul>{said}'


def _lora(number: int, use: dict[str, Any]) -> str:
    path = Path(str(use["file"]))
    name, strength = path.name.removesuffix(path.suffix), float(use["strength"])
    where = path.parent.parent.name if path.parent.name == "checkpoints" else path.parent.name
    place = min(max(strength, -1.0), 2.0)
    label = esc(f"Strength of {name}")
    if (own := use.get("text_encoder_strength")) is not None:
        where = f"{where}, text encoder {own:g}".lstrip(", ")
    return (
        f'<li><div class="strip"><b title="{esc(use["file"])}">{esc(name)}</b><span '
        f'class="hint">{esc(where)}</span><span class="grow"></span>'
        f"{button('remove', 'Remove', number, kind='quiet', label=f'Remove {name} ({where})')}</div>"
        f'<div class="strip"><input type="range" min="-1" max="2" step="0.05" value="{place:g}" '
        f'id="lora-slide-{number}" data-act="strength"'
        f' data-arg="{number}" data-twin="lora-value-{number}" aria-label="{label}">'
        f'<input type="number" min="-10" max="10" step="0.05" value="{strength:g}" id="lora-value-{number}" '
        f'data-act="strength"'
        f' data-arg="{number}" data-twin="lora-slide-{number}" aria-label="{label}, as a number"></div></li>'
    )


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
