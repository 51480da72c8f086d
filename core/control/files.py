"""Reading and writing the weights of ControlNet and ControlNet-LLLite files."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

from core.formats.models.diffusers_folder import write_part
from core.formats.models.overflow import (
    SHOWN,
    fitting_type,
    largest,
    largest_by_name,
    not_finite_names,
    refuse_not_finite,
)
from core.formats.tensors.lazy import in_memory
from core.formats.tensors.reading import TensorFile
from core.formats.tensors.writer import write_pickle, write_safetensors
from core.record import atomic
from core.record.lazy_torch import nn, torch
from core.record.problems import Problem, ProblemsError
from core.record.units import first_of
from core.record.workspace import display_path


def fill(
    net: nn.Module,
    path: Path,
    locations: Mapping[str, tuple[Path, str]],
    convert: Callable[[str, torch.Tensor], torch.Tensor],
) -> None:
    """Load a network's weights from files. Raises ProblemsError for NaN and infinite values.

    path        the file or folder to name in problems
    locations   name of a tensor of `net` -> (file, key in the file)
    convert     (name, tensor of the file in fp32) -> the tensor to load
    """
    non_finite = []
    with ExitStack() as opened, torch.no_grad():
        sources = {file: opened.enter_context(TensorFile(file)) for file in {file for file, _ in locations.values()}}
        for name, weight in net.state_dict().items():
            file, key = locations[name]
            value = sources[file].read(key, torch.float32).reshape(weight.shape)
            non_finite += [] if largest(value) < float("inf") else [name]
            weight.copy_(convert(name, value))
    if non_finite:
        what = f"{path.name} contains NaN or infinite values, which make black images: {first_of(non_finite, SHOWN)}"
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
    """Write tensors atomically and return advice; in fp32 if a value would overflow `dtype`.

    path       .safetensors, or another suffix for a pickled file, which has no metadata
    config     write a diffusers folder with this config instead of a file; `pickled`: with a .bin
    Raises ProblemsError for NaN and infinite values.
    """
    sizes = largest_by_name(tensors)
    refuse_not_finite(not_finite_names(sizes), path)
    dtype, advice = fitting_type(sizes, dtype, path)
    lazy = {name: in_memory(value).cast(dtype) for name, value in tensors.items()}
    if config is not None:
        with atomic.folder_atomic(path) as folder:
            write_part(folder, "diffusion_pytorch_model", lazy, config, pickled=pickled, metadata=metadata)
        return advice
    with atomic.open_atomic(path) as temporary:
        write = partial(write_safetensors, metadata=metadata) if path.suffix == ".safetensors" else write_pickle
        write(temporary, lazy)
    return advice
