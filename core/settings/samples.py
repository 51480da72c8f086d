"""Images drawn while training goes on."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, field_validator

from core.settings.base import Settings, setting

SAMPLERS = Literal[
    "ddim", "pndm", "lms", "euler", "euler_a", "heun", "dpm_2", "dpm_2_a", "dpmsolver", "dpmsolver++", "dpmsingle"
]
SAMPLER_LABELS = {
    "ddim": "DDIM",
    "pndm": "PNDM",
    "lms": "LMS",
    "euler": "Euler",
    "euler_a": "Euler a",
    "heun": "Heun",
    "dpm_2": "DPM2",
    "dpm_2_a": "DPM2 a",
    "dpmsolver": "DPM-Solver",
    "dpmsolver++": "DPM++ 2M",
    "dpmsingle": "DPM++ 2S",
}
ALSO_CALLED = {f"k_{name}": name for name in ("lms", "euler", "euler_a", "dpm_2", "dpm_2_a")}  # in sd-scripts
Side = Annotated[int, Field(ge=64, le=4096, multiple_of=8)]


def sampler_name(text: Any) -> Any:
    """The sampler that sd-scripts calls so; what is no such name stays as it is."""
    return ALSO_CALLED.get(text, text) if isinstance(text, str) else text


class SampleSettings(Settings):
    """What is drawn to watch the training, and when."""

    sample_prompts: list[str] = setting(
        default_factory=list,
        title="Sample prompts",
        level="shown",
        widget="lines",
        help="One a line. The same seed is used each time, so that only the training changes the image. Behind a prompt: --n not wanted --w width --h height --d seed --s steps --l guidance --ss sampler.",
    )
    sample_prompts_file: str | None = setting(
        None,
        title="Sample prompts from a file",
        widget="file",
        kohya="sample_prompts",
        help="A .txt with one prompt a line, a .toml or a .json as sd-scripts reads them; drawn after those above.",
        names="path",
    )
    negative_prompt: str = setting("", title="Not wanted in samples", help="What the samples should not show.")
    prompt_weights: bool = setting(
        True,
        title="Prompt weights",
        help="(word:1.3), (word) and [word] in sample prompts are weights; \\( and \\) are brackets. Off: brackets are text.",
    )
    sample_every_n_steps: int | None = setting(
        None,
        unit="steps",
        title="Sample every n steps",
        level="shown",
        kohya="sample_every_n_steps",
        help="Empty or 0 is off. Epochs, when set, decide alone.",
    )
    sample_every_n_epochs: int | None = setting(
        None, unit="epochs", title="Sample every n epochs", kohya="sample_every_n_epochs", help="Empty or 0 is off."
    )
    sample_at_first: bool = setting(
        True,
        title="Draw the base model first",
        kohya="sample_at_first",
        help="One image a prompt before the first step, to compare with.",
    )
    sample_sampler: SAMPLERS = setting(
        "ddim", title="Sampler", kohya="sample_sampler", labels=SAMPLER_LABELS, help="How samples are drawn."
    )
    sample_steps: int = setting(
        20, ge=1, le=1000, unit="steps", title="Sampling steps", help="Steps for each sample image."
    )
    guidance_scale: float | None = setting(
        None,
        ge=0,
        le=50,
        title="Guidance",
        source="Ho and Salimans 2022, arXiv:2207.12598",
        help="How strictly the prompt is followed. Empty is the model's own: 4 for the starter, 7.5 for others. 1 or less switches guidance off.",
    )
    width: Side | None = setting(None, unit="pixels", title="Width", help="Empty is the training resolution.")
    height: Side | None = setting(None, unit="pixels", title="Height", help="Empty is the training resolution.")
    seed: int = setting(
        1, ge=0, le=2**32 - 1, title="Sample seed", help="The first prompt's; the next prompts count up from it."
    )

    compatibility: Literal["none", "kohya"] = setting(
        "none",
        title="Samples as sd-scripts",
        labels={"none": "no", "kohya": "as sd-scripts"},
        help="Draws as sd-scripts' trainers do, to compare with old samples: 512 x 512 unless a size is given, also for SDXL; DDIM and Heun cut what they see to -1..1, which spoils colors; the schedule is never stretched for zero terminal SNR; weighted words keep the prompt's mean (SD 1.x and 2.x). Training is the same.",
    )

    @field_validator("sample_sampler", mode="before")
    @classmethod
    def _also_called(cls, value: Any) -> Any:
        return sampler_name(value)
