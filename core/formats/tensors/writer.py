"""Writes files of many tensors one after the other: safetensors, and torch's own format."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from core.formats.tensors.lazy import LazyTensor
from core.formats.tensors.reading import PIECE_BYTES, TORCH_NAMES
from core.record import machine

if TYPE_CHECKING:
    import torch

    from core.record.cancel import CancelToken

Wrote = Callable[[int], None]  # told the bytes of each tensor that was written
SAFE_NAMES = {name: safe for safe, name in TORCH_NAMES.items()}
WEIGHTS_HASH, NO_HASH = "sshs_model_hash", "0" * 64  # what its metadata holds until the tensors are written
MOST_THREADS = 4
HEADER_BYTES_PER_TENSOR = 256  # upper bound of a header entry, to check the free space


def write_safetensors(
    path: Path,
    tensors: Mapping[str, LazyTensor],
    metadata: Mapping[str, str],
    cancel: CancelToken | None = None,
    wrote: Wrote | None = None,
) -> None:
    """Header, then the tensors, several of which are read and written at a time: memory for so many, or for their pieces.

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
    with open(path, "wb") as handle:
        handle.write(len(header).to_bytes(8, "little") + header)
    copy = _Copy(path, 8 + len(header), hashlib.sha256() if metadata.get(WEIGHTS_HASH) == NO_HASH else None)
    copy.write({name: tensors[name] for name in names}, cancel, wrote)
    if copy.digest is not None:
        with open(path, "rb+") as handle:
            mark = f'"{WEIGHTS_HASH}":"'  # no other text of the header has these quotes unescaped
            handle.seek(8 + header.index(f"{mark}{NO_HASH}".encode()) + len(mark))
            handle.write(copy.digest.hexdigest().encode())


class _Copy:
    """Tensors written one behind the other, from a place in a file on, several at a time, each by a thread that reads, computes and writes
    its pieces: no thread waits for another. With a digest, which needs them in order, one at a time."""

    def __init__(self, path: Path, place: int, digest: Any) -> None:
        self.path, self.place, self.digest = path, place, digest
        self._hasher = ThreadPoolExecutor(1, thread_name_prefix="hash-tensors")
        self._ends = threading.Event()

    def write(self, tensors: Mapping[str, LazyTensor], cancel: CancelToken | None, wrote: Wrote | None) -> None:
        threads = 1 if self.digest is not None else max(2, min(machine.threads(), MOST_THREADS))
        place = self.place
        with one_thread_each(), ThreadPoolExecutor(threads, thread_name_prefix="write-tensors") as workers:
            try:
                jobs = []
                for name, tensor in tensors.items():
                    jobs.append(workers.submit(self._put, name, tensor, place))
                    place += tensor.byte_count
                for job in as_completed(jobs):
                    _count(job.result(), cancel, wrote)
            except BaseException:
                self._ends.set()
                workers.shutdown(cancel_futures=True)
                raise
            finally:
                self._hasher.shutdown()

    def _put(self, name: str, tensor: LazyTensor, place: int) -> int:
        import torch

        end = place + tensor.byte_count
        with open(self.path, "rb+") as handle:
            handle.seek(place)
            for piece in tensor.pieces():
                assert piece.dtype == tensor.dtype, f"{name} differs from its declaration"
                self._put_piece(handle, memoryview(piece.view(torch.uint8).numpy()))
                if self._ends.is_set():
                    break
            else:
                assert handle.tell() == end, f"{name} differs from its declaration"
        return tensor.byte_count

    def _put_piece(self, handle: BinaryIO, content: memoryview) -> None:
        hashed = self._hasher.submit(self.digest.update, content) if self.digest is not None else None
        # The system takes a single write of a hundred megabytes several times as long as a hundred of one.
        for start in range(0, len(content), PIECE_BYTES):
            handle.write(content[start : start + PIECE_BYTES])
        if hashed is not None:
            hashed.result()


@contextmanager
def one_thread_each() -> Iterator[None]:
    """Inside, threads that start compute alone: of torch's own threads each would spin while it waits for those of the others."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _count(written: int, cancel: CancelToken | None, wrote: Wrote | None) -> None:
    if wrote is not None:
        wrote(written)
    if cancel is not None:
        cancel.check()


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
