"""Tensors in small files named by their key: whole or absent."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from core.record.atomic import remove, replace
from core.record.problems import unwritten

if TYPE_CHECKING:
    from torch import Tensor


def key_of(*parts: object) -> str:
    """One name for everything that a cached value depends on: 40 digits of SHA-256."""
    words = "\x1f".join(str(part) for part in parts)
    return hashlib.sha256(words.encode("utf-8", "surrogatepass")).hexdigest()[:40]


def file_of(folder: Path, key: str) -> Path:
    """Spread over 256 sub-folders: file systems slow down with many names in one."""
    return folder / key[:2] / f"{key}.safetensors"


def is_whole(path: Path) -> bool:
    """Whether the file is there and as long as its own header says; costs no reading of tensors."""
    try:
        with open(path, "rb") as handle:
            length = int.from_bytes(handle.read(8), "little")
            size = os.fstat(handle.fileno()).st_size
            if not 2 <= length <= min(size - 8, 1 << 16):
                return False
            header = json.loads(handle.read(length))
        ends = [entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"]
        return size == 8 + length + max(ends, default=0)
    except (OSError, ValueError, KeyError, TypeError, IndexError):
        return False


def write_tensors(path: Path, tensors: dict[str, Tensor]) -> int:
    """Write and return the size in bytes. Renamed into place, but not waited for on the disk: a cache may be lost."""
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
        kept = "what is cached so far is kept"
        raise unwritten(error, "The cache cannot be written", str(path.parent), kept) from error
    return len(data)


def read_tensors(path: Path) -> dict[str, Tensor] | None:
    """The tensors, or None when the file is absent or damaged. Copied: a mapped file cannot be replaced on Windows.

    A file that is read is given the present time, so that `prune` knows what is in use.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load

    if not is_whole(path):
        return None
    try:
        tensors = load(path.read_bytes())
    except (OSError, SafetensorError, ValueError, KeyError):
        return None
    with suppress(OSError):  # a cache on a disk that is only read still serves
        os.utime(path)
    return tensors


class Entry(NamedTuple):
    """A file of a cache; sorted by the time it was last used. bytes: its size."""

    used: float
    bytes: int
    path: Path


def entries(folder: Path) -> Iterator[Entry]:
    """Every entry of a cache folder, in no order."""
    for path in folder.glob("??/*.safetensors"):
        with suppress(OSError):
            found = os.stat(path)
            yield Entry(found.st_mtime, found.st_size, path)


def prune(folder: Path, keep_bytes: int, needed: frozenset[str] | set[str] = frozenset()) -> int:
    """Delete the entries that were not used for longest until the folder holds at most `keep_bytes`; return the bytes freed.

    needed   names (keys) that stay in any case
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
