"""What both kinds of files share: numbers read into a net and written from one."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from core.formats.models.diffusers_folder import write_part
from core.formats.models.overflow import kept_wide, largest, not_finite, overflowing, refuse_no_numbers, shown
from core.formats.tensors.lazy import in_memory
from core.formats.tensors.reading import TensorFile
from core.formats.tensors.writer import write_pickle, write_safetensors
from core.record import atomic
from core.record.problems import Problem, ProblemsError
from core.record.workspace import display_path

if TYPE_CHECKING:
    import torch
    from torch import nn


def fill(
    net: nn.Module,
    path: Path,
    places: Mapping[str, tuple[Path, str]],
    whole: Callable[[str, torch.Tensor], torch.Tensor],
) -> None:
    """Give a net the numbers of a file or folder. Raises ProblemsError for NaN and infinite ones.

    places  the net's name of each tensor -> (its file, its key)     whole  (name, value) -> the value that the net gets
    """
    import torch

    bad = []
    with ExitStack() as opened, torch.no_grad():
        sources = {file: opened.enter_context(TensorFile(file)) for file in {file for file, _ in places.values()}}
        for name, weight in net.state_dict().items():
            file, key = places[name]
            value = sources[file].read(key, torch.float32).reshape(weight.shape)
            bad += [] if largest(value) < float("inf") else [name]
            weight.copy_(whole(name, value))
    if bad:
        what = f"{path.name} contains NaN or infinite values, which make black images: {shown(bad)}"
        fix = "use another file; this one is damaged, or its training failed"
        raise ProblemsError.one(what, display_path(path), fix, "weights.not-finite")


def write_tensors(
    path: Path,
    tensors: Mapping[str, torch.Tensor],
    metadata: Mapping[str, str],
    dtype: torch.dtype | None,
    config: Mapping[str, Any] | None = None,
    pickled: bool = False,
) -> list[Problem]:
    """Write a file, complete or not at all; returns advice. If `dtype` would overflow, it is in fp32.

    metadata  of safetensors; .ckpt and .pt have none
    config    of a diffusers folder, which is written in place of a file      pickled   its weights are a .bin
    """
    import torch

    refuse_no_numbers(not_finite(tensors), path)
    names = overflowing(tensors, dtype) if dtype is not None else []
    own = torch.float32 if names else dtype
    lazy = {name: in_memory(value).cast(own) for name, value in tensors.items()}
    if config is not None:
        with atomic.folder_atomic(path) as folder:
            write_part(folder, "diffusion_pytorch_model", lazy, config, pickled=pickled, metadata=metadata)
        return [kept_wide(names, dtype, path)] if names else []
    with atomic.open_atomic(path) as temporary:
        write = partial(write_safetensors, metadata=metadata) if path.suffix == ".safetensors" else write_pickle
        write(temporary, lazy)
    return [kept_wide(names, dtype, path)] if names else []
