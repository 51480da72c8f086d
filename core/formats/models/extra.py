"""Tensors of a model that belong to none of its parts: unknown keys, SD 2's last layer, buffers, EMA weights.

A single file has them among its tensors; a diffusers folder made from one has them in a separate file.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from core.formats.detect import read_json
from core.formats.models import sd_keys
from core.formats.models.checkpoint import Checkpoint, Part, TensorLocation
from core.formats.models.single_file import V_MARKER
from core.formats.models.text_keys import full_name
from core.formats.tensors.entry import TensorEntry
from core.formats.tensors.header import read_header
from core.formats.tensors.lazy import LazyTensor, OpenFiles
from core.record.lazy_torch import torch
from core.record.problems import ProblemsError
from core.record.units import count

EXTRA_FILE = "atelier_extra.safetensors"  # in a diffusers folder, with a single file's names
# The U-Net's averages in CompVis' files: its keys from "diffusion_model." on, without their dots.
EMA, EMA_UNET = "model_ema.", "model_ema.diffusion_model"
POSITIONS = "embeddings.position_ids"
STATED = "generation_defaults.json"  # next to a diffusers folder's model_index.json: {"guidance_scale": 4.0}
GUIDANCE = "atelier_guidance_scale"  # the same in the metadata of files made from such a folder
SHOWN = 3


def extra_file(path: Path) -> Path | None:
    """Return the file with a model's extra tensors: a single file itself; of a folder its EXTRA_FILE, None without one."""
    if path.is_dir():
        return path / EXTRA_FILE if (path / EXTRA_FILE).is_file() else None
    return path


def metadata_of(source: Checkpoint) -> dict[str, str]:
    """Return a model's metadata as strings.

    Of a file: its metadata (for a pickle the top-level numbers). Of a folder: that of its U-Net and of the file it was made from, and
    its guidance scale.
    """
    metadata: dict[str, str] = {}
    files = source.parts["unet"].files if source.path.is_dir() and "unet" in source.parts else []
    for file in (*files, extra_file(source.path)):
        if file is not None and (file.suffix != ".bin"):
            metadata |= read_header(file)[1]
    stated = (read_json(source.path / STATED) or {}) if source.path.is_dir() else {}
    return metadata | ({GUIDANCE: str(stated["guidance_scale"])} if "guidance_scale" in stated else {})


def extra_tensors(
    source: Checkpoint,
    states: Mapping[str, Mapping[str, LazyTensor]],
    files: OpenFiles,
    family: str,
    dtype: torch.dtype | None,
    prediction: str | None,
    *,
    ema: bool = False,
) -> dict[str, LazyTensor]:
    """Return the source's tensors that are in none of the parts in `states`: unknown keys, SD 2's last layer, LDM's buffers ...

    dtype       of text encoder and EMA weights among them; the others keep theirs
    prediction  that is written: "epsilon" drops the v-prediction marker
    ema         include the EMA weights; those from before a training do not match the trained weights
    """
    file = extra_file(source.path)
    if file is None:
        return {}
    in_parts = _names_in_parts(source, states) if file == source.path else set()
    cast = (*(sd_keys.CLIP_PREFIXES.get(family, "\0"), sd_keys.OPEN_CLIP_PREFIXES.get(family, "\0")), EMA_UNET)
    extra: dict[str, LazyTensor] = {}
    for name, entry in read_header(file)[0].items():
        if name in in_parts or (name.startswith(EMA) and not ema) or (name == V_MARKER and prediction == "epsilon"):
            continue
        if name.endswith(POSITIONS):
            extra |= positions(name, entry.shape, family)
            continue
        tensor = files.lazy(TensorLocation(file, name, entry))
        extra[name] = tensor.cast(dtype) if name.startswith(cast) else tensor
    return extra


def _names_in_parts(source: Checkpoint, states: Mapping[str, Mapping[str, LazyTensor]]) -> set[str]:
    """Return the names in the source's file of all tensors that are written as part of `states`, and of its whole VAE."""
    names = {
        location.name
        for name, part in source.parts.items()
        for key, location in part.locations.items()
        if key in states.get(name, {})
    }
    # Nothing of a VAE that is replaced or left out may remain, even if it had more tensors.
    return names | (
        {location.name for location in source.parts["vae"].locations.values()} if "vae" in source.parts else set()
    )


def positions(name: str, shape: tuple[int, ...], family: str) -> dict[str, LazyTensor]:
    """Return {name: position_ids computed again}, since 16-bit files round them; CLIP's gets "text_model." in its name."""
    prefix = sd_keys.CLIP_PREFIXES.get(family, "\0")
    if name.startswith(prefix):
        name = prefix + full_name(name.removeprefix(prefix))

    def position_ids(dtype: torch.dtype) -> torch.Tensor:
        return torch.arange(shape[-1], dtype=dtype).expand(shape).contiguous()

    return {name: LazyTensor("int64", shape, position_ids)}


def ema_names(name: str, family: str) -> tuple[str, str]:
    """Return both spellings of the EMA key of a U-Net tensor: CompVis' without dots, and with dots.
    name: diffusers' name of the tensor"""
    ldm = sd_keys.unet_to_ldm(name, family)
    return EMA_UNET + ldm.replace(".", ""), f"{EMA_UNET}.{ldm}"


def with_ema(unet: Part, source: Checkpoint, family: str) -> Part:
    """Return the U-Net with its EMA weights in place of its weights. Raises ProblemsError if the model does not have all of them."""
    file = extra_file(source.path)
    entries: Mapping[str, TensorEntry] = read_header(file)[0] if file is not None else {}
    locations = {}
    for name, location in unet.locations.items():
        for ldm in ema_names(name, family):
            entry = entries.get(ldm)
            if file is not None and entry is not None and entry.shape == location.entry.shape:
                locations[name] = TensorLocation(file, ldm, entry)
    missing = [name for name in unet.locations if name not in locations]
    if not locations:
        what, fix = "The model has no EMA weights", "choose another setting for EMA weights, or a file with them"
        raise ProblemsError.one(what, str(source.path), fix, "model.no-ema")
    if missing:
        what = (
            f"The EMA weights lack {count(len(missing), 'tensor')} of the U-Net, such as {', '.join(missing[:SHOWN])}"
        )
        fix = "use the U-Net's own weights: drop or keep the EMA weights"
        raise ProblemsError.one(what, str(source.path), fix, "model.incomplete-ema")
    return replace(unet, locations=locations)
