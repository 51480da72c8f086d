"""Textual inversion files: the vectors of a token, one tensor per text encoder (or per layer: XTI).

Formats: `emb_params` (kohya), `clip_l` and `clip_g` (SDXL), `string_to_param` (A1111), {token: tensor} (diffusers), and 16 layers
(XTI). A1111's and diffusers' can hold several named tokens.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from math import prod
from pathlib import Path

from core.formats.lora.names import BUNDLED
from core.formats.models.overflow import SHOWN, not_finite, refuse_not_finite
from core.formats.tensors.entry import FLOATS, TensorEntry
from core.formats.tensors.header import read_header
from core.formats.tensors.lazy import in_memory
from core.formats.tensors.reading import TensorFile
from core.formats.tensors.writer import save_pickle, write_safetensors
from core.record import atomic
from core.record.lazy_torch import torch
from core.record.problems import ProblemsError
from core.record.units import first_of
from core.record.workspace import display_path

ONE = ("emb_params",)  # SD 1 and 2; A1111 reads any single tensor
SDXL = ("clip_l", "clip_g")
A1111 = "string_to_param."
TOKEN = "atelier_token"  # in metadata: what it was trained for, where its file has another name
MOST_NUMBERS = 20_000_000  # 75 vectors for each of SDXL's two encoders are 153,600
LAYERS = (
    *("IN01", "IN02", "IN04", "IN05", "IN07", "IN08", "MID"),
    *(f"OUT{number:02d}" for number in range(3, 12)),
)


def write_embedding(
    path: Path, vectors: Mapping[str, torch.Tensor], metadata: Mapping[str, str], dtype: torch.dtype
) -> None:
    """Write a .safetensors with metadata, or a .pt without, atomically. Raises ProblemsError for NaN or infinity.
    vectors: {"emb_params": [n, C]}, {"clip_l": [n, C], "clip_g": [n, C]} or one [n, C] per name in LAYERS"""
    refuse_not_finite(not_finite(vectors), path)
    ready = {name: value.detach().to("cpu", dtype).contiguous().clone() for name, value in vectors.items()}
    with atomic.open_atomic(path) as temporary:
        if path.suffix == ".safetensors":
            write_safetensors(temporary, {name: in_memory(value) for name, value in ready.items()}, metadata)
        else:
            save_pickle(ready, temporary)


def read_embedding(path: Path, token: str = "") -> dict[str, torch.Tensor]:
    """Return {name as in `write_embedding`: float32 [n, C]} from a .safetensors or .pt file of any common program.

    token   selects one of a file with several (`tokens_in`); "" is the first
    A1111's format (string_to_param), diffusers' and other single tensors become "emb_params".
    Raises ProblemsError if the file has no such embedding, and for NaN or infinite vectors.
    """
    with TensorFile(path) as file:
        names = _names(file.entries, path, token)
        vectors = {name: file.read(key, torch.float32) for name, key in names.items()}
    if damaged := not_finite(vectors):
        what = f"{path.name} contains NaN or infinite vectors: {first_of([names[name] for name in damaged], SHOWN)}"
        fix = "use an earlier checkpoint of this embedding: its training failed, or the file is damaged"
        raise ProblemsError.one(what, display_path(path), fix, "weights.not-finite")
    return {name: value[None] if value.ndim == 1 else value for name, value in vectors.items()}


def read_shapes(path: Path, token: str = "") -> dict[str, tuple[int, int]]:
    """Return {name: (n, C)} of the tensors of `read_embedding`, from the header only."""
    entries, _ = read_header(path)
    shapes = {name: entries[key].shape for name, key in _names(entries, path, token).items()}
    return {name: (shape[0] if len(shape) == 2 else 1, shape[-1]) for name, shape in shapes.items()}


def tokens_in(path: Path) -> list[str]:
    """Return the tokens of a file with several, or of embeddings in a LoRA file; [] for a single token, which is named by the file."""
    entries = read_header(path)[0]
    tokens = list(_tables(entries))
    return bundled_tokens(entries) or (tokens if len(tokens) > 1 else [])


def bundled_tokens(names: Iterable[str]) -> list[str]:
    """Return the tokens of the embeddings in a LoRA file, by its keys."""
    inside = (name.removeprefix(BUNDLED) for name in names if name.startswith(BUNDLED))
    parted = (name.partition(f".{A1111}")[0] if f".{A1111}" in name else name.rpartition(".")[0] for name in inside)
    return [token for token in dict.fromkeys(parted) if token]


def _tables(entries: Mapping[str, TensorEntry]) -> dict[str, str]:
    """Return {token: tensor name} for tensors named after tokens, without diffusers' angle brackets: "<fox>" -> "fox"."""
    vectors = [name for name, entry in entries.items() if _are_vectors(entry)]
    if set(vectors) & {*LAYERS, *SDXL, *ONE}:
        return {}
    vectors = [name for name in vectors if name.startswith(A1111)] or vectors
    return {name.removeprefix(A1111).strip("<> ") or name: name for name in vectors}


def _names(entries: Mapping[str, TensorEntry], path: Path, token: str) -> dict[str, str]:
    """Return {name as in `write_embedding`: key in the file} of a token's vectors. Raises ProblemsError if there are none."""
    if token in bundled_tokens(entries):
        begin = f"{BUNDLED}{token}."
        inside = {name.removeprefix(begin): entry for name, entry in entries.items() if name.startswith(begin)}
        return {name: begin + key for name, key in _names(inside, path, "").items()}
    vectors = {name for name, entry in entries.items() if _are_vectors(entry)}
    for names in (LAYERS, SDXL, ONE):
        if set(names) & vectors:
            keys = {name: name for name in names if name in vectors}
            break
    else:
        tables = _tables(entries)
        table = tables.get(token) if token else next(iter(tables.values()), None)
        keys = {ONE[0]: table} if table else {}
    if not keys:
        what = "The file does not contain an embedding"
        raise ProblemsError.one(what, str(path), "choose a textual inversion embedding", "embedding.not-an-embedding")
    if sum(prod(entries[key].shape) for key in keys.values()) > MOST_NUMBERS:
        what = "The file is too large for an embedding"
        raise ProblemsError.one(what, str(path), "choose a textual inversion embedding", "embedding.too-large")
    return keys


def _are_vectors(entry: TensorEntry) -> bool:
    """Return whether the tensor is a floating-point vector, or a matrix of vectors."""
    return len(entry.shape) in (1, 2) and 0 not in entry.shape and entry.dtype in FLOATS
