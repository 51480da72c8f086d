"""Stability's model metadata (`modelspec.*`, 1.0.1), written into every trained file; every value is a string."""

from __future__ import annotations

import time
from datetime import datetime
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from core.formats.lora_metadata import RunFacts
    from core.settings.job import TrainJob

Kind = Literal["lora", "embedding", "model", "folder"]
ARCHITECTURES = {
    "sd1": "stable-diffusion-v1",
    "sd2": "stable-diffusion-v2-512",
    "sdxl": "stable-diffusion-xl-v1-base",
}
SUFFIXES = {"lora": "/lora", "embedding": "/textual-inversion", "model": "", "folder": ""}
GENERATIVE_MODELS = "https://github.com/Stability-AI/generative-models"


def architecture(family: str, prediction: str, kind: Kind = "model") -> str:
    """The name by which A1111 and ComfyUI managers look it up: `stable-diffusion-v2-768-v/lora`."""
    name = "stable-diffusion-v2-768-v" if (family, prediction) == ("sd2", "v") else ARCHITECTURES.get(family, family)
    return name + SUFFIXES[kind]


def implementation(family: str, kind: Kind) -> str:
    """Whose key names the tensors have: diffusers' in folders and in LoRAs of SD 1 and 2, the original ones elsewhere."""
    return "diffusers" if kind == "folder" or (kind == "lora" and family != "sdxl") else GENERATIVE_MODELS


def model_spec(job: TrainJob, facts: RunFacts, kind: Kind, saved_at: float | None = None) -> dict[str, str]:
    """The metadata as sd-scripts fills it; `facts.extra` may add author, description, license, tags ... (hash: never).

    saved_at  Unix seconds; None: from the facts, else now
    """
    if saved_at is None:
        saved_at = time.time() if facts.saved_at is None else facts.saved_at
    values = {
        "modelspec.sai_model_spec": "1.0.1",
        "modelspec.architecture": architecture(facts.family, facts.prediction, kind),
        "modelspec.implementation": implementation(facts.family, kind),
        "modelspec.title": job.saving.output_name,
        "modelspec.resolution": f"{facts.resolution[0]}x{facts.resolution[1]}",
        "modelspec.date": datetime.fromtimestamp(int(saved_at)).isoformat(),
        "modelspec.prediction_type": facts.prediction,
    }
    noise = job.noise
    if (noise.min_timestep, noise.max_timestep) != (0, 1000):
        values["modelspec.timestep_range"] = f"{noise.min_timestep},{noise.max_timestep}"
    if job.model.clip_skip is not None:
        values["modelspec.encoder_layer"] = str(job.model.clip_skip)
    return values | {key: value for key, value in facts.extra.items() if key.startswith("modelspec.")}
