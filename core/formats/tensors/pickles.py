"""Reads pickled model files (.ckpt, .pt, .bin) without running anything in them.

`pickle_machine` reads the pickle, so a hostile file can do nothing, and old checkpoints with training callbacks (which
`torch.load(weights_only=True)` refuses) can still be read.
"""

import io
import struct
import zipfile
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, BinaryIO

from core.formats.tensors.entry import AGAIN, ITEM_BYTES, TensorEntry
from core.formats.tensors.pickle_machine import MAX_BYTES, MAX_STEPS, Damaged, Inert, InertKey, Machine, Tensor
from core.record.bounded_zip import open_zip, read_member
from core.record.lazy_torch import torch
from core.record.problems import ProblemsError
from core.record.regular import open_regular

LEGACY_MAGIC = 0x1950A86A20F9469CFC6C  # torch.serialization.MAGIC_NUMBER
LEGACY_PROTOCOL = 1001
FEW_STEPS = 1000  # for the small pickles before the model in legacy files
MAX_WRAPS = 8
MAX_STATE_STEPS, MAX_STATE_BYTES = 20_000_000, 256_000_000  # a million images, 18 opcodes each
MAX_VISITS = 200_000
MAX_NAME_CHARACTERS = 16_000_000
Storages = dict[str, tuple[int, int]]  # storage key -> absolute (start, bytes)


def read_pickled_header(path: Path, form: str) -> tuple[dict[str, TensorEntry], dict[str, str]]:
    """Return (tensors by name, top-level numbers and strings as text) of a pickled model file. Raises ProblemsError if it is damaged.
    form: "zip" (torch 1.6 and later) or "pickle" (before)"""
    try:
        _, root, storages = _read_zip(path) if form == "zip" else _read_legacy(path)
        tensors = {name: _entry(tensor, storages) for name, tensor in _named_tensors(_unwrap(root)).items()}
    except ProblemsError:
        raise
    except Exception as error:  # a damaged pickle can raise anything at all
        raise _damaged(path, error) from error
    plain = root if isinstance(root, dict) else {}
    return tensors, {str(key): str(value) for key, value in plain.items() if isinstance(value, (str, int, float))}


def refuse_hostile(path: Path) -> None:
    """Raise ProblemsError for a `torch.save` file (zip) that is unsafe for `torch.load(weights_only=True)`.

    That runs no code but trusts sizes. The limits are larger than for models: a training state has entries for each image.
    """
    try:
        machine, _, storages = _read_zip(path, MAX_STATE_STEPS, MAX_STATE_BYTES)
        if machine.odd_keys:
            raise Damaged("it has keys that are not numbers or strings")
        if sum(length for _, length in storages.values()) > path.stat().st_size:
            raise Damaged("its storages overlap")
    except ProblemsError:
        raise
    except Exception as error:
        raise _damaged(path, error) from error


def load_state_file(path: Path) -> Any:
    """Load a `torch.save` file of dicts, lists, numbers and tensors onto the CPU; nothing in it is run. Raises ProblemsError for a damaged
    file and other content."""
    refuse_hostile(path)
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch's reader can raise anything on a damaged file
        raise _damaged(path, error) from error


def _damaged(path: Path, error: Exception) -> ProblemsError:
    """Return the error that a file is damaged, with the cause if it is a known one."""
    why = str(error) if isinstance(error, (Damaged, zipfile.BadZipFile)) else type(error).__name__
    what = f"The file is damaged or is not a model: {why}"
    return ProblemsError.one(what, str(path), AGAIN + "; a .safetensors version is best", "model.damaged")


def _read_zip(path: Path, max_steps: int = MAX_STEPS, max_bytes: int = MAX_BYTES) -> tuple[Machine, Any, Storages]:
    """Return (machine that read the pickle, its object, byte ranges of the storages) of a zip file. Raises ProblemsError or Damaged."""
    with open_regular(path) as handle, open_zip(handle, path, AGAIN) as archive:
        members = {info.filename: info for info in archive.infolist()}
        listing = next((name for name in members if name.endswith("/data.pkl") or name == "data.pkl"), None)
        if listing is None:
            what = "This zip file does not contain a model"
            raise ProblemsError.one(what, str(path), "unpack it and choose the model in it", "model.zip-without-model")
        root = listing.removesuffix("data.pkl")
        order = members.get(root + "byteorder")
        if order is not None and read_member(archive, order, 100) != b"little":
            what = "The file was written on a big-endian machine"
            raise ProblemsError.one(what, str(path), "use a .safetensors version", "model.big-endian")
        machine = Machine(io.BytesIO(read_member(archive, members[listing], max_bytes)), max_steps, max_bytes)
        content = machine.load()
        size = handle.seek(0, 2)
        storages = {}
        for name, info in members.items():
            if name.startswith(root + "data/"):
                if info.compress_type != zipfile.ZIP_STORED:
                    what = "The file was repacked by another program"
                    raise ProblemsError.one(what, str(path), "use the original file", "model.repacked")
                start = _member_start(handle, info)
                if start + info.file_size > size:
                    raise ProblemsError.one("The file is truncated", str(path), AGAIN, code="model.truncated")
                storages[name.removeprefix(root + "data/")] = (start, info.file_size)
    return machine, content, storages


def _member_start(handle: BinaryIO, info: zipfile.ZipInfo) -> int:
    """Return the file offset of an uncompressed zip member: after its 30-byte header, name, and padding (which torch aligns with)."""
    handle.seek(info.header_offset + 26)
    name_bytes, extra_bytes = struct.unpack("<HH", handle.read(4))
    return info.header_offset + 30 + name_bytes + extra_bytes


def _read_legacy(path: Path) -> tuple[Machine, Any, Storages]:
    """Read a file of torch before 1.6; return as `_read_zip`. Raises ProblemsError for a file that is no model or is truncated.

    It has five pickles (magic number, protocol, system, the object, storage keys), then each storage as element count and bytes.
    """
    with open_regular(path) as handle:
        size = handle.seek(0, 2)
        handle.seek(0)
        if _read_small_pickle(handle) != LEGACY_MAGIC or _read_small_pickle(handle) != LEGACY_PROTOCOL:
            fix = "choose a .safetensors, .ckpt or .pt model"
            raise ProblemsError.one("This pickle is not a model", str(path), fix, "model.not-a-model-pickle")
        _read_small_pickle(handle)
        machine = Machine(handle)
        content = machine.load()
        storages = {}
        for key in Machine(handle).load():
            (count,) = struct.unpack("<q", handle.read(8))
            length = count * ITEM_BYTES[machine.storages[str(key)].dtype]
            storages[str(key)] = (handle.tell(), length)
            if count < 0 or handle.tell() + length > size:
                raise ProblemsError.one("The file is truncated", str(path), AGAIN, code="model.truncated")
            handle.seek(length, 1)
    return machine, content, storages


def _read_small_pickle(handle: BinaryIO) -> Any:
    """Read one small pickle, such as the magic number of a legacy file."""
    return Machine(handle, FEW_STEPS).load()


def _unwrap(content: Any) -> Any:
    """Return the innermost dict of nested "state_dict" keys. Raises Damaged beyond MAX_WRAPS levels."""
    for _ in range(MAX_WRAPS):
        if not (isinstance(content, dict) and isinstance(content.get("state_dict"), dict)):
            return content
        content = content["state_dict"]
    raise Damaged("its state_dict contains itself")


@dataclass
class _Budget:
    """Limits of `_named_tensors`, since a dict that is referenced many times is visited as often."""

    visits: int = MAX_VISITS
    characters: int = MAX_NAME_CHARACTERS

    def spend(self, name: str) -> None:
        """Count a visit of a tensor or dict of this name. Raises Damaged beyond the limits."""
        self.visits -= 1
        self.characters -= len(name)
        if self.visits < 0 or self.characters < 0:
            raise Damaged("its dicts are nested too many times")


def _named_tensors(content: Any, prefix: str = "", depth: int = 0, budget: _Budget | None = None) -> dict[str, Tensor]:
    """Return {dotted name: tensor}, also from nested dicts (an embedding's string_to_param) and the states of inert objects.

    prefix   dotted name of `content`, with a dot at its end; "" at the top
    depth    levels of nesting so far; nesting ends at 4
    budget   limits of the whole search; None: new ones
    """
    budget = budget or _Budget()
    if isinstance(content, Inert):
        content = content.state
    if isinstance(content, dict) and isinstance(content.get("_parameters"), dict):  # an nn.ParameterDict
        content = content["_parameters"]
    tensors: dict[str, Tensor] = {}
    if isinstance(content, dict) and depth < 4:
        for key, value in content.items():
            if isinstance(key, int) and isinstance(value, tuple) and len(value) == 2:  # a hypernetwork's pair
                value = dict(enumerate(value))
            if isinstance(value, (Tensor, dict, Inert)) and not isinstance(key, InertKey):
                name = f"{prefix}{key}"
                budget.spend(name)
                if isinstance(value, Tensor):
                    tensors[name] = value
                else:
                    tensors.update(_named_tensors(value, f"{name}.", depth + 1, budget))
    return tensors


def _entry(tensor: Tensor, storages: Storages) -> TensorEntry:
    """Return a tensor's entry with absolute byte offsets. Raises Damaged if it reaches outside its storage."""
    if tensor.storage.dtype not in ITEM_BYTES or tensor.storage.key not in storages:
        raise Damaged("a tensor has an unknown dtype or no elements")
    start, length = storages[tensor.storage.key]
    item = ITEM_BYTES[tensor.storage.dtype]
    count = prod(tensor.shape)
    reach = 1 + sum((side - 1) * step for side, step in zip(tensor.shape, tensor.strides, strict=True)) if count else 0
    if (tensor.offset + reach) * item > length:
        raise Damaged("a tensor reaches outside its storage")
    begin = start + tensor.offset * item
    plain = tensor.strides == _contiguous_strides(tensor.shape) or count <= 1
    return TensorEntry(
        tensor.storage.dtype, tensor.shape, begin, begin + reach * item, None if plain else tensor.strides
    )


def _contiguous_strides(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Return the strides of a contiguous tensor, in elements."""
    strides, step = [], 1
    for side in reversed(shape):
        strides.append(step)
        step *= side
    return tuple(reversed(strides))
