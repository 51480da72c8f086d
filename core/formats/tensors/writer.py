"""Writes files of many tensors one after the other: safetensors, and torch's own format."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

from core.formats.tensors.lazy import LazyTensor
from core.formats.tensors.reading import TORCH_NAMES

if TYPE_CHECKING:
    import torch

    from core.record.cancel import CancelToken

Wrote = Callable[[int], None]  # told the bytes of each tensor that was written
SAFE_NAMES = {name: safe for safe, name in TORCH_NAMES.items()}
WEIGHTS_HASH, NO_HASH = "sshs_model_hash", "0" * 64  # what its metadata holds until the tensors are written
HEADER_BYTES_PER_TENSOR = 256  # upper bound of a header entry, to check the free space


def write_safetensors(
    path: Path,
    tensors: Mapping[str, LazyTensor],
    metadata: Mapping[str, str],
    cancel: CancelToken | None = None,
    wrote: Wrote | None = None,
) -> None:
    """Header, then the bytes of one tensor after the other, the next of which is read meanwhile: memory for two.

    metadata   all strings; `format: pt` is added, without which transformers refuses a file. NO_HASH as the WEIGHTS_HASH is
               replaced by the SHA-256 of the tensors' bytes
    """
    # Wide dtypes first, as the library does: every tensor then starts at a multiple of its item size.
    names = sorted(tensors, key=lambda name: -tensors[name].dtype.itemsize)
    listing: dict[str, Any] = {"__metadata__": {"format": "pt", **metadata}}
    place = 0
    for name in names:
        tensor = tensors[name]
        listing[name] = {
            "dtype": SAFE_NAMES[str(tensor.dtype).removeprefix("torch.")],
            "shape": list(tensor.shape),
            "data_offsets": [place, place + tensor.byte_count],
        }
        place += tensor.byte_count
    header = json.dumps(listing, ensure_ascii=False, separators=(",", ":")).encode("utf-8")
    header += b" " * (-len(header) % 8)
    digest = hashlib.sha256() if metadata.get(WEIGHTS_HASH) == NO_HASH else None
    with open(path, "wb") as handle:
        handle.write(len(header).to_bytes(8, "little") + header)
        for content in _read_ahead(tensors, names, digest):
            handle.write(content)
            _count(len(content), cancel, wrote)
        if digest is not None:
            handle.seek(8)
            handle.write(header.replace(NO_HASH.encode(), digest.hexdigest().encode(), 1))


def _count(written: int, cancel: CancelToken | None, wrote: Wrote | None) -> None:
    if wrote is not None:
        wrote(written)
    if cancel is not None:
        cancel.check()


def _read_ahead(tensors: Mapping[str, LazyTensor], names: Sequence[str], digest: Any) -> Iterator[memoryview]:
    """The bytes of each tensor; the next is read, and put into the digest, while one is used."""

    def read(name: str) -> memoryview:
        content = _bytes(tensors[name], name)
        if digest is not None:
            digest.update(content)
        return content

    with ThreadPoolExecutor(1, thread_name_prefix="read-tensors") as reader:
        coming = None
        for name in names:
            following = reader.submit(read, name)
            if coming is not None:
                yield coming.result()
            coming = following
        if coming is not None:
            yield coming.result()


def _bytes(tensor: LazyTensor, name: str) -> memoryview:
    import torch

    value = tensor.read()
    assert tuple(value.shape) == tensor.shape and value.dtype == tensor.dtype, f"{name} differs from its declaration"
    return memoryview(value.reshape(-1).view(torch.uint8).numpy())


def write_pickle(
    path: Path,
    tensors: Mapping[str, LazyTensor],
    wrap: str | None = None,
    plain: Mapping[str, int | str] | None = None,
    cancel: CancelToken | None = None,
    wrote: Wrote | None = None,
) -> None:
    """torch.save of {name: tensor}, readable with `torch.load(weights_only=True)`. Memory: all tensors in the dtype they
    are saved in, if that differs from the one they have.

    wrap   a key to nest the tensors under           plain  numbers and strings beside them
    """
    state = {}
    for name, tensor in tensors.items():
        state[name] = _alone(tensor.read())
        _count(tensor.byte_count, cancel, wrote)
    save_pickle({wrap: state, **(plain or {})} if wrap else state, path)


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
    """The dtype files are saved in, by its name in `saving.save_precision`."""
    import torch

    return {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}[precision]


def _alone(tensor: torch.Tensor) -> torch.Tensor:
    """torch saves the whole storage of a view: a view gets its own."""
    whole = tensor.untyped_storage().nbytes()
    return tensor if whole == tensor.numel() * tensor.element_size() else tensor.clone()


def file_bytes(tensors: Mapping[str, LazyTensor]) -> int:
    """An upper estimate of the bytes a file of these takes."""
    return sum(tensor.byte_count + HEADER_BYTES_PER_TENSOR for tensor in tensors.values())
