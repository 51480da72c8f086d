"""Conversion of a model to another format or precision, and of its VAE: from file to file, without building modules."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from math import isfinite
from pathlib import Path

from core.formats.models import sd_keys
from core.formats.models.checkpoint import Checkpoint, Part
from core.formats.models.diffusers_folder import Published, write_part
from core.formats.models.overflow import fitting_type, largest, not_finite_warning
from core.formats.models.single_file import file_tensors
from core.formats.models.whole_model import (
    Model,
    Output,
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
from core.record.lazy_torch import torch
from core.record.problems import Problem, ProblemsError


@dataclass(frozen=True)
class Conversion(Output):
    """A model of a file or folder, to write in another form. parts: the source's, or replacements"""

    source: Checkpoint
    parts: Mapping[str, Part]


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
        states = conversion.states(files)
        states = change(states) if change is not None else states
        if conversion.dtype is not None:
            # Few models have values that a dtype cannot hold: only those are read twice.
            with suppress(_NotFinite, TooLarge):
                cast = cast_states(states, conversion.dtype)
                Model.of(conversion, files, cast, conversion.dtype, see=_refuse, cancel=cancel, wrote=wrote).write()
                return []
        states, dtype, advice = _cast(states, conversion.dtype, conversion.target)
        note = partial(_note_damage, damaged)
        Model.of(conversion, files, states, dtype, see=note, cancel=cancel, wrote=wrote).write()
    return advice + _damage(damaged, conversion.source.path)


def as_single_file(conversion: Conversion, files: OpenFiles) -> tuple[dict[str, LazyTensor], dict[str, str]]:
    """The lazy tensors and the metadata of the model as a single file."""
    model = Model.of(conversion, files, conversion.states(files), None)
    return one_file(model), {**conversion.facts.metadata, **conversion.sizes()}


def _cast(states: States, dtype: torch.dtype | None, target: Path) -> tuple[States, torch.dtype | None, list[Problem]]:
    """(the tensors in `dtype`, or in fp32 if some are too large for it, that dtype, the advice about those)."""
    dtype, advice = fitting_type(sizes_beyond(states, dtype), dtype, target)
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
    config, damaged = vae.full_config(published.config("vae")), list[str]()
    with OpenFiles() as files:
        states, _, advice = _cast({"vae": part_state(vae, config, files)}, dtype, target)
        state = {name: tensor.watched(partial(_note_damage, damaged, name)) for name, tensor in states["vae"].items()}
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


def _note_damage(damaged: list[str], name: str, value: torch.Tensor) -> None:
    if name not in damaged and not isfinite(largest(value)):
        damaged.append(name)


def _damage(damaged: list[str], source: Path) -> list[Problem]:
    return [not_finite_warning(sorted(damaged), source)] if damaged else []
