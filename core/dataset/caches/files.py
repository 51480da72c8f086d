"""Cached tensors in small safetensors files named by their key."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from core.record.atomic import remove, replace
from core.record.problems import ProblemsError, unwritten
from core.record.regular import open_regular

if TYPE_CHECKING:
    from torch import Tensor

MAX_BYTES = 1 << 28  # of an entry; the latents of 4096 x 4096 pixels have 8 MB
FLOATS = ("F32", "F16", "BF16", "F64")
Shapes = Mapping[str, tuple[int | None, ...]]  # by name; None: any length
NO_SHAPES: Shapes = {}


def key_of(*parts: object) -> str:
    """Hash of everything that a cached value depends on: 40 hex digits of SHA-256."""
    words = "\x1f".join(str(part) for part in parts)
    return hashlib.sha256(words.encode("utf-8", "surrogatepass")).hexdigest()[:40]


def file_of(folder: Path, key: str) -> Path:
    """Path of an entry, spread over 256 subfolders: file systems slow down with many names in one."""
    return folder / key[:2] / f"{key}.safetensors"


def is_whole(path: Path, shapes: Shapes = NO_SHAPES) -> bool:
    """Whether the file exists, has the length its header states, and float tensors of these shapes; reads no tensors."""
    try:
        with open_regular(path) as handle:
            length = int.from_bytes(handle.read(8), "little")
            size = os.fstat(handle.fileno()).st_size
            if not 2 <= length <= min(size - 8, 1 << 16) or size > MAX_BYTES:
                return False
            header = json.loads(handle.read(length))
        ends = [entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"]
        has_all = all(_is(header[name], shape) for name, shape in shapes.items())
        return has_all and size == 8 + length + max(ends, default=0)
    except (OSError, ProblemsError, RecursionError, ValueError, KeyError, TypeError, IndexError, AttributeError):
        return False


def _is(entry: dict[str, Any], shape: tuple[int | None, ...]) -> bool:
    sides = entry["shape"]
    fits = len(sides) == len(shape) and all(want in (None, side) for side, want in zip(sides, shape, strict=True))
    return fits and entry["dtype"] in FLOATS


def write_tensors(path: Path, tensors: dict[str, Tensor]) -> int:
    """Write atomically, without fsync (a cache may be lost), and return the size in bytes."""
    from safetensors.torch import save

    data = save({name: tensor.detach().contiguous().cpu() for name, tensor in tensors.items()})
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
        kept = "entries cached so far are kept"
        raise unwritten(error, "The cache cannot be written", str(path.parent), kept) from error
    return len(data)


def read_tensors(path: Path, shapes: Shapes = NO_SHAPES) -> dict[str, Tensor] | None:
    """The tensors, or None where the file is missing, damaged or has other shapes.

    They are copied: a mapped file cannot be replaced on Windows. Reading updates the file's time, for `prune`.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load

    if not is_whole(path, shapes):
        return None
    try:
        tensors = load(path.read_bytes())
    except (OSError, SafetensorError, ValueError, KeyError):
        return None
    with suppress(OSError):  # read-only disk
        os.utime(path)
    return tensors


class Entry(NamedTuple):
    """A file of a cache; sorted by the time it was last used. bytes: its size."""

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
