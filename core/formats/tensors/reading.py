"""Reads tensors of a model file one at a time, into memory of their own.

Nothing stays mapped: on Windows a mapped file cannot be replaced.
"""

from __future__ import annotations

from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from core.formats.tensors.entry import ITEM_BYTES, TensorEntry
from core.formats.tensors.header import read_header
from core.record.problems import ProblemsError
from core.record.regular import open_regular

if TYPE_CHECKING:
    import torch

PIECE_BYTES = 1 << 20  # a single read of a hundred megabytes takes the system longer than a hundred of one
TORCH_NAMES = {
    "BOOL": "bool",
    "U8": "uint8",
    "I8": "int8",
    "F8_E4M3": "float8_e4m3fn",
    "F8_E5M2": "float8_e5m2",
    "I16": "int16",
    "U16": "uint16",
    "F16": "float16",
    "BF16": "bfloat16",
    "I32": "int32",
    "U32": "uint32",
    "F32": "float32",
    "F64": "float64",
    "I64": "int64",
    "U64": "uint64",
}


class TensorFile:
    """An open model file: safetensors or pickle, by its first bytes. For one thread at a time."""

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        self.entries, self.metadata = read_header(self.path)
        self._handle: Any = open_regular(self.path, buffering=0)
        self._scratch: torch.Tensor | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._handle.close()
        self._scratch = None

    def read(self, name: str, dtype: torch.dtype | None = None) -> torch.Tensor:
        """The tensor on the CPU, in its own dtype or converted to `dtype`; integers are never converted."""
        return self.read_entry(self.entries[name], dtype)

    def read_entry(self, entry: TensorEntry, dtype: torch.dtype | None = None) -> torch.Tensor:
        """The same for any byte range of the file that is a tensor, such as a third of one."""
        try:
            return self._read_entry(entry, dtype)
        except (MemoryError, RuntimeError) as error:  # torch's allocator raises RuntimeError
            size = f"{prod(entry.shape) * ITEM_BYTES[entry.dtype]:,} bytes"
            fix = "free some memory, or check that it is the right file"
            what = f"A tensor of {size} could not be read into memory"
            raise ProblemsError.one(what, str(self.path), fix, "memory.tensor-too-large") from error

    def _read_entry(self, entry: TensorEntry, dtype: torch.dtype | None) -> torch.Tensor:
        import torch

        stored = getattr(torch, TORCH_NAMES[entry.dtype])
        converts = dtype is not None and dtype != stored and stored.is_floating_point
        if not converts and entry.strides is None:
            raw = torch.empty(entry.stop - entry.start, dtype=torch.uint8)
            self._fill(entry, raw)
            return raw.view(stored).view(entry.shape)
        # Bytes that are converted next go through one reused buffer: fresh pages cost more than the copy.
        raw = self._buffer(entry.stop - entry.start)
        self._fill(entry, raw)
        tensor = raw.view(stored)
        tensor = tensor.view(entry.shape) if entry.strides is None else tensor.as_strided(entry.shape, entry.strides)
        return tensor.to(dtype if converts else stored, memory_format=torch.contiguous_format, copy=True)

    def _buffer(self, count: int) -> torch.Tensor:
        import torch

        if self._scratch is None or self._scratch.numel() < count:
            self._scratch = torch.empty(count, dtype=torch.uint8)
        return self._scratch[:count]

    def _fill(self, entry: TensorEntry, raw: torch.Tensor) -> None:
        """Read the entry's bytes into a uint8 tensor. The GIL is released while it copies."""
        view, done = memoryview(raw.numpy()), 0
        self._handle.seek(entry.start)
        while done < len(view):
            count = self._handle.readinto(view[done : done + PIECE_BYTES])
            if not count:
                what = "The file ends before its last tensor"
                raise ProblemsError.one(what, str(self.path), "download or copy it again", "model.truncated")
            done += count
