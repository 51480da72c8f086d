"""Writes a full model: one file or a diffusers folder, atomically, with one tensor in memory besides the model."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from core.formats.models import single_file, text_keys
from core.formats.models.checkpoint import SIZES_KEY, Checkpoint, Part, open_checkpoint, open_vae
from core.formats.models.diffusers_folder import Published, write_part, write_rest
from core.formats.models.extra import EXTRA_FILE, POSITIONS, extra_tensors, metadata_of
from core.formats.models.overflow import (
    beyond,
    largest_of,
    not_finite_names,
    refuse_not_finite,
    written_in_fp32,
)
from core.formats.models.part_kinds import part_title
from core.formats.tensors.header import sniff
from core.formats.tensors.lazy import LazyTensor, OpenFiles, in_memory
from core.formats.tensors.writer import Wrote, file_bytes, write_pickle, write_safetensors
from core.record import atomic
from core.record.cancel import CancelToken
from core.record.problems import Problem, ProblemsError
from core.record.space import require_space

if TYPE_CHECKING:
    import torch


Form = Literal["safetensors", "ckpt", "diffusers", "diffusers_safetensors"]
ENDINGS: dict[str, str] = {"safetensors": ".safetensors", "ckpt": ".ckpt", "diffusers": "", "diffusers_safetensors": ""}
INPAINTING_CHANNELS = 9
SPARE_BYTES = 64 << 20  # kept free on the disk; tokenizers and configs take 10 MB of it
States = Mapping[str, Mapping[str, LazyTensor]]


@dataclass(frozen=True)
class ModelFacts:
    """A model's metadata next to its weights.

    metadata     all strings, for safetensors files (core.formats.model_spec)
    prediction   "epsilon" or "v", marked in a file and by the scheduler of a folder; None: as in the source
    epoch, step  of this training; a .ckpt adds them to the source's
    """

    metadata: Mapping[str, str] = field(default_factory=dict)
    prediction: str | None = None
    zero_terminal_snr: bool = False
    epoch: int = 0
    step: int = 0


@dataclass(frozen=True)
class Model:
    """A full model to write.

    extra             further tensors of the source, by their names in a single file
    keeps_extra       a folder gets a file of them
    kohya_projection  the text projection is written untransposed
    variant           "fp16" in the names of a folder's weight files
    see               called with (name, tensor) of each that is written
    """

    family: str
    states: States
    configs: Mapping[str, Mapping[str, Any]]
    published: Published
    source: Checkpoint | None
    facts: ModelFacts
    files: OpenFiles
    extra: Mapping[str, LazyTensor]
    kohya_projection: bool = False
    keeps_extra: bool = False
    variant: str = ""
    see: Callable[[str, torch.Tensor], None] | None = None
    cancel: CancelToken | None = None
    wrote: Wrote | None = None

    def watched(self, tensors: Mapping[str, LazyTensor], prefix: str = "") -> dict[str, LazyTensor]:
        if self.see is None:
            return dict(tensors)
        return {name: tensor.watched(partial(self.see, prefix + name)) for name, tensor in tensors.items()}


def form_of(source: Path | str) -> Form:
    """The format of a model, for an empty `save_model_as`."""
    source = Path(source)
    if not source.is_dir():
        return "safetensors" if sniff(source) == "safetensors" else "ckpt"
    parts = open_checkpoint(source).parts.items()
    weights = [file for name, part in parts if not name.startswith(("vae", "text_encoder")) for file in part.files]
    return "diffusers" if all(file.suffix == ".bin" for file in weights) else "diffusers_safetensors"


def write_model(
    target: Path | str,
    parts: Mapping[str, Mapping[str, torch.Tensor] | Part],
    *,
    family: str,
    form: Form,
    published: Published,
    source: Path | str | None = None,
    vae: Path | str | None = None,
    dtype: torch.dtype | None = None,
    facts: ModelFacts | None = None,
    kohya_projection: bool = False,
    cancel: CancelToken | None = None,
) -> list[Problem]:
    """Write a model; it appears atomically at `target`. Returns advice.

    parts    "unet", "text_encoder" ... -> tensors by the module's names, on any device. Leave out parts that were not
             trained: they are then copied from `source` as stored there
    source   the model that was trained. Also provides a file's unknown keys, epoch and step, and a folder's configs,
             tokenizers and scheduler
    vae      a file or folder whose VAE replaces the source's
    dtype    of all weights; None keeps them as in memory, or as stored
    kohya_projection   SDXL's text projection was read as in sd-scripts, and is written back that way
    """
    target, source = Path(target), Path(source) if source is not None else None
    _refuse_target(target, source, form)
    atomic.remove_leftovers(target.parent)  # they may be filling the disk
    opened = open_checkpoint(source, family, kohya_projection=kohya_projection) if source is not None else None
    chosen = _chosen_parts(parts, opened, vae, published, target)
    configs = {name: _config(name, part, opened, published) for name, part in chosen.items()}
    with OpenFiles() as files:
        states = {name: part_state(part, configs[name], files) for name, part in chosen.items()}
        dtype, advice = _fitting_type(states, set(parts), dtype, target)
        facts = facts or ModelFacts()
        states = cast_states(states, dtype)
        model = Model(
            family,
            states,
            configs,
            published,
            opened,
            facts,
            files,
            extra_tensors(opened, states, files, family, dtype, facts.prediction) if opened is not None else {},
            kohya_projection and source is not None and source.is_file(),
            cancel=cancel,
        )
        WRITERS[form](model, target)
    return advice


# ---- content ----


def _refuse_target(target: Path, source: Path | None, form: Form) -> None:
    """Raise ProblemsError for the base model as target, and for a folder that contains anything but a model."""
    if source is not None and target.exists() and source.exists() and target.samefile(source):
        what = "The output would overwrite the base model"
        raise ProblemsError.one(what, str(target), "choose another output name or folder", "saving.over-base-model")
    if target.exists() and target.is_dir() != (ENDINGS[form] == ""):
        kind = "folder" if target.is_dir() else "file"
        what = f"A {kind} of this name already exists"
        raise ProblemsError.one(what, str(target), "rename it, or save as another name", "saving.name-taken")
    if target.is_dir() and any(target.iterdir()) and not (target / "model_index.json").is_file():
        what = "The folder contains files that are not part of a model, so it was not replaced"
        raise ProblemsError.one(what, str(target), "choose another output name", "saving.foreign-folder")


def _chosen_parts(
    parts: Mapping[str, Mapping[str, torch.Tensor] | Part],
    source: Checkpoint | None,
    vae: Path | str | None,
    published: Published,
    target: Path,
) -> dict[str, Mapping[str, torch.Tensor] | Part]:
    """Every part of the family: from `parts`, else the source's."""
    chosen: dict[str, Mapping[str, torch.Tensor] | Part] = {**(source.parts if source is not None else {}), **parts}
    if vae is not None and "vae" not in parts:
        chosen["vae"] = open_vae(vae)
    missing = [part_title(name) for name in published.parts if name not in chosen]
    if missing:
        what = f"The model to be saved has no {' and no '.join(missing)}"
        fix = "set a VAE in the model settings" if missing == ["VAE"] else "train from a full checkpoint"
        raise ProblemsError.one(what, str(target), fix, "saving.missing-parts")
    return {name: chosen[name] for name in published.parts}


def _config(
    name: str, part: Mapping[str, torch.Tensor] | Part, source: Checkpoint | None, published: Published
) -> Mapping[str, Any]:
    """A part's own config; the source's if the weights in memory come from it; else the published one."""
    if not isinstance(part, Part) and source is not None and name in source.parts:
        part = source.parts[name]
    config = published.config(name)
    return part.config_after(config) if isinstance(part, Part) else config


def part_state(
    part: Mapping[str, torch.Tensor] | Part, config: Mapping[str, Any], files: OpenFiles
) -> dict[str, LazyTensor]:
    """A part's tensors by the names of core.formats.models.checkpoint, without counters and unused layers."""
    if isinstance(part, Part):
        state = {name: files.lazy(place) for name, place in part.places.items()}
    else:
        state = {text_keys.bare_name(name): in_memory(value) for name, value in part.items()}
    layers = config.get("num_hidden_layers")
    return {
        name: tensor
        for name, tensor in state.items()
        if not name.endswith(POSITIONS) and (layers is None or _layer(name) < layers)
    }


def _layer(name: str) -> int:
    """The number of a layer: `encoder.layers.7.mlp.fc1.bias` -> 7; -1 outside of layers."""
    components = name.split(".")
    return int(components[components.index("layers") + 1]) if "layers" in components else -1


def _fitting_type(
    states: States, trained: set[str], dtype: torch.dtype | None, target: Path
) -> tuple[torch.dtype | None, list[Problem]]:
    """(the requested dtype, or fp32 if it would overflow; advice). Raises ProblemsError for NaN and inf."""
    import torch

    sizes = sizes_beyond(states, dtype, trained)
    refuse_not_finite(not_finite_names(sizes), target)
    names = beyond(sizes, dtype) if dtype is not None else []
    return (torch.float32, [written_in_fp32(names, dtype, target)]) if dtype is not None and names else (dtype, [])


def sizes_beyond(states: States, dtype: torch.dtype | None, always: Collection[str] = ()) -> dict[str, float]:
    """The largest values of each tensor that does not fit `dtype`, and of those in `always`."""
    import torch

    sizes: dict[str, float] = {}
    for name, state in states.items():
        narrower = dtype is not None and any(
            torch.finfo(tensor.dtype).max > torch.finfo(dtype).max for tensor in state.values() if tensor.is_float
        )
        if name in always or narrower:
            sizes |= {f"{name}.{key}": size for key, size in largest_of(state).items()}
    return sizes


def cast_states(states: States, dtype: torch.dtype | None) -> dict[str, dict[str, LazyTensor]]:
    return {name: {key: tensor.cast(dtype) for key, tensor in state.items()} for name, state in states.items()}


def _refuse_full_disk(target: Path, needed: int) -> None:
    fix = "free some space, or save as fp16 or bf16, which take half of fp32"
    require_space(target.parent, needed, "Saving the model", fix, reserve=SPARE_BYTES)


# ---- formats ----


def one_file(model: Model) -> dict[str, LazyTensor]:
    """All tensors of the model as one file."""
    facts = model.facts
    tensors = single_file.file_tensors(model.states, model.family, kohya_projection=model.kohya_projection)
    spare = single_file.spare_layer(tensors, model.family)
    marks = single_file.markers(facts.prediction, facts.zero_terminal_snr)
    return model.watched(marks | spare | dict(model.extra) | tensors)


def other_sizes(configs: Mapping[str, Mapping[str, Any]], published: Published) -> dict[str, str]:
    """Metadata with the sizes of a model that differ from the published ones, such as the starter's, for loading a
    single file."""
    sizes_by_part = {}
    for name, config in configs.items():
        usual = published.config(name)
        sizes = {key: config[key] for key in single_file.SIZES if key in config and config[key] != usual.get(key)}
        if sizes:
            sizes_by_part[name] = sizes
    return {SIZES_KEY: json.dumps(sizes_by_part)} if sizes_by_part else {}


def _write_safetensors(model: Model, target: Path) -> None:
    tensors = one_file(model)
    _refuse_full_disk(target, file_bytes(tensors))
    with atomic.open_atomic(target) as temporary:
        write_safetensors(
            temporary,
            tensors,
            {**model.facts.metadata, **other_sizes(model.configs, model.published)},
            model.cancel,
            model.wrote,
        )
        model.files.close()  # before the file is put in place: Windows cannot replace an open one


def _write_ckpt(model: Model, target: Path) -> None:
    """Write {"state_dict", "epoch", "global_step"}, plain: torch.load(weights_only=True) reads it."""
    tensors = one_file(model)
    _refuse_full_disk(target, file_bytes(tensors))
    before = metadata_of(model.source) if model.source is not None else {}
    counters = {
        "epoch": _integer(before.get("epoch")) + model.facts.epoch,
        "global_step": _integer(before.get("global_step")) + model.facts.step,
    }
    with atomic.open_atomic(target) as temporary:
        write_pickle(
            temporary,
            tensors,
            "state_dict",
            {**counters, **other_sizes(model.configs, model.published)},
            model.cancel,
            model.wrote,
        )
        model.files.close()


def _integer(text: str | None) -> int:
    return int(text) if text is not None and text.lstrip("-").isdigit() else 0


def _write_folder(model: Model, target: Path, pickled: bool = False) -> None:
    facts, source = model.facts, model.source.path if model.source is not None else None
    kinds = {name: model.published.kind(name) for name in model.states}
    content = {
        name: model.watched(kinds[name].in_folder(model.configs[name], state), f"{name}.")
        for name, state in model.states.items()
    }
    extra = model.watched(model.extra) if model.keeps_extra else {}
    _refuse_full_disk(target, sum(file_bytes(tensors) for tensors in (*content.values(), extra)))
    with atomic.folder_atomic(target) as temporary:
        for name, tensors in content.items():
            write_part(
                temporary / name,
                kinds[name].stem,
                tensors,
                model.configs[name],
                pickled=pickled,
                metadata=facts.metadata if name == model.published.denoiser else {},
                variant=model.variant,
                cancel=model.cancel,
                wrote=model.wrote,
            )
        if model.keeps_extra:
            write_safetensors(temporary / EXTRA_FILE, extra, facts.metadata, model.cancel, model.wrote)
        inpainting = model.configs[model.published.denoiser].get("in_channels") == INPAINTING_CHANNELS
        write_rest(temporary, model.published, source, facts.prediction, facts.zero_terminal_snr, inpainting)
        model.files.close()


def _write_pickled_folder(model: Model, target: Path) -> None:
    _write_folder(model, target, pickled=True)


WRITERS = {
    "safetensors": _write_safetensors,
    "ckpt": _write_ckpt,
    "diffusers": _write_pickled_folder,
    "diffusers_safetensors": _write_folder,
}
