"""What a model holds besides its parts: unknown keys, SD 2's last layer, buffers, EMA weights. A single file has them among
its tensors; a diffusers folder that was made of one keeps them in a file of its own."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from core.formats.detect import read_json
from core.formats.models import sd_keys
from core.formats.models.checkpoint import Checkpoint, Part, Place
from core.formats.models.single_file import V_MARKER
from core.formats.tensors.entry import TensorEntry
from core.formats.tensors.header import read_header
from core.formats.tensors.lazy import LazyTensor, OpenFiles
from core.record.problems import ProblemsError

if TYPE_CHECKING:
    import torch

EXTRA_FILE = "atelier_extra.safetensors"  # in a diffusers folder: names of a single file
# The U-Net's averages in CompVis' files: its keys from "diffusion_model." on, without their dots.
EMA, EMA_UNET = "model_ema.", "model_ema.diffusion_model"
POSITIONS = "embeddings.position_ids"
STATED = "generation_defaults.json"  # next to a diffusers folder's model_index.json: {"guidance_scale": 4.0}
GUIDANCE = "atelier_guidance_scale"  # the same in the metadata of what is made of such a folder
SHOWN = 3


def beside_parts(path: Path) -> Path | None:
    """The file that holds a model's further tensors: a single file itself, a folder's own file of them, or None."""
    if path.is_dir():
        return path / EXTRA_FILE if (path / EXTRA_FILE).is_file() else None
    return path


def metadata_of(source: Checkpoint) -> dict[str, str]:
    """The metadata of a file, with the plain numbers of a pickle (epoch, global_step); of a folder those of its U-Net and of
    the file it was made of, with the guidance that it states."""
    found: dict[str, str] = {}
    files = source.parts["unet"].files if source.path.is_dir() and "unet" in source.parts else []
    for file in (*files, beside_parts(source.path)):
        if file is not None and (file.suffix != ".bin"):
            found |= read_header(file)[1]
    stated = (read_json(source.path / STATED) or {}) if source.path.is_dir() else {}
    return found | ({GUIDANCE: str(stated["guidance_scale"])} if "guidance_scale" in stated else {})


def survivors(
    source: Checkpoint,
    states: Mapping[str, Mapping[str, LazyTensor]],
    files: OpenFiles,
    family: str,
    dtype: torch.dtype | None,
    prediction: str | None,
    *,
    ema: bool = False,
) -> dict[str, LazyTensor]:
    """Tensors of the source besides the parts that are written: unknown keys, SD 2's last layer, position_ids, LDM's
    buffers and losses. The text encoder's and the EMA weights get the saved dtype, the rest keep theirs.

    ema   also the EMA weights: those from before a training would not match the trained weights
    """
    file = beside_parts(source.path)
    if file is None:
        return {}
    written = _written(source, states) if file == source.path else set()
    cast = (*(sd_keys.CLIP_PREFIXES.get(family, "\0"), sd_keys.OPEN_CLIP_PREFIXES.get(family, "\0")), EMA_UNET)
    found: dict[str, LazyTensor] = {}
    for name, entry in read_header(file)[0].items():
        if name in written or (name.startswith(EMA) and not ema) or (name == V_MARKER and prediction == "epsilon"):
            continue
        if name.endswith(POSITIONS):
            found |= _positions(name, entry.shape, family)
            continue
        tensor = files.lazy(Place(file, name, entry))
        found[name] = tensor.cast(dtype) if name.startswith(cast) else tensor
    return found


def _written(source: Checkpoint, states: Mapping[str, Mapping[str, LazyTensor]]) -> set[str]:
    """Names of the source's tensors that are written as those of a part."""
    names = {
        place.name
        for name, part in source.parts.items()
        for ours, place in part.places.items()
        if ours in states.get(name, {})
    }
    # Nothing of a VAE that is replaced or left out may remain, even if it had more tensors.
    return names | ({place.name for place in source.parts["vae"].places.values()} if "vae" in source.parts else set())


def _positions(name: str, shape: tuple[int, ...], family: str) -> dict[str, LazyTensor]:
    """A fresh position_ids tensor for CLIP: 16-bit files round it. Under its usual name with `text_model.`"""
    prefix = sd_keys.CLIP_PREFIXES.get(family, "\0")
    if name.startswith(prefix):
        name = prefix + sd_keys.clip_to_ldm(name.removeprefix(prefix))

    def made(dtype: torch.dtype) -> torch.Tensor:
        import torch

        return torch.arange(shape[-1], dtype=dtype).expand(shape).contiguous()

    return {name: LazyTensor("int64", shape, made)}


def ema_names(name: str, family: str) -> tuple[str, str]:
    """Where files keep the average of a U-Net's tensor, by diffusers' name: CompVis' without dots, others with them."""
    ldm = sd_keys.unet_to_ldm(name, family)
    return EMA_UNET + ldm.replace(".", ""), f"{EMA_UNET}.{ldm}"


def with_ema(unet: Part, source: Checkpoint, family: str) -> Part:
    """The U-Net with its EMA weights in place of its own. Raises ProblemsError where the model has none, or not all."""
    file = beside_parts(source.path)
    entries: Mapping[str, TensorEntry] = read_header(file)[0] if file is not None else {}
    places = {}
    for name, place in unet.places.items():
        for ldm in ema_names(name, family):
            entry = entries.get(ldm)
            if file is not None and entry is not None and entry.shape == place.entry.shape:
                places[name] = Place(file, ldm, entry)
    missing = [name for name in unet.places if name not in places]
    if not places:
        what, fix = "The model has no EMA weights", "choose another setting for EMA weights, or a file with them"
        raise ProblemsError.one(what, str(source.path), fix, "model.no-ema")
    if missing:
        what = f"The EMA weights lack {len(missing)} tensors of the U-Net, such as {', '.join(missing[:SHOWN])}"
        fix = "use the U-Net's own weights: drop or keep the EMA weights"
        raise ProblemsError.one(what, str(source.path), fix, "model.incomplete-ema")
    return replace(unet, places=places)
