"""Stability's model metadata (`modelspec.*`, 1.0.1), written into every trained file; every value is a string."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING, Any, Literal

from core import __version__
from core.settings.model import traits_of

if TYPE_CHECKING:
    from core.settings.job import TrainJob

SpecKind = Literal["lora", "embedding", "model", "folder", "controlnet", "lllite"]
ARCHITECTURES = {
    "sd1": "stable-diffusion-v1",
    "sd2": "stable-diffusion-v2-512",
    "sdxl": "stable-diffusion-xl-v1-base",
    "sdxl_refiner": "stable-diffusion-xl-v1-refiner",
}
SUFFIXES = {
    "lora": "/lora",
    "embedding": "/textual-inversion",
    "model": "",
    "folder": "",
    "controlnet": "/controlnet",
    "lllite": "/control-net-lllite",
}
GENERATIVE_MODELS = "https://github.com/Stability-AI/generative-models"


@dataclass(frozen=True)
class SaveFacts:
    """Facts of a training at the moment of a save, in addition to its settings.

    started_at, saved_at    Unix seconds            epoch, step  finished ones, counted from 1
    num_train_images        images x repeats      base_model_hash, ..._sha256  A1111's old hash, SHA-256 of the file
    dataset_dirs            folder name -> {"n_repeats": n, "img_count": n}
    tag_frequency           folder name -> {tag: n}
    datasets                one entry per set of folders that share batches, if folders have their own settings
    bucket_info             {"buckets": {"0": {"resolution": [w, h], "count": n}}, "mean_img_ar_error": x}
    network_module, network_args    sd-scripts' names for the kind of network and its arguments
    extra                   more metadata, copied unchanged
    """

    session_id: int = 0
    started_at: float = 0.0
    saved_at: float | None = None
    family: str = "sd1"
    prediction: str = "epsilon"
    mixed_precision: str = "no"
    seed: int | None = None
    num_train_images: int = 0
    num_reg_images: int = 0
    num_batches_per_epoch: int = 0
    num_epochs: int = 0
    epoch: int = 0
    step: int = 0
    max_train_steps: int = 0
    total_batch_size: int | None = None
    resolution: tuple[int, int] = (512, 512)
    base_model_name: str = ""
    base_model_hash: str | None = None
    base_model_sha256: str | None = None
    vae_name: str | None = None
    vae_hash: str | None = None
    vae_sha256: str | None = None
    dataset_dirs: Mapping[str, Any] = field(default_factory=dict)
    reg_dataset_dirs: Mapping[str, Any] = field(default_factory=dict)
    tag_frequency: Mapping[str, Any] = field(default_factory=dict)
    bucket_info: Mapping[str, Any] = field(default_factory=dict)
    datasets: Sequence[Mapping[str, Any]] = ()
    network_module: str = "networks.lora"
    network_args: Mapping[str, str] = field(default_factory=dict)
    extra: Mapping[str, str] = field(default_factory=dict)


def architecture(family: str, prediction: str, kind: SpecKind = "model") -> str:
    """modelspec.architecture, which A1111's and ComfyUI's managers look up: `stable-diffusion-v2-768-v/lora`."""
    name = "stable-diffusion-v2-768-v" if (family, prediction) == ("sd2", "v") else ARCHITECTURES.get(family, family)
    return name + SUFFIXES[kind]


def implementation(family: str, kind: SpecKind) -> str:
    """modelspec.implementation, the origin of the tensors' names: diffusers for folders, LoRAs of SD 1 and 2 and
    ControlNets of SDXL, else the original."""
    traits = traits_of(family)
    diffusers = {
        "folder": True,
        "lora": not traits.original_names,
        "controlnet": traits.diffusers_controlnets,
    }
    return "diffusers" if diffusers.get(kind, False) else GENERATIVE_MODELS


def model_spec(job: TrainJob, facts: SaveFacts, kind: SpecKind, saved_at: float | None = None) -> dict[str, str]:
    """The modelspec metadata as sd-scripts fills it, and the version of this program; `facts.extra` may add author,
    description, license, tags ... (but not hash).

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
        "atelier_version": __version__,
    }
    if facts.prediction in ("epsilon", "v"):  # the specification has no other
        values["modelspec.prediction_type"] = facts.prediction
    noise = job.noise
    if (noise.min_timestep, noise.max_timestep) != (0, 1000):
        values["modelspec.timestep_range"] = f"{noise.min_timestep},{noise.max_timestep}"
    if job.model.clip_skip is not None:
        values["modelspec.encoder_layer"] = str(job.model.clip_skip)
    return values | {key: value for key, value in facts.extra.items() if key.startswith("modelspec.")}


def model_spec_of(
    before: Mapping[str, str], family: str, prediction: str | None, kind: SpecKind, title: str, side: int
) -> dict[str, str]:
    """The modelspec metadata of a model without a training: its previous metadata with missing values added, and with the
    current version, implementation and prediction type.

    prediction  None if unknown      side  of the images it is made for, in pixels
    """
    values = {
        "modelspec.title": title,
        "modelspec.resolution": f"{side}x{side}",
        "modelspec.date": datetime.fromtimestamp(int(time.time())).isoformat(),
    }
    facts = {"modelspec.sai_model_spec": "1.0.1", "modelspec.implementation": implementation(family, kind)}
    if prediction in ("epsilon", "v"):
        values["modelspec.architecture"] = architecture(family, prediction, kind)
        facts["modelspec.prediction_type"] = prediction
    return {**values, **before, **facts}
