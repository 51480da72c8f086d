"""What to draw."""

from __future__ import annotations

from typing import Literal

from core.settings.base import Settings, setting
from core.settings.samples import SAMPLER_LABELS, SAMPLERS, Side


class LoraUse(Settings):
    """A LoRA and how strongly it acts."""

    file: str = setting(
        title="LoRA", help="A file, or the name of one that lies under models/ or in a run.", names="path or name"
    )
    strength: float = setting(
        1.0, ge=-10, le=10, title="Strength", help="1 is as trained, 0 is off, negative is away from it."
    )


class GenerateSettings(Settings):
    """Prompt, size and sampler."""

    prompt: str = setting("a fox, glyph style", title="Prompt", level="shown", widget="text", help="What to draw.")
    negative_prompt: str = setting("", title="Negative prompt", level="shown", widget="text", help="What not to draw.")
    width: Side | None = setting(
        None, unit="pixels", title="Width", level="shown", help="Empty is the model's own size."
    )
    height: Side | None = setting(
        None, unit="pixels", title="Height", level="shown", help="Empty is the model's own size."
    )
    steps: int = setting(
        20, ge=1, le=1000, unit="steps", title="Steps", level="shown", help="More steps draw finer and take longer."
    )
    guidance_scale: float | None = setting(
        None,
        ge=0,
        le=50,
        title="Guidance",
        level="shown",
        help="How strictly the prompt is followed. Empty is the model's own: 4 for the starter, 7.5 for others. 1 or less switches guidance off.",
    )
    seed: int | None = setting(
        None,
        ge=0,
        le=2**32 - 1,
        title="Seed",
        level="shown",
        help="The same seed draws the same image. Empty draws one and records it.",
    )
    count: int = setting(
        1,
        ge=1,
        le=1000,
        unit="images",
        title="How many",
        level="shown",
        help="Each next image counts the seed up by one.",
    )
    sampler: SAMPLERS = setting(
        "ddim", title="Sampler", level="shown", labels=SAMPLER_LABELS, help="The way from noise to image."
    )
    prompt_weights: bool = setting(
        True,
        title="Prompt weights",
        level="shown",
        help="(word:1.3), (word) and [word] are weights, as in samples; \\( and \\) are brackets. Off: brackets are text.",
    )
    zero_terminal_snr: Literal["auto", "on", "off"] = setting(
        "auto",
        title="Zero terminal SNR",
        level="shown",
        labels={"auto": "as the files say", "on": "on", "off": "off"},
        source="Lin et al. 2023, arXiv:2305.08891",
        help="Samples from pure noise, for a model, LoRA or embedding that was trained so. Their files say it.",
    )
    loras: list[LoraUse] = setting(
        default_factory=list, title="LoRAs", level="shown", widget="loras", help="Any number, each with a strength."
    )
    embeddings: list[str] = setting(
        default_factory=list,
        title="Embeddings",
        level="shown",
        help="Files of textual inversion. A prompt calls each by the file's name without its ending; `word=file` gives it another word.",
        names="word=path",
    )
