"""Writes files of many tensors: safetensors and torch's format."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from core.formats.hashes import LEGACY_BYTES, LEGACY_START
from core.formats.tensors.chunks import ChunkedFile
from core.formats.tensors.entry import TORCH_NAMES
from core.formats.tensors.header import header_of
from core.formats.tensors.lazy import LazyTensor
from core.formats.tensors.puts import Wrote, as_bytes, in_threads, put_tensor, report_written
from core.record.lazy_torch import torch

if TYPE_CHECKING:
    from core.record.cancel import CancelToken

SAFE_NAMES = {name: safe for safe, name in TORCH_NAMES.items()}
WEIGHTS_HASH, LEGACY_HASH = "sshs_model_hash", "sshs_legacy_hash"
NO_HASH, NO_LEGACY_HASH = "0" * 64, "0" * 8  # in the metadata until the tensors are written
PRECISIONS = {"fp32": "float32", "fp16": "float16", "bf16": "bfloat16"}  # as in settings -> torch's name
HEADER_BYTES_PER_TENSOR = 256  # upper bound of a header entry, to check the free space
# The order in which the safetensors library writes dtypes.
LIBRARY_DTYPES = "U64 I64 F64 F32 U32 I32 BF16 F16 U16 I16 F8_E4M3 F8_E5M2 I8 U8 BOOL".split()
Order = Callable[[str, LazyTensor], Any]  # (name, tensor) -> sort key


def widest_first(name: str, tensor: LazyTensor) -> int:
    """Sort key: dtypes with larger elements first, so that every tensor is aligned to its element size."""
    return -tensor.item_bytes


def library_order(name: str, tensor: LazyTensor) -> tuple[int, str]:
    """Sort key: by dtype, then by name, as the safetensors library orders tensors."""
    return LIBRARY_DTYPES.index(SAFE_NAMES[tensor.type]), name


def write_safetensors(
    path: Path,
    tensors: Mapping[str, LazyTensor],
    metadata: Mapping[str, str],
    cancel: CancelToken | None = None,
    wrote: Wrote | None = None,
    *,
    order: Order = widest_first,
    format: str | None = "pt",
) -> None:
    """Write a safetensors file, holding only pieces of a few tensors in memory.

    metadata   NO_HASH under WEIGHTS_HASH is replaced by the SHA-256 of the tensors' bytes, NO_LEGACY_HASH under LEGACY_HASH by A1111's
               old hash; either makes it write the tensors one after the other
    wrote      called with the bytes of each written tensor
    order      sort key of the tensors in the file
    format     value of the metadata's "format", which transformers requires; None leaves it out
    """
    metadata = {"format": format, **metadata} if format is not None else metadata
    names = sorted(tensors, key=lambda name: order(name, tensors[name]))
    listing: dict[str, Any] = {}
    offset = 0
    for name in names:
        tensor = tensors[name]
        listing[name] = {
            "dtype": SAFE_NAMES[tensor.type],
            "shape": list(tensor.shape),
            "data_offsets": [offset, offset + tensor.byte_count],
        }
        offset += tensor.byte_count
    header = _header(listing, metadata)
    hashes = _Hashes(listing, metadata) if _Hashes.requested(metadata) else None
    start = len(header)
    with ChunkedFile(path, start + offset) as file, ThreadPoolExecutor(1, thread_name_prefix="hash-tensors") as hasher:
        file.put(0, as_bytes(header))
        observe, puts = (lambda content: hasher.submit(hashes.add, content)) if hashes is not None else None, []
        for name in names:
            puts.append(partial(put_tensor, file, name, tensors[name], start, observe))
            start += tensors[name].byte_count
        in_threads(puts, 1 if hashes is not None else None, cancel, wrote)
    if hashes is not None:
        with open(path, "rb+") as handle:
            handle.write(_header(listing, {**metadata, **hashes.values()}))


def _header(listing: Mapping[str, Any], metadata: Mapping[str, str]) -> bytes:
    """Return the start of a safetensors file: the length of the JSON (8 bytes, little-endian) and the JSON. listing: as in `header_of`"""
    text = header_of(listing, metadata)
    return len(text).to_bytes(8, "little") + text


class _Hashes:
    """Computes the hashes that have a placeholder in the metadata while the tensors are written in order.

    sshs_model_hash   SHA-256 of all bytes after the header
    sshs_legacy_hash  8 digits of the SHA-256 of 64 KiB at 1 MiB of the file, as if its metadata had only the `ss_` keys
    """

    def __init__(self, listing: Mapping[str, Any], metadata: Mapping[str, str]) -> None:
        self._names = self.requested(metadata)
        self._offset, self._weights, self._legacy = 0, hashlib.sha256(), hashlib.sha256()
        header = _header(listing, {key: value for key, value in metadata.items() if key.startswith("ss_")})
        self._add_legacy(memoryview(header))

    @staticmethod
    def requested(metadata: Mapping[str, str]) -> list[str]:
        """Return the metadata keys whose value is the placeholder of a hash."""
        empty = {WEIGHTS_HASH: NO_HASH, LEGACY_HASH: NO_LEGACY_HASH}
        return [name for name, value in empty.items() if metadata.get(name) == value]

    def add(self, content: memoryview) -> None:
        """Hash the next bytes of the tensors."""
        self._weights.update(content)
        self._add_legacy(content)

    def _add_legacy(self, content: memoryview) -> None:
        """Hash those of the next bytes that are inside of the 64 KiB at 1 MiB."""
        start, end = (max(0, each - self._offset) for each in (LEGACY_START, LEGACY_START + LEGACY_BYTES))
        self._legacy.update(content[start:end])
        self._offset += len(content)

    def values(self) -> dict[str, str]:
        """Return {metadata key: hash} of the requested hashes."""
        computed = {WEIGHTS_HASH: self._weights.hexdigest(), LEGACY_HASH: self._legacy.hexdigest()[:8]}
        return {name: computed[name] for name in self._names}


def write_pickle(
    path: Path,
    tensors: Mapping[str, LazyTensor],
    wrap: str | None = None,
    plain: Mapping[str, int | str] | None = None,
    cancel: CancelToken | None = None,
    wrote: Wrote | None = None,
) -> None:
    """Write {name: tensor} in torch's format, readable with `torch.load(weights_only=True)`.

    wrap   key under which the tensors are nested, next to the numbers and strings `plain`; None: they are the top level, without `plain`
    Memory holds one tensor; all of them if one has a dtype without a storage class (fp8).
    """
    from core.formats.tensors.torch_file import STORAGES, write_torch_file

    state: dict[str, Any] = dict(tensors)
    if not all(tensor.dtype in STORAGES for tensor in tensors.values()):
        state = {}
        for name, tensor in tensors.items():
            state[name] = _own_storage(tensor.read())
            report_written(tensor.byte_count, cancel, wrote)
        return save_pickle({wrap: state, **(plain or {})} if wrap else state, path)
    write_torch_file(path, {wrap: state, **(plain or {})} if wrap else state, cancel, wrote)


def save_pickle(content: Any, path: Path) -> None:
    """Call torch.save, but raise OSError instead of torch's RuntimeError for a full disk."""
    with open(path, "wb") as handle:
        try:
            torch.save(content, handle)
        except RuntimeError as error:
            if isinstance(error.__context__, OSError):
                raise error.__context__ from None
            raise


def type_named(precision: str) -> torch.dtype:
    """Return the torch dtype of a value of `saving.save_precision`: "fp32", "fp16" or "bf16"."""
    dtype: torch.dtype = getattr(torch, PRECISIONS[precision])
    return dtype


def _own_storage(tensor: torch.Tensor) -> torch.Tensor:
    """Return a copy if `tensor` is a view of a larger storage, which torch would save whole; else the tensor."""
    storage_bytes = tensor.untyped_storage().nbytes()
    return tensor if storage_bytes == tensor.numel() * tensor.element_size() else tensor.clone()


def file_bytes(tensors: Mapping[str, LazyTensor]) -> int:
    """Return an upper estimate of the size in bytes of a safetensors file with these tensors."""
    return sum(tensor.byte_count + HEADER_BYTES_PER_TENSOR for tensor in tensors.values())
