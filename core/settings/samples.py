"""Settings of sample images during training, and the list of samplers."""

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from core.record.units import number_text, period_text
from core.settings.base import SEED_RANGE, Settings, every, follows_compatibility, kohya_setting, setting

SAMPLERS = Literal[
    "ddim", "ddim_first_alpha", "pndm", "lms", "euler", "euler_a", "heun", "dpm_2", "dpm_2_a", "dpmsolver",
    "dpmsolver++", "dpmsingle", "dpmsolver++_sde", "dpmsolver++_2s_a", "dpmsolver++_2m_sde",
    "dpmsolver++_3m", "dpmsolver++_3m_sde", "er_sde", "euler_cfg_pp", "euler_a_cfg_pp", "unipc", "deis", "ddpm", "lcm", "tcd",
]  # fmt: skip
SAMPLER_LABELS = {
    "ddim": "DDIM",
    "ddim_first_alpha": "DDIM (first alpha)",
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
    "dpmsolver++_sde": "DPM++ SDE",
    "dpmsolver++_2s_a": "DPM++ 2S a",
    "dpmsolver++_2m_sde": "DPM++ 2M SDE",
    "dpmsolver++_3m": "DPM++ 3M",
    "dpmsolver++_3m_sde": "DPM++ 3M SDE",
    "er_sde": "ER SDE",
    "euler_cfg_pp": "Euler CFG++",
    "euler_a_cfg_pp": "Euler a CFG++",
    "unipc": "UniPC",
    "deis": "DEIS",
    "ddpm": "DDPM",
    "lcm": "LCM",
    "tcd": "TCD",
}
ALSO_CALLED = {f"k_{name}": name for name in ("lms", "euler", "euler_a", "dpm_2", "dpm_2_a")}  # in sd-scripts
ALSO_CALLED["plms"] = "pndm"  # in A1111
Side = Annotated[int, Field(ge=64, le=4096, multiple_of=8)]


def sampler_name(text: Any) -> Any:
    """Return the sampler for a name of sd-scripts or A1111 such as k_euler; other values unchanged."""
    return ALSO_CALLED.get(text, text) if isinstance(text, str) else text


def guidance_setting(**more: Any) -> Any:
    """Declare the guidance scale; keyword arguments are further metadata (see `setting`)."""
    return setting(
        None,
        within=(-100, 100),
        help="How closely the image follows the prompt (CFG scale). Empty uses the model's default: 4 for the starter model, 7.5 for others. 1 or less turns guidance off.",
        **more,
    )


def steps_setting(usual: int, **more: Any) -> Any:
    """Declare the sampling steps, `usual` by default; keyword arguments as for `guidance_setting`."""
    help = "More steps give finer images and take longer. 20 to 30 is usual."
    return setting(usual, within=(1, 1000), unit="steps", title="Sampling steps", help=help, **more)


def images_seed(**more: Any) -> Any:
    """Declare the seed of many images; keyword arguments as for `guidance_setting`."""
    help = "Each image gets its own seed derived from this one, so the same settings generate the same images."
    return setting(1, within=SEED_RANGE, help=help, **more)


class SampleSettings(Settings):
    """Sample images during training: prompts, schedule and sampler."""

    sample_prompts: list[str] = setting(
        default_factory=list,
        first="result",
        brief="One per line; generated during training.",
        level="shown",
        widget="lines",
        help="One per line. The same seed is used each time, so that only training changes the image. Options after a prompt: --n negative prompt --w width --h height --d seed --s steps --l guidance --ss sampler.",
    )
    sample_prompts_file: str | None = setting(
        None,
        widget="file",
        kohya="sample_prompts",
        help="A .txt with one prompt per line, or a .toml or .json in sd-scripts' format; generated after the prompts above.",
        names="path",
    )
    negative_prompt: str = setting("", title="Negative sample prompt", help="What the samples should not show.")
    prompt_weights: bool = setting(
        True,
        help="Reads (word:1.3), (word) and [word] as prompt weights, and [cat:dog:0.5] and [cat|dog] as prompt editing; write \\( and \\) for literal brackets. Off reads brackets as text.",
    )
    sample_every_n_steps: int | None = kohya_setting(
        None,
        unit="steps",
        hint="off",
        level="shown",
        help="Empty or 0 is off. Ignored if 'Sample every n epochs' is set.",
    )
    sample_every_n_epochs: int | None = kohya_setting(None, unit="epochs", hint="off", help="Empty or 0 is off.")
    sample_every_minutes: float | None = setting(
        None,
        unit="minutes",
        title="Sample every n minutes",
        hint="off",
        help="Generates samples when this many minutes have passed since the last ones, besides those at epochs or steps. Empty or 0 is off.",
    )
    sample_at_first: bool = kohya_setting(
        True,
        title="Sample before training",
        help="Generates one image per prompt before the first step, for comparison.",
    )
    sample_sampler: Annotated[SAMPLERS, BeforeValidator(sampler_name)] = kohya_setting(
        "ddim", title="Sampler", section="Sampling", labels=SAMPLER_LABELS, help="The sampling method for samples."
    )
    sample_steps: int = setting(
        20, within=(1, 1000), unit="steps", title="Sampling steps", help="Steps for each sample. 20 to 30 is usual."
    )
    guidance_scale: float | None = guidance_setting(
        hint="model's default", source="Ho and Salimans 2022, arXiv:2207.12598"
    )
    width: Side | None = setting(
        None, unit="pixels", hint="training resolution", help="Empty is the training resolution."
    )
    height: Side | None = setting(
        None, unit="pixels", hint="training resolution", help="Empty is the training resolution."
    )
    seed: int = setting(
        1,
        within=SEED_RANGE,
        title="Sample seed",
        help="Seed of the first prompt; it increases by 1 for each further prompt.",
    )

    compatibility: Literal["none", "kohya"] = follows_compatibility("none", "kohya")

    def summary(self) -> str:
        """Return when samples are generated, sampler and steps in one line."""
        if not (self.sample_prompts or self.sample_prompts_file):
            return "no prompts, no samples"
        periods = ((self.sample_every_n_epochs, "epoch"), (self.sample_every_n_steps, "step"))
        parts = [period_text(period, unit) for period, unit in periods if period and every(period)][:1]
        minutes = every(self.sample_every_minutes)
        parts += [f"every {number_text(minutes)} min"] if minutes is not None else []
        parts = parts or ["not during training"]
        parts += ["before training"] if self.sample_at_first else []
        return ", ".join([*parts, f"{self.label('sample_sampler')}, {self.sample_steps} steps"])
