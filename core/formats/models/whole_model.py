"""Writes a full model as one file or a diffusers folder: atomically, and with one tensor in memory besides the model."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Literal

from core.formats.models import single_file, text_keys
from core.formats.models.checkpoint import SIZES_KEY, Checkpoint, Part, open_checkpoint, open_vae
from core.formats.models.diffusers_folder import Published, write_part, write_rest
from core.formats.models.extra import EXTRA_FILE, POSITIONS, extra_tensors, metadata_of
from core.formats.models.overflow import fitting_type, largest_of_lazy, not_finite_names, refuse_not_finite
from core.formats.models.part_kinds import part_title
from core.formats.tensors.header import sniff
from core.formats.tensors.lazy import LazyTensor, OpenFiles, in_memory
from core.formats.tensors.writer import Wrote, file_bytes, write_pickle, write_safetensors
from core.record import atomic
from core.record.cancel import CancelToken
from core.record.lazy_torch import torch
from core.record.problems import Problem, ProblemsError
from core.record.space import require_space

Form = Literal["safetensors", "ckpt", "diffusers", "diffusers_safetensors"]
ENDINGS: dict[str, str] = {"safetensors": ".safetensors", "ckpt": ".ckpt", "diffusers": "", "diffusers_safetensors": ""}
INPAINTING_CHANNELS = 9
SPARE_BYTES = 64 << 20  # kept free on the disk; tokenizers and configs take 10 MB of it
States = Mapping[str, Mapping[str, LazyTensor]]


@dataclass(frozen=True)
class ModelFacts:
    """What a written model states besides its weights.

    metadata     strings for safetensors files (core.formats.model_spec)
    prediction   "epsilon" or "v", marked in a file and in a folder's scheduler; None: as in the source
    epoch, step  of this training; a .ckpt adds them to the source's
    """

    metadata: Mapping[str, str] = field(default_factory=dict)
    prediction: str | None = None
    zero_terminal_snr: bool = False
    epoch: int = 0
    step: int = 0


@dataclass(frozen=True)
class Output:
    """What to write of a model, and where.

    source            the model on disk that it comes from, whose unknown tensors are kept; None: no such model
    parts             {part: part of a file or folder, or tensors in memory by the module's names}
    dtype             of all weights; None keeps them as stored
    ema               keep the EMA weights too
    kohya_projection  copy the text projection untransposed between file and folder, as sd-scripts does; `parts` must have been read so
    variant           "fp16": an infix in the names of a folder's weight files
    writes_extra_file       write the unknown tensors of a folder to a separate file
    """

    source: Checkpoint | None
    target: Path
    parts: Mapping[str, Mapping[str, torch.Tensor] | Part]
    family: str
    form: Form
    published: Published
    facts: ModelFacts
    dtype: torch.dtype | None = None
    ema: bool = False
    kohya_projection: bool = False
    variant: str = ""
    writes_extra_file: bool = True

    @cached_property
    def configs(self) -> dict[str, Mapping[str, Any]]:
        """Config by part: of the part's folder, or for weights in memory the source's; else the published one."""
        of_source = self.source.parts if self.source is not None else {}
        published = {name: self.published.config(name) for name in self.parts}
        stored = {name: part if isinstance(part, Part) else of_source.get(name) for name, part in self.parts.items()}
        return {
            name: config if (part := stored[name]) is None else part.full_config(config)
            for name, config in published.items()
        }

    def states(self, files: OpenFiles) -> States:
        """Return the lazy tensors of all parts."""
        return {name: part_state(part, self.configs[name], files) for name, part in self.parts.items()}

    def sizes(self) -> dict[str, str]:
        """Return metadata with the config values that differ from the published ones, as `size_metadata`."""
        return size_metadata(self.configs, self.published)


@dataclass(frozen=True)
class Model:
    """A full model, ready to be written.

    extra   further tensors of the source by their keys in a single file
    on_tensor     called with (name, tensor or piece of it) as it is written
    wrote   called with the bytes of each written tensor
    """

    output: Output
    states: States
    files: OpenFiles
    extra: Mapping[str, LazyTensor]
    on_tensor: Callable[[str, torch.Tensor], None] | None = None
    cancel: CancelToken | None = None
    wrote: Wrote | None = None

    @classmethod
    def of(cls, output: Output, files: OpenFiles, states: States, dtype: torch.dtype | None, **fields: Any) -> Model:
        """Build the model with the tensors `states` and the source's tensors that are in no part.

        dtype    for the latter, as in `extra_tensors`
        fields   further fields of Model: on_tensor, cancel, wrote
        """
        facts, source, extra = output.facts, output.source, dict[str, LazyTensor]()
        if source is not None:
            extra = extra_tensors(source, states, files, output.family, dtype, facts.prediction, ema=output.ema)
        return cls(output, states, files, extra, **fields)

    def write(self) -> None:
        """Write the model, atomically at its target."""
        if ENDINGS[self.output.form]:
            _write_file(self)
        else:
            _write_folder(self)

    def observed(self, tensors: Mapping[str, LazyTensor], prefix: str = "") -> dict[str, LazyTensor]:
        """Return the lazy tensors, with `on_tensor` called as they are read with `prefix` before their names."""
        if self.on_tensor is None:
            return dict(tensors)
        return {name: tensor.observed(partial(self.on_tensor, prefix + name)) for name, tensor in tensors.items()}


def form_of(source: Path | str) -> Form:
    """Return the format of a model on disk, which a saved model gets if `save_model_as` is empty."""
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
) -> list[Problem]:
    """Write a trained model, atomically at `target`. Return advice.

    parts    {"unet", "text_encoder" ...: tensors by the module's names on any device, or a part on disk}; parts that are left out
             are copied from `source` as stored there
    source   the model that was trained; also provides a file's unknown keys, epoch and step, and a folder's configs, tokenizers and
             scheduler
    vae      a file or folder whose VAE replaces the source's
    dtype    of all weights; None keeps them as in memory or as stored
    kohya_projection   SDXL's text projection was read untransposed, as in sd-scripts, and is written back so
    Raises ProblemsError for NaN or infinite weights, and for a target that cannot be used.
    """
    target, source = Path(target), Path(source) if source is not None else None
    _refuse_target(target, source, form)
    atomic.remove_leftovers(target.parent)  # they may be filling the disk
    opened = open_checkpoint(source, family, kohya_projection=kohya_projection) if source is not None else None
    chosen = _chosen_parts(parts, opened, vae, published, target)
    kohya = kohya_projection and source is not None and source.is_file()
    facts = facts or ModelFacts()
    output = Output(
        opened, target, chosen, family, form, published, facts, kohya_projection=kohya, writes_extra_file=False
    )
    with OpenFiles() as files:
        states = output.states(files)
        sizes = largest_values(states, dtype, set(parts))
        refuse_not_finite(not_finite_names(sizes), target)
        dtype, advice = fitting_type(sizes, dtype, target)
        Model.of(output, files, cast_states(states, dtype), dtype).write()
    return advice


# ---- content ----


def _refuse_target(target: Path, source: Path | None, form: Form) -> None:
    """Raise ProblemsError if `target` is the base model, a file where a folder is written (or reverse), or a folder of other files."""
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
    """Return every part of the family: from `parts`, else the VAE of `vae`, else the source's. Raises ProblemsError if one is missing."""
    chosen: dict[str, Mapping[str, torch.Tensor] | Part] = {**(source.parts if source is not None else {}), **parts}
    if vae is not None and "vae" not in parts:
        chosen["vae"] = open_vae(vae)
    missing = [part_title(name) for name in published.parts if name not in chosen]
    if missing:
        what = f"The model to be saved has no {' and no '.join(missing)}"
        fix = "set a VAE in the model settings" if missing == ["VAE"] else "train from a full checkpoint"
        raise ProblemsError.one(what, str(target), fix, "saving.missing-parts")
    return {name: chosen[name] for name in published.parts}


def part_state(
    part: Mapping[str, torch.Tensor] | Part, config: Mapping[str, Any], files: OpenFiles
) -> dict[str, LazyTensor]:
    """Return a part's lazy tensors by the names of `Part.locations`.

    Without position_ids, and without a text encoder's layers beyond `num_hidden_layers` of its config.
    """
    if isinstance(part, Part):
        state = {name: files.lazy(location) for name, location in part.locations.items()}
    else:
        state = {text_keys.bare_name(name): in_memory(value) for name, value in part.items()}
    layers = config.get("num_hidden_layers")
    return {
        name: tensor
        for name, tensor in state.items()
        if not name.endswith(POSITIONS) and (layers is None or text_keys.layer_index(name) < layers)
    }


def largest_values(states: States, dtype: torch.dtype | None, always: Collection[str] = ()) -> dict[str, float]:
    """Return {"part.tensor": largest absolute value} of the parts that may overflow in `dtype`, and of the parts in `always`."""
    sizes: dict[str, float] = {}
    for name, state in states.items():
        narrower = dtype is not None and any(
            torch.finfo(tensor.dtype).max > torch.finfo(dtype).max for tensor in state.values() if tensor.is_float
        )
        if name in always or narrower:
            sizes |= {f"{name}.{key}": size for key, size in largest_of_lazy(state).items()}
    return sizes


def cast_states(states: States, dtype: torch.dtype | None) -> dict[str, dict[str, LazyTensor]]:
    """Return the lazy tensors in `dtype`; None keeps theirs."""
    return {name: {key: tensor.cast(dtype) for key, tensor in state.items()} for name, state in states.items()}


def _refuse_full_disk(target: Path, needed: int) -> None:
    """Raise ProblemsError if `needed` bytes do not fit on the disk."""
    fix = "free some space, or save as fp16 or bf16, which take half of fp32"
    require_space(target.parent, needed, "Saving the model", fix, reserve=SPARE_BYTES)


# ---- formats ----


def single_file_content(model: Model) -> dict[str, LazyTensor]:
    """Return {key: tensor} of everything in a single file of the model."""
    output, facts = model.output, model.output.facts
    tensors = single_file.file_tensors(model.states, output.family, kohya_projection=output.kohya_projection)
    spare = single_file.spare_layer(tensors, output.family)
    marks = single_file.markers(facts.prediction, facts.zero_terminal_snr)
    return model.observed(marks | spare | dict(model.extra) | tensors)


def size_metadata(configs: Mapping[str, Mapping[str, Any]], published: Published) -> dict[str, str]:
    """Return {SIZES_KEY: JSON text of {part: {config key: value}}} with the sizes that differ from the published configs, needed to load a
    single file; {} if none differ.
    configs: {part: config}"""
    sizes_by_part = {}
    for name, config in configs.items():
        usual = published.config(name)
        sizes = {key: config[key] for key in single_file.SIZES if key in config and config[key] != usual.get(key)}
        if sizes:
            sizes_by_part[name] = sizes
    return {SIZES_KEY: json.dumps(sizes_by_part)} if sizes_by_part else {}


def _write_file(model: Model) -> None:
    """Write a .safetensors, or a .ckpt of {"state_dict", "epoch", "global_step"} that torch.load(weights_only=True) reads."""
    output, facts, tensors = model.output, model.output.facts, single_file_content(model)
    _refuse_full_disk(output.target, file_bytes(tensors))
    with atomic.open_atomic(output.target) as temporary:
        if output.form == "safetensors":
            metadata = {**facts.metadata, **output.sizes()}
            write_safetensors(temporary, tensors, metadata, model.cancel, model.wrote)
        else:
            before = metadata_of(output.source) if output.source is not None else {}
            counters = {
                "epoch": _integer(before.get("epoch")) + facts.epoch,
                "global_step": _integer(before.get("global_step")) + facts.step,
            }
            plain: dict[str, int | str] = {**counters, **output.sizes()}
            write_pickle(temporary, tensors, "state_dict", plain, model.cancel, model.wrote)
        model.files.close()  # before the file is put in place: Windows cannot replace an open one


def _integer(text: str | None) -> int:
    """Parse an integer of the metadata; 0 if it is missing or not an integer."""
    return int(text) if text is not None and text.lstrip("-").isdigit() else 0


def _write_folder(model: Model) -> None:
    """Write a diffusers folder with all parts, extra tensors, tokenizers and scheduler, atomically."""
    output, facts, published = model.output, model.output.facts, model.output.published
    configs, kinds = output.configs, {name: published.kind(name) for name in model.states}
    content = {
        name: model.observed(kinds[name].in_folder(configs[name], state), f"{name}.")
        for name, state in model.states.items()
    }
    extra = model.observed(model.extra) if output.writes_extra_file else {}
    _refuse_full_disk(output.target, sum(file_bytes(tensors) for tensors in (*content.values(), extra)))
    with atomic.folder_atomic(output.target) as temporary:
        for name, tensors in content.items():
            write_part(
                temporary / name,
                kinds[name].stem,
                tensors,
                configs[name],
                pickled=output.form == "diffusers",
                metadata=facts.metadata if name == published.denoiser else {},
                variant=output.variant,
                cancel=model.cancel,
                wrote=model.wrote,
            )
        if output.writes_extra_file:
            write_safetensors(temporary / EXTRA_FILE, extra, facts.metadata, model.cancel, model.wrote)
        inpainting = configs[published.denoiser].get("in_channels") == INPAINTING_CHANNELS
        source = output.source.path if output.source is not None else None
        write_rest(temporary, published, source, facts.prediction, facts.zero_terminal_snr, inpainting)
        model.files.close()
