"""Pickled model files (.ckpt, .pt, .bin), read without running anything from them.

A pickle is a program. Here every class and function that it names is replaced by an inert stand-in, save the few that
describe tensors, and those only note where the bytes lie. So a hostile file can do nothing, and old checkpoints that
carry training callbacks (which `torch.load(weights_only=True)` refuses) can still be read.
"""

from __future__ import annotations

import pickle
import struct
import zipfile
from collections import OrderedDict
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, BinaryIO

from core.formats.header import AGAIN, ITEM_BYTES, TensorEntry
from core.record.problems import ProblemsError

LEGACY_MAGIC = 0x1950A86A20F9469CFC6C  # torch.serialization.MAGIC_NUMBER
LEGACY_PROTOCOL = 1001
STORAGES = {
    "HalfStorage": "F16",
    "BFloat16Storage": "BF16",
    "FloatStorage": "F32",
    "DoubleStorage": "F64",
    "LongStorage": "I64",
    "IntStorage": "I32",
    "ShortStorage": "I16",
    "CharStorage": "I8",
    "ByteStorage": "U8",
    "BoolStorage": "BOOL",
}


class Inert:
    """Stands for anything a pickle names. It can be made, called and filled, and does nothing but keep its state."""

    def __init__(self, *arguments: Any, **named: Any) -> None:
        self.state: Any = None

    def __call__(self, *arguments: Any, **named: Any) -> Inert:
        return Inert()

    def __setstate__(self, state: Any) -> None:
        self.state = state

    def __setitem__(self, key: Any, value: Any) -> None:
        pass

    def append(self, value: Any) -> None:
        pass

    def extend(self, values: Any) -> None:
        pass


@dataclass(frozen=True)
class _StorageType:
    """A torch storage class as named in a pickle."""

    dtype: str


@dataclass(frozen=True)
class _Storage:
    key: str
    dtype: str
    count: int  # elements


@dataclass(frozen=True)
class _Tensor:
    storage: _Storage
    offset: int  # elements
    shape: tuple[int, ...]
    strides: tuple[int, ...]


def _rebuild_tensor(storage: _Storage, offset: int, shape: tuple, strides: tuple, *rest: Any) -> _Tensor:
    return _Tensor(storage, int(offset), tuple(int(side) for side in shape), tuple(int(step) for step in strides))


def _rebuild_parameter(data: _Tensor, *rest: Any) -> _Tensor:
    return data


class _Reader(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("collections", "OrderedDict"):
            return OrderedDict
        if module == "torch._utils" and name in ("_rebuild_tensor", "_rebuild_tensor_v2"):
            return _rebuild_tensor
        if module == "torch._utils" and name == "_rebuild_parameter":
            return _rebuild_parameter
        if module in ("torch", "torch.storage") and name in STORAGES:
            return _StorageType(STORAGES[name])
        return Inert

    def persistent_load(self, pid: Any) -> _Storage:
        """("storage", storage class, key, device, element count, [view of another storage: unused since torch 0.4])."""
        _, kind, key, _, count = pid[:5]
        return _Storage(str(key), kind.dtype if isinstance(kind, _StorageType) else "", int(count))


def read_pickled_header(path: Path, form: str) -> tuple[dict[str, TensorEntry], dict[str, str]]:
    """Tensors and plain top-level values of a "zip" (torch 1.6 and later) or legacy "pickle" file."""
    try:
        root, places = _read_zip(path) if form == "zip" else _read_legacy(path)
        content = _unwrap(root)
        tensors = {name: _entry(tensor, places) for name, tensor in _named_tensors(content).items()}
    except ProblemsError:
        raise
    except Exception as error:  # a damaged pickle can raise anything at all
        raise ProblemsError.one(
            f"The file is damaged or is not a model ({type(error).__name__})",
            str(path),
            AGAIN + "; a .safetensors version is best",
        ) from error
    plain = root if isinstance(root, dict) else {}
    return tensors, {str(key): str(value) for key, value in plain.items() if isinstance(value, (str, int, float))}


def _read_zip(path: Path) -> tuple[Any, dict[str, tuple[int, int]]]:
    """The pickled object, and of each storage its absolute (start, bytes)."""
    with zipfile.ZipFile(path) as archive, open(path, "rb") as handle:
        members = {info.filename: info for info in archive.infolist()}
        listing = next((name for name in members if name.endswith("/data.pkl") or name == "data.pkl"), None)
        if listing is None:
            raise ProblemsError.one("This zip file holds no model", str(path), "unpack it and choose the model in it")
        root = listing.removesuffix("data.pkl")
        order = members.get(root + "byteorder")
        if order is not None and archive.read(order) != b"little":
            raise ProblemsError.one(
                "The file was written on a big-endian machine", str(path), "use a .safetensors version"
            )
        with archive.open(listing) as pickled:
            content = _Reader(pickled).load()
        places = {}
        for name, info in members.items():
            if name.startswith(root + "data/"):
                if info.compress_type != zipfile.ZIP_STORED:
                    raise ProblemsError.one(
                        "The file was packed again by another program", str(path), "use the original file"
                    )
                places[name.removeprefix(root + "data/")] = (_member_start(handle, info), info.file_size)
    return content, places


def _member_start(handle: BinaryIO, info: zipfile.ZipInfo) -> int:
    """Where a stored member's bytes begin: after a header of 30 bytes, the name, and filling (torch aligns by it)."""
    handle.seek(info.header_offset + 26)
    name_bytes, extra_bytes = struct.unpack("<HH", handle.read(4))
    return info.header_offset + 30 + name_bytes + extra_bytes


def _read_legacy(path: Path) -> tuple[Any, dict[str, tuple[int, int]]]:
    """torch < 1.6: magic, protocol, machine, the object, the storages' keys, then each storage as count, bytes."""
    size = path.stat().st_size
    with open(path, "rb") as handle:
        if _Reader(handle).load() != LEGACY_MAGIC or _Reader(handle).load() != LEGACY_PROTOCOL:
            raise ProblemsError.one(
                "This pickle is not a model", str(path), "choose a .safetensors, .ckpt or .pt model"
            )
        _Reader(handle).load()
        reader = _StorageNoting(handle)
        content = reader.load()
        places = {}
        for key in _Reader(handle).load():
            (count,) = struct.unpack("<q", handle.read(8))
            length = count * ITEM_BYTES[reader.dtypes[str(key)]]
            places[str(key)] = (handle.tell(), length)
            if handle.tell() + length > size:
                raise ProblemsError.one("The file is cut short", str(path), AGAIN)
            handle.seek(length, 1)
    return content, places


class _StorageNoting(_Reader):
    """Also remembers each storage's type, which the legacy form needs to find where the next one begins."""

    def __init__(self, handle: BinaryIO) -> None:
        super().__init__(handle)
        self.dtypes: dict[str, str] = {}

    def persistent_load(self, pid: Any) -> _Storage:
        storage = super().persistent_load(pid)
        self.dtypes[storage.key] = storage.dtype
        return storage


def _unwrap(content: Any) -> Any:
    """Training files wrap the weights in "state_dict", sometimes more than once."""
    while isinstance(content, dict) and isinstance(content.get("state_dict"), dict):
        content = content["state_dict"]
    return content


def _named_tensors(content: Any, prefix: str = "", depth: int = 0) -> dict[str, _Tensor]:
    """Tensors by dotted name, from nested dicts too (an embedding's string_to_param) and from inert objects' states."""
    if isinstance(content, Inert):
        content = content.state
    if isinstance(content, dict) and isinstance(content.get("_parameters"), dict):  # an nn.ParameterDict
        content = content["_parameters"]
    found: dict[str, _Tensor] = {}
    if isinstance(content, dict) and depth < 4:
        for key, value in content.items():
            if isinstance(value, _Tensor):
                found[f"{prefix}{key}"] = value
            else:
                found.update(_named_tensors(value, f"{prefix}{key}.", depth + 1))
    return found


def _entry(tensor: _Tensor, places: dict[str, tuple[int, int]]) -> TensorEntry:
    """Where a tensor's elements lie in the file; its span must be inside its storage."""
    start, length = places[tensor.storage.key]
    item = ITEM_BYTES[tensor.storage.dtype]
    count = prod(tensor.shape)
    reach = 1 + sum((side - 1) * step for side, step in zip(tensor.shape, tensor.strides, strict=True)) if count else 0
    if tensor.offset < 0 or reach < 0 or min(tensor.strides, default=0) < 0 or (tensor.offset + reach) * item > length:
        raise ValueError("a tensor reaches outside its storage")
    begin = start + tensor.offset * item
    plain = tensor.strides == _row_by_row(tensor.shape) or count <= 1
    return TensorEntry(
        tensor.storage.dtype, tensor.shape, begin, begin + reach * item, None if plain else tensor.strides
    )


def _row_by_row(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Strides of a contiguous tensor, in elements."""
    strides, step = [], 1
    for side in reversed(shape):
        strides.append(step)
        step *= side
    return tuple(reversed(strides))
