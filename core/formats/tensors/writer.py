"""Writes files of many tensors one after the other: safetensors, and torch's format."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from core.formats.tensors.chunks import ChunkedFile
from core.formats.tensors.lazy import LazyTensor
from core.formats.tensors.puts import Wrote, as_bytes, count, in_threads, put_tensor
from core.formats.tensors.reading import TORCH_NAMES

if TYPE_CHECKING:
    import torch

    from core.record.cancel import CancelToken

SAFE_NAMES = {name: safe for safe, name in TORCH_NAMES.items()}
WEIGHTS_HASH, NO_HASH = "sshs_model_hash", "0" * 64  # in the metadata until the tensors are written
PRECISIONS = {"fp32": "float32", "fp16": "float16", "bf16": "bfloat16"}  # as in settings -> torch's name
HEADER_BYTES_PER_TENSOR = 256  # upper bound of a header entry, to check the free space


def write_safetensors(
    path: Path,
    tensors: Mapping[str, LazyTensor],
    metadata: Mapping[str, str],
    cancel: CancelToken | None = None,
    wrote: Wrote | None = None,
) -> None:
    """Write the header, then the tensors, several at a time: memory for these, or for their pieces.

    metadata   all strings; `format: pt` is added, which transformers requires. NO_HASH as the WEIGHTS_HASH is replaced
               by the SHA-256 of the tensors' bytes
    """
    # Wide dtypes first, as the library does: every tensor then starts at a multiple of its item size.
    names = sorted(tensors, key=lambda name: -tensors[name].item_bytes)
    listing: dict[str, Any] = {"__metadata__": {"format": "pt", **metadata}}
    offset = 0
    for name in names:
        tensor = tensors[name]
        listing[name] = {
            "dtype": SAFE_NAMES[tensor.type],
            "shape": list(tensor.shape),
            "data_offsets": [offset, offset + tensor.byte_count],
        }
        offset += tensor.byte_count
    header = json.dumps(listing, ensure_ascii=False, separators=(",", ":")).encode("utf-8")
    header += b" " * (-len(header) % 8)
    start, digest = 8 + len(header), hashlib.sha256() if metadata.get(WEIGHTS_HASH) == NO_HASH else None
    with ChunkedFile(path, start + offset) as file, ThreadPoolExecutor(1, thread_name_prefix="hash-tensors") as hasher:
        file.put(0, as_bytes(len(header).to_bytes(8, "little") + header))
        see, puts = (lambda content: hasher.submit(digest.update, content)) if digest is not None else None, []
        for name in names:
            puts.append(partial(put_tensor, file, name, tensors[name], start, see))
            start += tensors[name].byte_count
        in_threads(puts, 1 if digest is not None else None, cancel, wrote)
    if digest is not None:
        with open(path, "rb+") as handle:
            mark = f'"{WEIGHTS_HASH}":"'  # no other text of the header has these quotes unescaped
            handle.seek(8 + header.index(f"{mark}{NO_HASH}".encode()) + len(mark))
            handle.write(digest.hexdigest().encode())


def write_pickle(
    path: Path,
    tensors: Mapping[str, LazyTensor],
    wrap: str | None = None,
    plain: Mapping[str, int | str] | None = None,
    cancel: CancelToken | None = None,
    wrote: Wrote | None = None,
) -> None:
    """Write {name: tensor} in torch's format, readable with `torch.load(weights_only=True)`. Memory: one tensor; all of
    them if one has a dtype that older versions of torch do not know (fp8).

    wrap   a key to nest the tensors under           plain  numbers and strings next to them
    """
    from core.formats.tensors.torch_file import STORAGES, write_torch_file

    state: dict[str, Any] = dict(tensors)
    if not all(tensor.dtype in STORAGES for tensor in tensors.values()):
        state = {}
        for name, tensor in tensors.items():
            state[name] = _alone(tensor.read())
            count(tensor.byte_count, cancel, wrote)
        return save_pickle({wrap: state, **(plain or {})} if wrap else state, path)
    write_torch_file(path, {wrap: state, **(plain or {})} if wrap else state, cancel, wrote)


def save_pickle(content: Any, path: Path) -> None:
    """torch.save, but a full disk raises OSError, as everywhere, instead of torch's RuntimeError."""
    import torch

    with open(path, "wb") as handle:
        try:
            torch.save(content, handle)
        except RuntimeError as error:
            if isinstance(error.__context__, OSError):
                raise error.__context__ from None
            raise


def type_named(precision: str) -> torch.dtype:
    """The dtype of a value of `saving.save_precision`."""
    import torch

    dtype: torch.dtype = getattr(torch, PRECISIONS[precision])
    return dtype


def _alone(tensor: torch.Tensor) -> torch.Tensor:
    """A copy of a view, since torch saves its whole storage; other tensors unchanged."""
    storage_bytes = tensor.untyped_storage().nbytes()
    return tensor if storage_bytes == tensor.numel() * tensor.element_size() else tensor.clone()


def file_bytes(tensors: Mapping[str, LazyTensor]) -> int:
    """An upper estimate of the bytes of a file with these tensors."""
    return sum(tensor.byte_count + HEADER_BYTES_PER_TENSOR for tensor in tensors.values())
