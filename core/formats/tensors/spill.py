"""Moves tensors to a temporary file until they are saved, so that memory holds one at a time."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping
from functools import partial
from math import prod
from pathlib import Path
from typing import Any, Self

from core.formats.tensors.lazy import type_name
from core.formats.tensors.outline import StoredTensor
from core.formats.tensors.writer import SAFE_NAMES
from core.record.lazy_torch import torch


class Spill:
    """A temporary file for tensors, on the disk of the path `target`; deleted when closed."""

    def __init__(self, target: Path) -> None:
        folder = next(parent for parent in target.absolute().parents if parent.is_dir())
        self._file: Any = tempfile.TemporaryFile(dir=folder)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def put(self, tensors: Mapping[str, torch.Tensor]) -> dict[str, StoredTensor]:
        """Write the tensors to the file and return them as StoredTensors, which can be read until it is closed."""
        return {name: self._put(tensor.detach().cpu()) for name, tensor in tensors.items()}

    def _put(self, tensor: torch.Tensor) -> StoredTensor:
        """Append a CPU tensor to the file."""
        start, shape = self._file.seek(0, os.SEEK_END), tuple(tensor.shape)
        self._file.write(memoryview(tensor.reshape(-1).view(torch.uint8).numpy()))
        number = float(tensor) if tensor.numel() == 1 else None
        fetch = partial(self._read, start, tensor.dtype, shape)
        return StoredTensor(shape, SAFE_NAMES[type_name(tensor.dtype)], number, fetch=fetch)

    def _read(self, start: int, dtype: torch.dtype, shape: tuple[int, ...]) -> torch.Tensor:
        """Read a tensor back from byte `start`."""
        raw = torch.empty(prod(shape) * dtype.itemsize, dtype=torch.uint8)
        self._file.seek(start)
        self._file.readinto(memoryview(raw.numpy()))
        return raw.view(dtype).view(shape)
