"""Pictures drawn while training goes on."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from core.settings.base import Settings, setting

SAMPLERS = Literal["ddim", "euler", "euler_a", "dpmsolver++"]
SAMPLER_LABELS = {"ddim": "DDIM", "euler": "Euler", "euler_a": "Euler a", "dpmsolver++": "DPM++ 2M"}
Side = Annotated[int, Field(ge=64, le=4096, multiple_of=8)]


class SampleSettings(Settings):
    """What is drawn to watch the training, and when."""

    sample_prompts: list[str] = setting(
        default_factory=list,
        title="Sample prompts",
        level="shown",
        widget="lines",
        kohya="sample_prompts",
        help="One a line. The same seed is used each time, so that only the training changes the picture.",
    )
    negative_prompt: str = setting("", title="Not wanted in samples", help="What the samples should not show.")
    sample_every_n_steps: int | None = setting(
        None,
        unit="steps",
        title="Sample every n steps",
        level="shown",
        kohya="sample_every_n_steps",
        help="Empty or 0 is off.",
    )
    sample_every_n_epochs: int | None = setting(
        None, unit="epochs", title="Sample every n epochs", kohya="sample_every_n_epochs", help="Empty or 0 is off."
    )
    sample_at_first: bool = setting(
        True,
        title="Draw the base model first",
        kohya="sample_at_first",
        help="One picture a prompt before the first step, to compare with.",
    )
    sample_sampler: SAMPLERS = setting(
        "ddim", title="Sampler", kohya="sample_sampler", labels=SAMPLER_LABELS, help="How samples are drawn."
    )
    sample_steps: int = setting(
        20, ge=1, le=1000, unit="steps", title="Sampling steps", help="Steps for each sample picture."
    )
    guidance_scale: float = setting(
        7.5,
        ge=0,
        le=50,
        title="Guidance",
        source="Ho and Salimans 2022, arXiv:2207.12598",
        help="How strictly the prompt is followed.",
    )
    width: Side | None = setting(None, unit="pixels", title="Width", help="Empty is the training resolution.")
    height: Side | None = setting(None, unit="pixels", title="Height", help="Empty is the training resolution.")
    seed: int = setting(
        1, ge=0, le=2**32 - 1, title="Sample seed", help="The first prompt's; the next prompts count up from it."
    )
