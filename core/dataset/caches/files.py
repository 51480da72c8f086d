"""Cached tensors in small safetensors files named by their key, each with a checksum of its tensors in the header."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple
from zlib import crc32

from core.record.atomic import remove, replace
from core.record.problems import Problem, ProblemsError, unwritten
from core.record.regular import MissingFile, read_regular
from core.record.units import count

if TYPE_CHECKING:
    from torch import Tensor

MAX_BYTES = 1 << 28  # of an entry; the latents of 4096 x 4096 pixels have 8 MB
FLOATS = ("F32", "F16", "BF16", "F64")
BYTES = ("U8",)
CHECKSUM = "crc32"  # in the metadata; entries of earlier versions have none and are used without a check
Shapes = Mapping[str, tuple[int | None, ...]]  # by name; None: any length
NO_SHAPES: Shapes = {}
Warn = Callable[[Problem], None]


def key_of(*parts: object) -> str:
    """Hash of everything that a cached value depends on: 40 hex digits of SHA-256."""
    words = "\x1f".join(str(part) for part in parts)
    return hashlib.sha256(words.encode("utf-8", "surrogatepass")).hexdigest()[:40]


def file_of(folder: Path, key: str) -> Path:
    """Path of an entry, spread over 256 subfolders: file systems slow down with many names in one."""
    return folder / key[:2] / f"{key}.safetensors"


def write_tensors(path: Path, tensors: dict[str, Tensor]) -> int:
    """Write an entry and return its size in bytes. No fsync: an entry damaged by a power cut fails its checksum."""
    from safetensors.torch import save

    data = _with_checksum(save({name: tensor.detach().contiguous().cpu() for name, tensor in tensors.items()}))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(prefix=".tmp-", dir=path.parent)
        try:
            with os.fdopen(handle, "wb") as out:
                out.write(data)
            replace(temporary, path)
        finally:
            remove(temporary)
    except OSError as error:
        rest = "entries cached so far are kept"
        raise unwritten(error, "The cache cannot be written", str(path.parent), rest) from error
    return len(data)


def _with_checksum(data: bytes) -> bytes:
    start = 8 + int.from_bytes(data[:8], "little")
    header = {"__metadata__": {CHECKSUM: _checksum(data, start)}} | json.loads(data[8:start])
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + data[start:]


def _checksum(data: bytes, start: int) -> str:
    return f"{crc32(memoryview(data)[start:]):08x}"


def read_tensors(
    path: Path, shapes: Shapes = NO_SHAPES, damaged: list[Path] | None = None, dtypes: Sequence[str] = FLOATS
) -> dict[str, Tensor] | None:
    """Read the tensors, checked for shapes and dtypes. None for a missing file, and for a damaged one, which is added to `damaged`.

    They are copied: a mapped file cannot be replaced on Windows. Reading updates the file's time, for `prune`.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load

    try:
        tensors = load(_sound(path, shapes, dtypes))
    except MissingFile:
        return None
    except (
        OSError,
        ProblemsError,
        SafetensorError,
        RecursionError,
        LookupError,
        ValueError,
        TypeError,
        AttributeError,
    ):
        if damaged is not None:
            damaged.append(path)
        return None
    with suppress(OSError):  # read-only disk
        os.utime(path)
    return tensors


def _sound(path: Path, shapes: Shapes, dtypes: Sequence[str]) -> bytes:
    """The bytes of an entry with a valid header and checksum. Raises any exception for another."""
    data = read_regular(path, MAX_BYTES)
    start = 8 + int.from_bytes(data[:8], "little")
    if not 10 <= start <= min(len(data), 1 << 16):
        raise ValueError("not an entry")
    header = json.loads(data[8:start])
    stated = header.get("__metadata__", {}).get(CHECKSUM)
    if not all(_is(header[name], shape, dtypes) for name, shape in shapes.items()):
        raise ValueError("other tensors")
    if stated is not None and stated != _checksum(data, start):
        raise ValueError("wrong checksum")
    return data


def _is(entry: dict[str, Any], shape: tuple[int | None, ...], dtypes: Sequence[str]) -> bool:
    sides = entry["shape"]
    fits = len(sides) == len(shape) and all(want in (None, side) for side, want in zip(sides, shape, strict=True))
    return fits and entry["dtype"] in dtypes


def tell_damaged(damaged: list[Path], warn: Warn | None) -> None:
    """Warn of the damaged entries in the list, and clear it."""
    if damaged and warn is not None:
        what = f"{count(len(damaged), 'cached file')} failed the checksum; computing again"
        fix = "if this happens again, check the disk or move the outputs folder to another one"
        warn(Problem(what, str(damaged[0]), fix, "advice", code="cache.damaged"))
    damaged.clear()


class Entry(NamedTuple):
    """A cache file. Sorts by `used`, the time of its last use. bytes: its size."""

    used: float
    bytes: int
    path: Path


def entries(folder: Path) -> Iterator[Entry]:
    """Every entry of a cache folder, unsorted."""
    for path in folder.glob("??/*.safetensors"):
        with suppress(OSError):
            found = os.stat(path)
            yield Entry(found.st_mtime, found.st_size, path)


def prune(folder: Path, keep_bytes: int, needed: frozenset[str] | set[str] = frozenset()) -> int:
    """Delete the least recently used entries until the folder has at most `keep_bytes`; return the bytes freed.

    needed   keys that are never deleted
    """
    found = sorted(entries(folder))
    over = sum(entry.bytes for entry in found) - keep_bytes
    freed = 0
    for entry in found:
        if freed >= over:
            break
        if entry.path.stem in needed:
            continue
        with suppress(OSError):  # in use by another program: it stays
            remove(entry.path)
            freed += entry.bytes
    return freed
