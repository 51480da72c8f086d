"""Reads and writes large files in large chunks, bypassing the system's file cache if possible.

A model is read once, and filling the cache costs more time than the rest of the work.
"""

from __future__ import annotations

import errno
import mmap
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from threading import Lock
from typing import Any, Self

from core.record.lazy_torch import torch

BLOCK_BYTES = max(4096, mmap.PAGESIZE)  # without the cache, file offsets, sizes and memory are multiples of it
CHUNK_BYTES = 4 << 20
SAMPLES = 16  # of a file, to see whether the cache has it


class Buffers:
    """A pool of uint8 buffers of `size` bytes, reused because allocating one takes several times as long as copying into it."""

    def __init__(self, size: int) -> None:
        self.size = size
        self._free: list[torch.Tensor] = []

    def take(self, size: int = 0) -> torch.Tensor:
        """Return a uint8 tensor of at least `size` bytes (and of the pool's size), whose address is a multiple of BLOCK_BYTES."""
        with suppress(IndexError):
            if size <= self.size:
                return self._free.pop()
        raw = torch.empty(max(size, self.size) + BLOCK_BYTES, dtype=torch.uint8)
        return raw[-raw.data_ptr() % BLOCK_BYTES :][: max(size, self.size)]

    def give(self, buffer: torch.Tensor) -> None:
        """Return a buffer to the pool; larger ones are dropped."""
        if len(buffer) == self.size:
            self._free.append(buffer)

    @contextmanager
    def borrowed(self, size: int) -> Iterator[torch.Tensor]:
        """Context manager: a buffer of at least `size` bytes, returned to the pool at the end."""
        buffer = self.take(size)
        try:
            yield buffer
        finally:
            self.give(buffer)


class ChunkedFile:
    """A new file of `size` bytes that any threads fill in any order; each chunk of CHUNK_BYTES is written once it is complete."""

    def __init__(self, path: Path, size: int) -> None:
        self.size = size
        self._handle: Any = open(path, "wb", buffering=0)
        self._direct = bypass_cache(self._handle)
        self._buffers = Buffers(min(CHUNK_BYTES, _blocks(size)))
        self._open: dict[int, tuple[torch.Tensor, int]] = {}  # {number of a chunk: (its buffer, bytes still missing)}
        self._chunks_lock, self._seek_lock = Lock(), Lock()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        with self._handle:
            if kind is None:
                assert not self._open, "A chunk is not complete"
                self._handle.truncate(self.size)  # the last block was written whole

    def put(self, offset: int, content: torch.Tensor) -> None:
        """Add the bytes `content` (uint8, [N]) at byte `offset`."""
        while len(content):
            number, within = divmod(offset, CHUNK_BYTES)
            part = content[: CHUNK_BYTES - within]
            with self._chunks_lock:
                if number not in self._open:
                    self._open[number] = self._buffers.take(), min(CHUNK_BYTES, self.size - number * CHUNK_BYTES)
                buffer = self._open[number][0]
            buffer[within : within + len(part)].copy_(part)
            with self._chunks_lock:
                missing = self._open[number][1] - len(part)
                self._open[number] = buffer, missing
                if not missing:
                    del self._open[number]
            if not missing:
                start = number * CHUNK_BYTES
                self._write(memoryview(buffer[: _blocks(min(CHUNK_BYTES, self.size - start))].numpy()), start)
                self._buffers.give(buffer)
            offset, content = offset + len(part), content[len(part) :]

    def _write(self, content: memoryview, offset: int) -> None:
        """Write all bytes of `content` at `offset`, through the cache if direct I/O fails."""
        direct = self._direct
        while content:
            try:
                count = self._write_at(content, offset)
            except OSError as error:
                use_cache_after(error, self._handle, direct)
                direct = self._direct = False
                continue
            content, offset = content[count:], offset + count

    def _write_at(self, content: memoryview, offset: int) -> int:
        """Write at `offset`; return the number of bytes written, which may be fewer than given."""
        if hasattr(os, "pwrite"):
            return os.pwrite(self._handle.fileno(), content, offset)
        with self._seek_lock:
            self._handle.seek(offset)
            return self._handle.write(content)


def _blocks(size: int) -> int:
    """Return `size` rounded up to a multiple of BLOCK_BYTES."""
    return size + -size % BLOCK_BYTES


def bypass_cache(handle: Any) -> bool:
    """Open the file for direct I/O (O_DIRECT). Return False if the system or the drive cannot."""
    try:
        import fcntl

        fcntl.fcntl(handle, fcntl.F_SETFL, fcntl.fcntl(handle, fcntl.F_GETFL) | os.O_DIRECT)
    except (ImportError, AttributeError, OSError):
        return False
    return True


def use_cache_after(error: OSError, handle: Any, direct: bool) -> None:
    """After EINVAL in direct I/O (the drive's blocks are larger), switch `handle` back to the file cache; raise any other error.
    direct: whether the failed read or write used direct I/O"""
    if error.errno != errno.EINVAL or not direct:
        raise error
    import fcntl

    fcntl.fcntl(handle, fcntl.F_SETFL, fcntl.fcntl(handle, fcntl.F_GETFL) & ~os.O_DIRECT)


def is_cached(handle: Any) -> bool:
    """Return whether the file cache holds most of a file, so that reading through it is faster; True if the system cannot tell."""
    if not hasattr(os, "RWF_NOWAIT"):
        return True
    number, hits = handle.fileno(), 0
    step = os.fstat(number).st_size // SAMPLES
    try:
        os.posix_fadvise(number, 0, 0, os.POSIX_FADV_RANDOM)  # or the probe would read ahead
        for offset in range(step // 2, step * SAMPLES, max(1, step)):
            with suppress(BlockingIOError):
                hits += os.preadv(number, [bytearray(1)], offset, os.RWF_NOWAIT)
        os.posix_fadvise(number, 0, 0, os.POSIX_FADV_NORMAL)
    except OSError:  # a drive that cannot tell
        return True
    return hits > SAMPLES // 2
