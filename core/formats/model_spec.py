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
    """What the metadata of a saved file states in addition to the job's settings.

    started_at, saved_at    Unix seconds; saved_at None: the time of writing
    epoch, step             completed epochs and optimizer steps
    num_train_images        images x repeats
    base_model_hash, base_model_sha256    A1111's old hash (8 digits) and the SHA-256 of the base model's file; likewise for the VAE
    dataset_dirs            {folder name: {"n_repeats": n, "img_count": n}}
    tag_frequency           {folder name: {tag: n}}
    datasets                one JSON object per group of folders that share batches; empty unless folders have settings of their own
    bucket_info             {"buckets": {"0": {"resolution": [w, h], "count": n}}, "mean_img_ar_error": x}
    network_module, network_args    sd-scripts' names for the network kind and its arguments
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
    """Return `modelspec.architecture`, by which A1111's and ComfyUI's model managers identify a file: "stable-diffusion-v2-768-v/lora"."""
    name = "stable-diffusion-v2-768-v" if (family, prediction) == ("sd2", "v") else ARCHITECTURES.get(family, family)
    return name + SUFFIXES[kind]


def implementation(family: str, kind: SpecKind) -> str:
    """Return `modelspec.implementation`, which says whose tensor names the file has: "diffusers" or the address of Stability's code.

    "diffusers": diffusers folders, LoRAs of SD 1.x and 2.x, ControlNets of SDXL.
    """
    traits = traits_of(family)
    diffusers = {
        "folder": True,
        "lora": not traits.original_names,
        "controlnet": traits.diffusers_controlnets,
    }
    return "diffusers" if diffusers.get(kind, False) else GENERATIVE_MODELS


def model_spec(job: TrainJob, facts: SaveFacts, kind: SpecKind, saved_at: float | None = None) -> dict[str, str]:
    """Return the `modelspec.*` metadata of a trained file as sd-scripts writes it, plus the version of Atelier.

    saved_at  Unix seconds; None: `facts.saved_at`, or now if that is None too
    Entries of `facts.extra` that start with "modelspec." (author, license, tags ...) are added and win.
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
    """Return the `modelspec.*` metadata of a converted or merged model: `before` completed and brought up to date.

    before      the metadata so far; its title, resolution, date and architecture are kept
    prediction  "epsilon" or "v"; for others and None (unknown), no architecture and prediction type are written
    side        side length in pixels of the images that the model was trained on
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
