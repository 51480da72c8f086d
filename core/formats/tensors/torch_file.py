"""torch's own file format written tensor by tensor: torch.save would hold them all."""

from __future__ import annotations

import io
import pickle
import struct
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, cast

import torch

from core.formats.tensors.lazy import LazyTensor
from core.record.cancel import CancelToken

# Classes of torch that old and new versions name in pickles; newer dtypes have none.
STORAGES = {
    torch.float64: torch.DoubleStorage,
    torch.float32: torch.FloatStorage,
    torch.float16: torch.HalfStorage,
    torch.bfloat16: torch.BFloat16Storage,
    torch.int64: torch.LongStorage,
    torch.int32: torch.IntStorage,
    torch.int16: torch.ShortStorage,
    torch.int8: torch.CharStorage,
    torch.uint8: torch.ByteStorage,
    torch.bool: torch.BoolStorage,
}
ALIGNMENT = 64  # of a tensor's first byte, as torch has it, so that the file can be mapped
PIECE_BYTES = 1 << 20


@dataclass(frozen=True)
class _Storage:
    number: int
    tensor: LazyTensor


class _Pickler(pickle.Pickler):
    """As torch's: tensors are calls of its rebuild function on storages that lie beside the pickle."""

    def __init__(self, out: io.BytesIO) -> None:
        super().__init__(out, protocol=2)
        self.stored: list[LazyTensor] = []

    def persistent_id(self, content: Any) -> Any:
        if not isinstance(content, _Storage):
            return None
        tensor = content.tensor
        return ("storage", STORAGES[tensor.dtype], str(content.number), "cpu", prod(tensor.shape))

    def reducer_override(self, content: Any) -> Any:
        if not isinstance(content, LazyTensor):
            return NotImplemented
        self.stored.append(content)
        strides, step = [], 1
        for side in reversed(content.shape):
            strides.append(step)
            step *= max(side, 1)
        given: tuple[Any, ...] = (
            _Storage(len(self.stored) - 1, content),
            0,
            content.shape,
            tuple(reversed(strides)),
            False,
            OrderedDict(),
        )
        return torch._utils._rebuild_tensor_v2, given


def write_torch_file(
    path: Path, content: dict[str, Any], cancel: CancelToken | None = None, wrote: Callable[[int], None] | None = None
) -> None:
    """A file that torch.load(weights_only=True) reads, of dicts, numbers, strings and LazyTensors of the dtypes of STORAGES.
    Memory: one tensor."""
    pickled = io.BytesIO()
    pickler = _Pickler(pickled)
    pickler.dump(content)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        _put(archive, "data.pkl", pickled.getbuffer())
        _put(archive, "byteorder", memoryview(b"little"))
        for number, tensor in enumerate(pickler.stored):
            value = tensor.read()
            _put(archive, f"data/{number}", memoryview(value.reshape(-1).view(torch.uint8).numpy()))
            if wrote is not None:
                wrote(tensor.byte_count)
            if cancel is not None:
                cancel.check()
        _put(archive, "version", memoryview(b"3\n"))


def _put(archive: zipfile.ZipFile, name: str, content: memoryview) -> None:
    info = zipfile.ZipInfo(f"archive/{name}")
    info.file_size = len(content)
    place = cast(Any, archive.fp).tell() + zipfile.sizeFileHeader + len(info.filename) + 4  # type: ignore[attr-defined]
    padding = -place % ALIGNMENT
    info.extra = struct.pack("<HH", 0x4246, padding) + b"Z" * padding  # "FB", as torch names it
    with archive.open(info, "w") as entry:
        for start in range(0, len(content), PIECE_BYTES):
            entry.write(content[start : start + PIECE_BYTES])
