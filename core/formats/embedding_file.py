"""Files of textual inversion: vectors of a new word, one tensor for each text encoder (or for each layer, XTI)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from core.formats.header import read_header
from core.formats.overflow import not_finite, refuse_no_numbers
from core.formats.tensor_writer import save_pickle
from core.formats.tensors import TensorFile
from core.record import atomic
from core.record.problems import ProblemsError

if TYPE_CHECKING:
    import torch

ONE = ("emb_params",)  # SD 1 and 2; A1111 reads any single tensor
SDXL = ("clip_l", "clip_g")
LAYERS = (
    *("IN01", "IN02", "IN04", "IN05", "IN07", "IN08", "MID"),
    *(f"OUT{number:02d}" for number in range(3, 12)),
)


def write_embedding(
    path: Path, vectors: Mapping[str, torch.Tensor], metadata: Mapping[str, str], dtype: torch.dtype
) -> None:
    """.safetensors with metadata, or .pt (torch.save of the same names), whole or not at all.

    vectors   {"emb_params": [n, C]}, {"clip_l": ..., "clip_g": ...} or one for each of LAYERS
    """
    from safetensors.torch import save_file

    refuse_no_numbers(not_finite(vectors), path)
    ready = {name: value.detach().to("cpu", dtype).contiguous().clone() for name, value in vectors.items()}
    with atomic.open_atomic(path) as temporary:
        if path.suffix == ".safetensors":
            save_file(ready, temporary, metadata={"format": "pt", **metadata})
        else:
            save_pickle(ready, temporary)


def read_embedding(path: Path) -> dict[str, torch.Tensor]:
    """{name: float32 [n, C]} under this program's names, from a .safetensors or .pt file of any of the usual programs.

    A1111's own (string_to_param), diffusers' and others' single tensors are taken as "emb_params".
    """
    import torch

    with TensorFile(path) as file:
        found = {name: file.read(name, torch.float32) for name in file.entries}
    found = {name: value[None] if value.ndim == 1 else value for name, value in found.items()}
    return {name: found[own] for name, own in _names({name: value.ndim for name, value in found.items()}, path).items()}


def read_shapes(path: Path) -> dict[str, tuple[int, int]]:
    """{name: (n, C)} of the same tensors, from the header alone."""
    entries, _ = read_header(path)
    shapes = {name: (1, *entry.shape) if len(entry.shape) == 1 else entry.shape for name, entry in entries.items()}
    names = _names({name: len(shape) for name, shape in shapes.items()}, path)
    return {name: (shapes[own][0], shapes[own][-1]) for name, own in names.items()}


def _names(axes: Mapping[str, int], path: Path) -> dict[str, str]:
    """This program's names -> the file's, of those that are vectors. axes: of each tensor in the file."""
    for names in (LAYERS, SDXL):
        if set(names) & set(axes):
            return {name: name for name in names if name in axes}
    tables = [name for name, number in axes.items() if number == 2]
    if not tables:
        raise ProblemsError.one("The file holds no embedding", str(path), "choose a textual inversion's file")
    return {ONE[0]: tables[0]}
