"""Reads tensors of a model file into memory, one at a time.

Nothing stays mapped: on Windows a mapped file cannot be replaced.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import suppress
from functools import partial
from math import prod
from pathlib import Path
from threading import Lock
from typing import Any, Self

from core.formats.tensors.chunks import BLOCK_BYTES, CHUNK_BYTES, Buffers, bypass_cache, is_cached, use_cache_after
from core.formats.tensors.entry import ITEM_BYTES, TORCH_NAMES, TensorEntry
from core.formats.tensors.header import read_header
from core.formats.tensors.outline import Outline, StoredTensor, number_of
from core.record.lazy_torch import torch
from core.record.problems import ProblemsError
from core.record.regular import open_regular

PIECE_BYTES = 1 << 20  # a single read of a hundred megabytes is slower than a hundred of one


class TensorFile:
    """An open model file, safetensors or pickle by its first bytes. Any thread may read from it.
    once: True if most of the file is read, and only once: bypasses the file cache unless it already holds the file"""

    def __init__(self, path: Path | str, *, once: bool = False) -> None:
        self.path = Path(path)
        self.entries, self.metadata = read_header(self.path)
        self._handle: Any = open_regular(self.path, buffering=0)
        self._direct = once and not is_cached(self._handle) and bypass_cache(self._handle)
        self._read_into, self._cast_into = Buffers(CHUNK_BYTES), Buffers(2 * CHUNK_BYTES)
        self._seek_lock = Lock()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._handle.close()

    def read(self, name: str, dtype: torch.dtype | None = None) -> torch.Tensor:
        """Return a tensor on the CPU in its stored dtype or, if it is a float, in `dtype`."""
        return self.read_entry(self.entries[name], dtype)

    def outline(self, name: str) -> Outline:
        """Return a tensor's shape and dtype, and its value if it has a single element."""
        entry, number = self.entries[name], None
        if prod(entry.shape) == 1:
            raw = bytearray(ITEM_BYTES[entry.dtype])
            self._fill(memoryview(raw), entry.start, len(raw))
            number = number_of(bytes(raw), entry.dtype)
        return Outline(entry.shape, entry.dtype, number)

    def stored(self, name: str) -> StoredTensor:
        """Return the tensor as a StoredTensor, which can be read while the file is open."""
        outline = self.outline(name)
        return StoredTensor(outline.shape, outline.dtype, outline.number, fetch=partial(self.read, name))

    def read_entry(self, entry: TensorEntry, dtype: torch.dtype | None = None) -> torch.Tensor:
        """Read any byte range of the file as a tensor, such as a third of a stored one; dtype as in `read`.

        Raises ProblemsError if it does not fit into memory.
        """
        try:
            return self._read_entry(entry, dtype)
        except (MemoryError, RuntimeError) as error:  # torch's allocator raises RuntimeError
            size = f"{prod(entry.shape) * ITEM_BYTES[entry.dtype]:,} bytes"
            fix = "free some memory, or check that it is the right file"
            what = f"A tensor of {size} could not be read into memory"
            raise ProblemsError.one(what, str(self.path), fix, "memory.tensor-too-large") from error

    def _read_entry(self, entry: TensorEntry, dtype: torch.dtype | None) -> torch.Tensor:
        """Read a tensor into memory; `dtype` as in `read`."""
        stored = getattr(torch, TORCH_NAMES[entry.dtype])
        target = dtype if dtype is not None and stored.is_floating_point else stored
        if target == stored and entry.strides is None and not self._direct:
            raw = torch.empty(entry.stop - entry.start, dtype=torch.uint8)
            self._fill(memoryview(raw.numpy()), entry.start, len(raw))
            return raw.view(stored).view(entry.shape)
        # Fresh pages cost more than the copy: bytes that are converted next are read in pieces.
        return gathered(self.pieces(entry, target, PIECE_BYTES // stored.itemsize), target, entry.shape)

    def pieces(self, entry: TensorEntry, dtype: torch.dtype, numbers: int) -> Iterator[torch.Tensor]:
        """Yield the values of `entry` in order in flat tensors of at most `numbers` values, each valid until the next one.
        dtype: for floats; integers keep theirs"""
        stored = getattr(torch, TORCH_NAMES[entry.dtype])
        target = dtype if stored.is_floating_point else stored
        if entry.strides is not None:
            count = entry.stop - entry.start
            raw = gathered(self._raw_pieces(entry.start, entry.stop, PIECE_BYTES), torch.uint8, (count,))
            tensor = raw.view(stored).as_strided(entry.shape, entry.strides).to(target)
            yield from sliced(tensor, numbers)
            return
        with self._cast_into.borrowed(numbers * target.itemsize) as buffer:
            cast = buffer.view(target)
            for raw in self._raw_pieces(entry.start, entry.stop, numbers * stored.itemsize):
                piece = (raw.clone() if raw.storage_offset() % stored.itemsize else raw).view(stored)
                yield piece if target == stored else cast[: len(piece)].copy_(piece)

    def _raw_pieces(self, start: int, stop: int, step: int) -> Iterator[torch.Tensor]:
        """Yield bytes `start` to `stop` of the file in uint8 tensors of at most `step` bytes, each valid until the next one."""
        block = BLOCK_BYTES if self._direct else 1
        if block == 1:
            self._read_ahead(start, stop)
        # Past the cache: several steps at once, in whole blocks.
        chunk = max(1, (CHUNK_BYTES - 2 * block) // step) * step if block > 1 else step
        with self._read_into.borrowed(min(chunk, stop - start) + 2 * block) as buffer:
            for first in range(start, stop, chunk):
                before = first % block  # bytes of the block in front of `first`
                needed = before + min(chunk, stop - first)
                self._fill(memoryview(buffer[: needed + -needed % block].numpy()), first - before, needed)
                yield from buffer[before:needed].split(step)

    def _read_ahead(self, start: int, stop: int) -> None:
        """Ask the system to read these bytes into the file cache."""
        if hasattr(os, "posix_fadvise"):
            with suppress(OSError):
                os.posix_fadvise(self._handle.fileno(), start, stop - start, os.POSIX_FADV_WILLNEED)

    def _fill(self, view: memoryview, offset: int, needed: int) -> None:
        """Read at least `needed` bytes from byte `offset` into `view`. Raises ProblemsError if the file ends before."""
        done, direct = 0, self._direct
        while done < needed:
            try:
                count = self._read_at(view[done:] if direct else view[done : done + PIECE_BYTES], offset + done)
            except OSError as error:
                use_cache_after(error, self._handle, direct)
                direct = self._direct = False
                continue
            if not count:
                what = "The file ends before its last tensor"
                raise ProblemsError.one(what, str(self.path), "download or copy it again", "model.truncated")
            done += count

    def _read_at(self, view: memoryview, offset: int) -> int:
        """Read from `offset` into `view`; return the number of bytes read, 0 at the end of the file."""
        if hasattr(os, "preadv"):
            return os.preadv(self._handle.fileno(), [view], offset)
        with self._seek_lock:
            self._handle.seek(offset)
            return self._handle.readinto(view)


def sliced(tensor: torch.Tensor, numbers: int) -> Iterator[torch.Tensor]:
    """Yield the tensor's values in order in flat tensors of at most `numbers` values; nothing for an empty tensor."""
    flat = tensor.reshape(-1)
    return (flat[start : start + numbers] for start in range(0, len(flat), numbers))


def gathered(pieces: Iterable[torch.Tensor], dtype: torch.dtype, shape: tuple[int, ...]) -> torch.Tensor:
    """Join the values of flat pieces, in order, into one tensor of this dtype and shape."""
    tensor = torch.empty(prod(shape), dtype=dtype)
    done = 0
    for piece in pieces:
        tensor[done : done + len(piece)] = piece
        done += len(piece)
    return tensor.view(shape)
