"""Converts a model or a VAE to another format or precision, from file to file, without building modules."""

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
    largest_values,
    part_state,
    single_file_content,
    size_metadata,
)
from core.formats.tensors.lazy import LazyTensor, OpenFiles
from core.formats.tensors.writer import Wrote, write_safetensors
from core.record import atomic
from core.record.cancel import CancelToken
from core.record.lazy_torch import torch
from core.record.problems import Problem, ProblemsError


@dataclass(frozen=True)
class Conversion(Output):
    """A model on disk and how to write it (Output). `parts`: the source's, or replacements."""

    source: Checkpoint
    parts: Mapping[str, Part]


def convert(
    conversion: Conversion,
    change: Callable[[States], States] | None = None,
    cancel: CancelToken | None = None,
    wrote: Wrote | None = None,
) -> list[Problem]:
    """Write a model in another format or precision, atomically at its target; tensors are read while they are written.

    change    the parts' lazy tensors -> those to write, as for a merge; reading them may raise TooLarge
    wrote     called with the bytes of each written tensor
    returns   advice: weights too large for the dtype (everything is fp32 then), or with NaN or infinite values
    Tensors that the format has no place for are kept (core.formats.models.extra).
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
                Model.of(
                    conversion,
                    files,
                    cast,
                    conversion.dtype,
                    on_tensor=_raise_if_not_finite,
                    cancel=cancel,
                    wrote=wrote,
                ).write()
                return []
        states, dtype, advice = _cast(states, conversion.dtype, conversion.target)
        note = partial(_note_damage, damaged)
        Model.of(conversion, files, states, dtype, on_tensor=note, cancel=cancel, wrote=wrote).write()
    vae, source = conversion.parts.get("vae"), conversion.source.path
    if vae is not None and all(name.startswith(("vae.", sd_keys.VAE_PREFIX)) for name in damaged):
        source = vae.source  # it may be another file's
    return advice + _damage_warning(damaged, source)


def as_single_file(conversion: Conversion, files: OpenFiles) -> tuple[dict[str, LazyTensor], dict[str, str]]:
    """Return (lazy tensors by key, metadata) of the model as a single file."""
    model = Model.of(conversion, files, conversion.states(files), None)
    return single_file_content(model), {**conversion.facts.metadata, **conversion.sizes()}


def _cast(states: States, dtype: torch.dtype | None, target: Path) -> tuple[States, torch.dtype | None, list[Problem]]:
    """Cast the tensors to `dtype`, or to fp32 if some are too large for it; None keeps theirs. Return (tensors, the dtype in use, advice
    about large values)."""
    dtype, advice = fitting_type(largest_values(states, dtype), dtype, target)
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
    """Write a VAE as a file with LDM's names, or as a diffusers folder if `folder`. Return advice as `convert`.
    family, published: of the model that the VAE is for"""
    config, damaged = vae.full_config(published.config("vae")), list[str]()
    with OpenFiles() as files:
        states, _, advice = _cast({"vae": part_state(vae, config, files)}, dtype, target)
        state = {name: tensor.observed(partial(_note_damage, damaged, name)) for name, tensor in states["vae"].items()}
        if folder:
            kind = published.kind("vae")
            with atomic.folder_atomic(target) as path:
                content = kind.in_folder(config, state)
                write_part(path, kind.stem, content, config, pickled=False, metadata={}, cancel=cancel, wrote=wrote)
        else:
            named = file_tensors({"vae": state}, family)
            with atomic.open_atomic(target) as temporary:
                bare = {name.removeprefix(sd_keys.VAE_PREFIX): tensor for name, tensor in named.items()}
                write_safetensors(temporary, bare, size_metadata({"vae": config}, published), cancel, wrote)
    return advice + _damage_warning(damaged, vae.source)


class TooLarge(ProblemsError):
    """Raised when a changed weight does not fit the dtype it is read in."""


class _NotFinite(Exception):
    """Raised when a NaN or infinite value is about to be written."""


def _raise_if_not_finite(name: str, value: torch.Tensor) -> None:
    """Raise _NotFinite if `value` has a NaN or infinite value."""
    if not isfinite(largest(value)):
        raise _NotFinite(name)


def _note_damage(damaged: list[str], name: str, value: torch.Tensor) -> None:
    """Append `name` to `damaged` if `value` has a NaN or infinite value."""
    if name not in damaged and not isfinite(largest(value)):
        damaged.append(name)


def _damage_warning(damaged: list[str], source: Path) -> list[Problem]:
    """Return a warning about the tensors in `damaged`; [] without any."""
    return [not_finite_warning(sorted(damaged), source)] if damaged else []
