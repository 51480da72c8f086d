"""The settings found in an image file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from core.generation.model.sources import Hashes
from core.record.problems import Problem
from core.settings.job import GenerateJob


@dataclass(frozen=True)
class ImageRecord:
    """The settings found in an image.

    job       settings that generate it again; None if there are none
    source    "atelier", "a1111", "comfyui" ...; "" if there is no job
    reason    why there is no job, in one sentence
    notes     advice about what differs or was ignored
    """

    job: GenerateJob | None = None
    source: str = ""
    reason: str = ""
    notes: list[Problem] = field(default_factory=list)
    hashes: Hashes = field(default_factory=Hashes)


# Sampler and scheduler of other programs -> ours and A1111's; with _gpu, k_ and the like taken off.
SAMPLERS = {
    "euler": "euler",
    "euler_a": "euler_a",
    "euler_ancestral": "euler_a",
    "euler_cfg_pp": "euler",
    "dpmpp_2m": "dpmsolver++",
    "dpmpp_2m_sde": "dpmsolver++_2m_sde",
    "dpmpp_sde": "dpmsolver++_sde",
    "dpmpp_2s": "dpmsingle",
    "dpmpp_2s_ancestral": "dpmsolver++_2s_a",
    "dpmpp_3m": "dpmsolver++_3m",
    "dpmpp_3m_sde": "dpmsolver++_3m_sde",
    "dpm_2": "dpm_2",
    "dpm_2_ancestral": "dpm_2_a",
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


@dataclass
class ForeignSettings:
    """source: the program; pairs: {A1111's name or ours: value}; loras: (name, U-Net strength, text encoder strength);
    left: names of what may change the image and cannot be read"""

    source: str
    prompt: str = ""
    negative: str = ""
    pairs: dict[str, str] = field(default_factory=dict)
    loras: list[tuple[str, float, float]] = field(default_factory=list)
    left: list[str] = field(default_factory=list)

    def put(self, values: Mapping[str, Any]) -> None:
        """Add pairs; None and values that are not text or numbers are left out."""
        for name, value in values.items():
            if isinstance(value, (str, int, float)) and not isinstance(value, bool) and value not in ("", "None"):
                self.pairs[name] = f"{value:g}" if isinstance(value, float) else str(value)[:300]

    def sampled(self, sampler: Any, schedule: Any = "") -> None:
        """Add the sampler and scheduler, given by another program's names."""
        name, kind = str(sampler or "").lower(), str(schedule or "").lower()
        for suffix in ("karras", "exponential"):  # samplers of k-diffusion and InvokeAI
            if name.endswith(f"_{suffix}") or (name.endswith("_k") and suffix == "karras"):
                name, kind = name.removesuffix(f"_{suffix}").removesuffix("_k"), suffix
        name = name.removeprefix("sample_").removeprefix("k_").removesuffix("_gpu")
        self.put({"Sampler": SAMPLERS.get(name, name)})
        self.put({"Schedule type": SCHEDULES.get(kind, kind.replace("_", " "))})

    def add_lora(self, name: Any, unet: Any, text: Any = None) -> None:
        """Add a LoRA unless its name or strength is missing. The name loses folder and extension."""
        if isinstance(name, str) and name and name != "None" and isinstance(unet, (int, float)):
            plain = name.replace("\\", "/").rsplit("/", 1)[-1].removesuffix(".safetensors")
            self.loras.append((plain, float(unet), float(text if isinstance(text, (int, float)) else unet)))
