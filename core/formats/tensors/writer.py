"""Writes files of many tensors one after the other: safetensors, and torch's own format."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from core.formats.tensors.lazy import LazyTensor
from core.formats.tensors.reading import TORCH_NAMES

if TYPE_CHECKING:
    import torch

    from core.record.cancel import CancelToken

Wrote = Callable[[int], None]  # told the bytes of each tensor that was written
SAFE_NAMES = {name: safe for safe, name in TORCH_NAMES.items()}
WEIGHTS_HASH, NO_HASH = "sshs_model_hash", "0" * 64  # what its metadata holds until the tensors are written
PIECE_BYTES = 1 << 20
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
        _write_behind(handle, (_bytes(tensors[name], name) for name in names), digest, cancel, wrote)
        if digest is not None:
            mark = f'"{WEIGHTS_HASH}":"'  # no other text of the header has these quotes unescaped
            handle.seek(8 + header.index(f"{mark}{NO_HASH}".encode()) + len(mark))
            handle.write(digest.hexdigest().encode())


def _count(written: int, cancel: CancelToken | None, wrote: Wrote | None) -> None:
    if wrote is not None:
        wrote(written)
    if cancel is not None:
        cancel.check()


def _write_behind(
    handle: BinaryIO, contents: Iterator[memoryview], digest: Any, cancel: CancelToken | None, wrote: Wrote | None
) -> None:
    """Write one after the other, and put it into the digest, while the next is read."""
    with ThreadPoolExecutor(2, thread_name_prefix="write-tensors") as workers:
        pending: list[Future[int]] = []
        for content in contents:
            _finish(pending, cancel, wrote)
            pending = [workers.submit(_put, handle, content)]
            if digest is not None:
                pending.append(workers.submit(lambda view: digest.update(view) or 0, content))
        _finish(pending, cancel, wrote)


def _put(handle: BinaryIO, content: memoryview) -> int:
    """In pieces: the system takes a single write of a hundred megabytes several times as long as a hundred of one."""
    for start in range(0, len(content), PIECE_BYTES):
        handle.write(content[start : start + PIECE_BYTES])
    return len(content)


def _finish(pending: list[Future[int]], cancel: CancelToken | None, wrote: Wrote | None) -> None:
    if pending:
        _count(sum(each.result() for each in pending), cancel, wrote)


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
    """A file of torch's own format of {name: tensor}, readable with `torch.load(weights_only=True)`. Memory: one tensor; all
    of them where one has a dtype that older versions of torch do not know (fp8).

    wrap   a key to nest the tensors under           plain  numbers and strings beside them
    """
    from core.formats.tensors.torch_file import STORAGES, write_torch_file

    state: dict[str, Any] = dict(tensors)
    if not all(tensor.dtype in STORAGES for tensor in tensors.values()):
        state = {}
        for name, tensor in tensors.items():
            state[name] = _alone(tensor.read())
            _count(tensor.byte_count, cancel, wrote)
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
