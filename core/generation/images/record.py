"""The settings read from an image file, of Atelier and of other programs."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from core.generation.model.sources import Hashes
from core.record.file_titles import file_stem
from core.record.problems import Problem
from core.settings.job import GenerateJob


@dataclass(frozen=True)
class ImageRecord:
    """The result of reading the settings in an image.

    job      settings that generate it again; None if there are none
    source   "atelier", "a1111", "comfyui" ...; "" without a job
    reason   one sentence that says why there is no job
    notes    advice about differences and ignored settings
    hashes   of the files, as far as stored
    model    name of the model in another program
    """

    job: GenerateJob | None = None
    source: str = ""
    reason: str = ""
    notes: list[Problem] = field(default_factory=list)
    hashes: Hashes = field(default_factory=Hashes)
    model: str = ""


# Sampler and scheduler of other programs -> ours and A1111's; without _gpu, k_ and the like.
SAMPLERS = {
    "euler": "euler",
    "euler_a": "euler_a",
    "euler_ancestral": "euler_a",
    "euler_cfg_pp": "euler_cfg_pp",
    "euler_ancestral_cfg_pp": "euler_a_cfg_pp",
    "er_sde": "er_sde",
    "dpmpp_2m": "dpmsolver++",
    "dpmpp_2m_sde": "dpmsolver++_2m_sde",
    "dpmpp_sde": "dpmsolver++_sde",
    "dpmpp_2s": "dpmsingle",
    "dpmpp_2s_ancestral": "dpmsolver++_2s_a",
    "dpmpp_2s_a": "dpmsolver++_2s_a",
    "dpmpp_3m": "dpmsolver++_3m",
    "dpmpp_3m_sde": "dpmsolver++_3m_sde",
    "dpm_2": "dpm_2",
    "dpm_2_ancestral": "dpm_2_a",
    "dpm_2_a": "dpm_2_a",
    "dpm2": "dpm_2",
    "dpm2_a": "dpm_2_a",
    "kdpm_2": "dpm_2",
    "kdpm_2_a": "dpm_2_a",
    "uni_pc": "unipc",
    "uni_pc_bh2": "unipc",
    "unipc": "unipc",
    "ddim": "ddim",
    "ddim_v3": "ddim",
    "heun": "heun",
    "lms": "lms",
    "pndm": "pndm",
    "plms": "pndm",
    "deis": "deis",
    "ddpm": "ddpm",
    "lcm": "lcm",
    "tcd": "tcd",
}


SCHEDULES = {"native": "Automatic", "sgm_uniform": "SGM uniform", "kl_optimal": "KL Optimal"}
# Schedules at the end of a sampler's name: "dpmpp_2m_karras"; _k is Karras in InvokeAI.
_ENDINGS = ("karras", "exponential", "sgm_uniform", "ddim_uniform", "kl_optimal", "simple", "normal", "beta")


def names_of(sampler: str, schedule: str = "") -> tuple[str, str]:
    """Return (sampler here, A1111's schedule type) for another program's names. Unknown names are returned unchanged.

    sampler   may end with the schedule, "dpmpp_2m_karras"
    """
    name, kind = sampler.lower(), schedule.lower()
    if ending := next((each for each in _ENDINGS if name.endswith(f"_{each}")), ""):
        name, kind = name.removesuffix(f"_{ending}"), ending
    elif name.endswith("_k"):
        name, kind = name.removesuffix("_k"), "karras"
    name = name.removeprefix("sample_").removeprefix("k_").removesuffix("_gpu")
    return SAMPLERS.get(name, name), SCHEDULES.get(kind, kind.replace("_", " "))


@dataclass
class ForeignSettings:
    """The settings of another program.

    source   name of the program
    pairs    {A1111's or Atelier's name: text}
    loras    (name, U-Net strength, text encoder strength)
    unread   names of settings that may affect the image and cannot be read
    """

    source: str
    prompt: str = ""
    negative: str = ""
    pairs: dict[str, str] = field(default_factory=dict)
    loras: list[tuple[str, float, float]] = field(default_factory=list)
    unread: list[str] = field(default_factory=list)

    def put(self, values: Mapping[str, Any]) -> None:
        """Add settings to `pairs`, without empty ones, "None", and values that are neither text nor numbers. Long texts are cut."""
        for name, value in values.items():
            if isinstance(value, (str, int, float)) and not isinstance(value, bool) and value not in ("", "None"):
                self.pairs[name] = f"{value:g}" if isinstance(value, float) else str(value)[:300]

    def sampled(self, sampler: Any, schedule: Any = "") -> None:
        """Add the sampler and scheduler, given by another program's names."""
        name, kind = names_of(str(sampler or ""), str(schedule or ""))
        self.put({"Sampler": name, "Schedule type": kind})

    def add_lora(self, name: Any, unet: Any, text: Any = None) -> None:
        """Add a LoRA by its file; ignored without a name or strength. text: text encoder strength; None: as `unet`"""
        if isinstance(name, str) and name and name != "None" and isinstance(unet, (int, float)):
            self.loras.append((file_stem(name), float(unet), float(text if isinstance(text, (int, float)) else unet)))
