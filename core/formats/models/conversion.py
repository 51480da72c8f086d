"""Conversion of a model to another format or precision, and of its VAE: from file to file, without building modules."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING, Any

from core.formats.models import sd_keys
from core.formats.models.checkpoint import Checkpoint, Part
from core.formats.models.diffusers_folder import Published, write_part
from core.formats.models.extra import extra_tensors
from core.formats.models.overflow import beyond, largest, not_finite_warning, written_in_fp32
from core.formats.models.single_file import file_tensors
from core.formats.models.whole_model import (
    WRITERS,
    Form,
    Model,
    ModelFacts,
    States,
    cast_states,
    one_file,
    other_sizes,
    part_state,
    sizes_beyond,
)
from core.formats.tensors.lazy import LazyTensor, OpenFiles
from core.formats.tensors.writer import Wrote, write_safetensors
from core.record import atomic
from core.record.cancel import CancelToken
from core.record.problems import Problem, ProblemsError

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Conversion:
    """What to write of a model, and where.

    parts             the source's parts to write, or replacements
    dtype             of all weights; None keeps them as stored
    ema               keep the EMA weights too
    kohya_projection  the text projection is copied untransposed between file and folder, as in sd-scripts, and `parts`
                      were read so
    variant           "fp16" in the names of a folder's weight files
    """

    source: Checkpoint
    target: Path
    parts: Mapping[str, Part]
    family: str
    form: Form
    published: Published
    facts: ModelFacts
    dtype: torch.dtype | None = None
    ema: bool = False
    kohya_projection: bool = False
    variant: str = ""


def convert(
    conversion: Conversion,
    change: Callable[[States], States] | None = None,
    cancel: CancelToken | None = None,
    wrote: Wrote | None = None,
) -> list[Problem]:
    """Write a model in another format or precision; it appears atomically at its target.

    Tensors are read as they are written; those without a place in the format are kept (core.formats.models.extra).
    change    the parts' lazy tensors -> those to write, as for a merge; reading them may raise TooLarge
    wrote     called with the bytes of each tensor that was written
    returns   advice: weights too large for the dtype (all are fp32 then), or with NaN or infinite values
    """
    atomic.remove_leftovers(conversion.target.parent)  # they may be filling the disk
    damaged: list[str] = []
    with OpenFiles() as files:
        states = _states(conversion, files)
        states = change(states) if change is not None else states
        if conversion.dtype is not None:
            # Few models have values that a dtype cannot hold: only those are read twice.
            with suppress(_NotFinite, TooLarge):
                model = _model(conversion, files, cast_states(states, conversion.dtype), conversion.dtype)
                WRITERS[conversion.form](replace(model, see=_refuse, cancel=cancel, wrote=wrote), conversion.target)
                return []
        states, dtype, advice = _cast(states, conversion.dtype, conversion.target)
        model = _model(conversion, files, states, dtype)
        WRITERS[conversion.form](
            replace(model, see=partial(_note, damaged), cancel=cancel, wrote=wrote), conversion.target
        )
    return advice + _damage(damaged, conversion.source.path)


def as_single_file(conversion: Conversion, files: OpenFiles) -> tuple[dict[str, LazyTensor], dict[str, str]]:
    """The lazy tensors and the metadata of the model as a single file."""
    model = _model(conversion, files, _states(conversion, files), None)
    return one_file(model), {**conversion.facts.metadata, **other_sizes(model.configs, conversion.published)}


def _configs(conversion: Conversion) -> dict[str, dict[str, Any]]:
    return {name: part.config_after(conversion.published.config(name)) for name, part in conversion.parts.items()}


def _states(conversion: Conversion, files: OpenFiles) -> States:
    configs = _configs(conversion)
    return {name: part_state(part, configs[name], files) for name, part in conversion.parts.items()}


def _model(conversion: Conversion, files: OpenFiles, states: States, dtype: torch.dtype | None) -> Model:
    """The lazy model to write. dtype: of the tensors besides these parts"""
    return Model(
        conversion.family,
        states,
        _configs(conversion),
        conversion.published,
        conversion.source,
        conversion.facts,
        files,
        extra_tensors(
            conversion.source, states, files, conversion.family, dtype, conversion.facts.prediction, ema=conversion.ema
        ),
        conversion.kohya_projection,
        keeps_extra=True,
        variant=conversion.variant,
    )


def _cast(states: States, dtype: torch.dtype | None, target: Path) -> tuple[States, torch.dtype | None, list[Problem]]:
    """(the tensors in `dtype`, or in fp32 if some are too large for it, that dtype, the advice about those)."""
    names = beyond(sizes_beyond(states, dtype), dtype) if dtype is not None else []
    advice = [written_in_fp32(names, dtype, target)] if names else []
    if names:
        import torch

        dtype = torch.float32
    return cast_states(states, dtype), dtype, advice


def write_vae(
    vae: Part,
    target: Path,
    family: str,
    published: Published,
    *,
    folder: bool,
    dtype: torch.dtype | None = None,
    cancel: CancelToken | None = None,
    wrote: Wrote | None = None,
) -> list[Problem]:
    """Write a VAE as a file with LDM's names, or as a diffusers folder. Returns advice as `convert` does."""
    config, damaged = vae.config_after(published.config("vae")), list[str]()
    with OpenFiles() as files:
        states, _, advice = _cast({"vae": part_state(vae, config, files)}, dtype, target)
        state = {name: tensor.watched(partial(_note, damaged, name)) for name, tensor in states["vae"].items()}
        if folder:
            kind = published.kind("vae")
            with atomic.folder_atomic(target) as path:
                content = kind.in_folder(config, state)
                write_part(path, kind.stem, content, config, pickled=False, metadata={}, cancel=cancel, wrote=wrote)
        else:
            named = file_tensors({"vae": state}, family)
            with atomic.open_atomic(target) as temporary:
                bare = {name.removeprefix(sd_keys.VAE_PREFIX): tensor for name, tensor in named.items()}
                write_safetensors(temporary, bare, other_sizes({"vae": config}, published), cancel, wrote)
    return advice + _damage(damaged, vae.source)


class TooLarge(ProblemsError):
    """A changed value that is too large for the dtype it is read in."""


class _NotFinite(Exception):
    """A NaN or infinite value found while writing."""


def _refuse(name: str, value: torch.Tensor) -> None:
    if not isfinite(largest(value)):
        raise _NotFinite(name)


def _note(damaged: list[str], name: str, value: torch.Tensor) -> None:
    if name not in damaged and not isfinite(largest(value)):
        damaged.append(name)


def _damage(damaged: list[str], source: Path) -> list[Problem]:
    return [not_finite_warning(sorted(damaged), source)] if damaged else []
