"""The settings for which A1111's text has a name: a row each, for writing and reading."""

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from core import extensions
from core.generation.model.sources import Hashes
from core.generation.plan.initial import blur_of
from core.generation.sample.guidances import GUIDANCES
from core.record.bounded_json import json_or_none
from core.settings.base import Declared, declared, value_of
from core.settings.job import GenerateJob

ZERO_SNR = "Zero Terminal SNR"
HASH = re.compile(r"\s*\[[0-9a-fA-F]+\]$")
# Groups and settings of a generation that do not affect a single image, or that the text has in another form.
SILENT_GROUPS = ("prompts", "controls", "detailer", "output", "memory", "generation_memory")
SILENT = {"model.base_model", "model.family"} | set(
    f"generate.{name}"
    for name in (
        "prompt", "negative_prompt", "width", "height", "count", "batch_size", "sampler", "schedule_type",
        "prompt_weights", "emb_normalize_mode", "network_merge", "network_merge_n_models", "network_pre_calc",
    )
)  # fmt: skip


@dataclass(frozen=True)
class Row:
    """A setting in A1111's text.

    key         A1111's name
    path        of the setting, such as "generate.steps"
    to_text     value -> text; None: do not write it
    from_text   text -> value, which is validated later; raises ValueError
    acts        (job) -> whether the setting has an effect and is written
    value       (job, hashes of its files) -> the value to write; None: that of the setting
    """

    key: str
    path: str
    to_text: Callable[[Any], str | None] = str
    from_text: Callable[[str], Any] = str
    acts: Callable[[GenerateJob], bool] = lambda job: True
    value: Callable[[GenerateJob, Hashes], Any] | None = None

    def text(self, job: GenerateJob, hashes: Hashes) -> str | None:
        """Return the setting's text for A1111, or None if it is not written."""
        value = value_of(job, self.path) if self.value is None else self.value(job, hashes)
        return self.to_text(value) if value is not None and self.acts(job) else None


def value_text(value: Any) -> str:
    """Return the text of a setting's value, from which the same value can be parsed."""
    if isinstance(value, tuple | list):
        return json.dumps(value)
    return f"{value:g}" if isinstance(value, float) and float(f"{value:g}") == value else str(value)


def _number(key: str, path: str, **more: Any) -> Row:
    """Return a row for a number or another value that is written as it is. key: A1111's name; more: other fields of `Row`"""
    return Row(key, path, value_text, **more)


def _labels(
    key: str, path: str, labels: Mapping[str, Any], read_only: Mapping[str, Any] | None = None, **more: Any
) -> Row:
    """Return a row for a choice.

    key         A1111's name
    labels      {A1111's text: value}
    read_only   further texts that are read but not written
    more        other fields of `Row`
    """
    values = {label.casefold(): value for label, value in {**labels, **(read_only or {})}.items()}

    def read(text: str) -> Any:
        if text.casefold() not in values:
            raise ValueError(text)
        return values[text.casefold()]

    return Row(key, path, {value: label for label, value in labels.items()}.get, read, **more)


def _guidance(text: str) -> str:
    """Return a guidance kind's name. Raises ValueError for an unknown kind."""
    extensions.load()
    if text not in GUIDANCES:
        raise ValueError(text)
    return text


def has_initial_image(job: GenerateJob) -> bool:
    """Return whether the job has an initial image."""
    return bool(job.image_to_image.image_path)


def _inpaints(job: GenerateJob) -> bool:
    """Return whether the job inpaints."""
    return has_initial_image(job) and bool(job.image_to_image.mask_path)


def _has_variation(job: GenerateJob) -> bool:
    """Return whether the job has a variation strength."""
    return bool(job.generate.variation_strength)


def _refiner_text(job: GenerateJob, hashes: Hashes) -> str | None:
    """Return the refiner's file name with its hash, "name [0123456789]"; None or "" without a refiner."""
    name = job.refiner.refiner_checkpoint
    digest = hashes.refiners.get(name or "", "")[:10]
    return name and Path(name).name.removesuffix(".safetensors") + (f" [{digest}]" if digest else "")


GROUP = "image_to_image"
NO_VAE = ("automatic", "none", "default", "default (model)", "baked vae", "auto")  # the model's
ROWS = (
    _number("Steps", "generate.steps"),
    _number("CFG scale", "generate.guidance_scale"),
    _number("Seed", "generate.seed"),
    _number("Variation seed", "generate.variation_seed", acts=_has_variation),
    _number("Variation seed strength", "generate.variation_strength", acts=_has_variation),
    Row(
        "VAE",
        "model.vae",
        lambda path: Path(path).name,
        lambda text: None if text.casefold() in NO_VAE else text,
    ),
    _number("Clip skip", "model.clip_skip"),
    _number(
        "Denoising strength",
        f"{GROUP}.strength",
        acts=lambda job: has_initial_image(job) or job.hires.highres_fix_scale is not None,
    ),
    _number("Mask blur", f"{GROUP}.mask_blur", acts=_inpaints, value=lambda job, hashes: blur_of(job)),
    _labels(
        "Mask mode", f"{GROUP}.mask_invert", {"Inpaint not masked": True}, {"Inpaint masked": False}, acts=_inpaints
    ),
    _labels(
        "Masked content",
        f"{GROUP}.masked_content",
        {"fill": "fill", "latent noise": "latent_noise", "latent nothing": "latent_nothing"},
        {"original": "original"},
        acts=_inpaints,
    ),
    _labels(
        "Inpaint area", f"{GROUP}.inpaint_area", {"Only masked": "masked"}, {"Whole picture": "whole"}, acts=_inpaints
    ),
    _number(
        "Masked area padding",
        f"{GROUP}.mask_padding",
        acts=lambda job: _inpaints(job) and job.image_to_image.inpaint_area == "masked",
    ),
    _labels(
        "Resize mode", f"{GROUP}.fit", {"Crop and resize": "crop"}, {"Just resize": "resize"}, acts=has_initial_image
    ),
    Row(
        "Refiner", "refiner.refiner_checkpoint", from_text=lambda text: HASH.sub("", text) or None, value=_refiner_text
    ),
    _number("Refiner switch at", "refiner.refiner_switch_at", acts=lambda job: bool(job.refiner.refiner_checkpoint)),
    _labels("Noise schedule", "generate.zero_terminal_snr", {ZERO_SNR: "on"}, {"Default": "auto"}),
    _labels("RNG", "start_noise.noise_source", {"CPU": "cpu", "GPU": "device"}, {"NV": "device", "cuda": "device"}),
    Row("Guidance", "generate.guidance", lambda name: None if name == "classic" else str(name), _guidance),
)
_HAVE_ROWS = frozenset(row.path for row in ROWS)


def other_settings() -> dict[str, Declared]:
    """Return {name: declaration} of the settings that affect an image but have no name in A1111.

    If a package's setting has the name of another, its path is the name.
    """
    settings: dict[str, Declared] = {}
    for entry in declared(GenerateJob):
        if entry.group not in SILENT_GROUPS and entry.path not in SILENT | _HAVE_ROWS and entry.kind != "list":
            settings[entry.path if entry.name in settings else entry.name] = entry
    return settings


def other_texts(job: GenerateJob) -> dict[str, str]:
    """Return {name: text} of the `other_settings` that differ from their defaults, without those of unselected guidance kinds."""
    texts = {}
    for name, entry in other_settings().items():
        value = value_of(job, entry.path)
        idle = entry.group in GUIDANCES and entry.group != job.generate.guidance
        if value is not None and value != entry.default and not idle:
            texts[name] = value_text(value)
    return texts


def read_other(entry: Declared, text: str) -> Any:
    """Return the value of one of the `other_settings`, not validated. Raises ValueError for a pair that is not JSON."""
    value = json_or_none(text) if entry.kind == "pair" else text
    if value is None:
        raise ValueError(f"{entry.title} is not JSON")
    return value
