"""Writes torch's file format tensor by tensor; torch.save would need all of them in memory."""

import io
import pickle
import struct
import threading
import zipfile
import zlib
from collections import OrderedDict
from dataclasses import dataclass
from functools import partial
from math import prod
from pathlib import Path
from typing import Any

import torch

from core.formats.tensors import pickle_machine
from core.formats.tensors.chunks import ChunkedFile
from core.formats.tensors.entry import TORCH_NAMES
from core.formats.tensors.lazy import LazyTensor
from core.formats.tensors.puts import Wrote, as_bytes, in_threads, put_tensor
from core.record.cancel import CancelToken

# Storage classes of torch that old and new versions name in pickles; newer dtypes have none.
STORAGES = {getattr(torch, TORCH_NAMES[safe]): getattr(torch, name) for name, safe in pickle_machine.STORAGES.items()}
ALIGNMENT = 64  # of a tensor's first byte, as in torch's files, so that the file can be mapped


@dataclass(frozen=True)
class _Storage:
    """The storage of the tensor that is number `number` in the file."""

    number: int
    tensor: LazyTensor


class _Pickler(pickle.Pickler):
    """Pickles LazyTensors as torch does: calls of its rebuild function on storages that are listed in `stored`."""

    def __init__(self, out: io.BytesIO) -> None:
        super().__init__(out, protocol=2)
        self.stored: list[LazyTensor] = []

    def persistent_id(self, content: Any) -> Any:
        """Return torch's persistent id of a storage; None for other objects."""
        if not isinstance(content, _Storage):
            return None
        tensor = content.tensor
        return ("storage", STORAGES[tensor.dtype], str(content.number), "cpu", prod(tensor.shape))

    def reducer_override(self, content: Any) -> Any:
        """Pickle a LazyTensor as a call of torch's rebuild function, and list it in `stored`."""
        if not isinstance(content, LazyTensor):
            return NotImplemented
        self.stored.append(content)
        strides = torch.empty(content.shape, device="meta").stride()
        arguments: tuple[Any, ...] = (
            _Storage(len(self.stored) - 1, content),
            0,
            content.shape,
            strides,
            False,
            OrderedDict(),
        )
        return torch._utils._rebuild_tensor_v2, arguments


def write_torch_file(
    path: Path, content: dict[str, Any], cancel: CancelToken | None = None, wrote: Wrote | None = None
) -> None:
    """Write a file for `torch.load(weights_only=True)`, holding only pieces of a few tensors in memory.

    content   dicts, numbers, strings and LazyTensors whose dtype is a key of STORAGES
    wrote     called with the bytes of each written tensor
    """
    pickled = io.BytesIO()
    pickler = _Pickler(pickled)
    pickler.dump(content)
    tensors = enumerate(pickler.stored)
    entries: list[tuple[str, bytes | LazyTensor]] = [("data.pkl", pickled.getvalue()), ("byteorder", b"little")]
    entries += [*((f"data/{number}", tensor) for number, tensor in tensors), ("version", b"3\n")]
    infos, offset = [], 0
    for name, each in entries:
        infos.append(_info(name, offset, len(each) if isinstance(each, bytes) else each.byte_count))
        offset += len(infos[-1].FileHeader()) + infos[-1].file_size
    with ChunkedFile(path, offset) as file:
        puts = []
        for info, (_, each) in zip(infos, entries, strict=True):
            if isinstance(each, bytes):
                info.CRC = zlib.crc32(each)
                file.put(info.header_offset, as_bytes(info.FileHeader() + each))
            else:
                puts.append(partial(_put, file, info, each))
        in_threads(puts, None, cancel, wrote)
    with open(path, "rb+") as handle:
        handle.seek(offset)
        with zipfile.ZipFile(handle, "w") as archive:  # adds the central directory
            archive.filelist = infos


def _info(name: str, offset: int, size: int) -> zipfile.ZipInfo:
    """Return the zip header of an uncompressed member at byte `offset`, padded so that its content is aligned to ALIGNMENT."""
    info = zipfile.ZipInfo(f"archive/{name}")
    info.file_size = info.compress_size = size
    info.CRC, info.header_offset, info.external_attr = 0, offset, 0o600 << 16
    start = offset + zipfile.sizeFileHeader + len(info.filename) + 4  # type: ignore[attr-defined]
    padding = -start % ALIGNMENT
    info.extra = struct.pack("<HH", 0x4246, padding) + b"Z" * padding  # "FB", as torch names it
    return info


def _put(file: ChunkedFile, info: zipfile.ZipInfo, tensor: LazyTensor, stop: threading.Event) -> int:
    """Write a tensor, then the zip header in front of it, which has its CRC. Return the number of bytes of the tensor."""

    def add_to_crc(content: memoryview) -> None:
        info.CRC = zlib.crc32(content, info.CRC)

    done = put_tensor(file, info.filename, tensor, info.header_offset + len(info.FileHeader()), add_to_crc, stop)
    file.put(info.header_offset, as_bytes(info.FileHeader()))
    return done
