"""What a model file holds, read from its first bytes: names, types, shapes and places of its tensors."""

from __future__ import annotations

import json
import os
import struct
from dataclasses import dataclass
from math import prod
from pathlib import Path

from core.record.problems import ProblemsError

# Bytes of one element, by the names that safetensors uses.
ITEM_BYTES = {
    "BOOL": 1,
    "U8": 1,
    "I8": 1,
    "F8_E4M3": 1,
    "F8_E5M2": 1,
    "I16": 2,
    "U16": 2,
    "F16": 2,
    "BF16": 2,
    "I32": 4,
    "U32": 4,
    "F32": 4,
    "F64": 8,
    "I64": 8,
    "U64": 8,
}
MAX_HEADER_BYTES = 100_000_000  # the limit of the safetensors library itself
AGAIN = "download or copy the file again"


@dataclass(frozen=True)
class TensorEntry:
    """One tensor of a file, from byte `start` to `stop`; `strides` (in elements) only where not row by row."""

    dtype: str
    shape: tuple[int, ...]
    start: int
    stop: int
    strides: tuple[int, ...] | None = None


def sniff(path: Path | str) -> str:
    """What the first bytes say, whatever the name says: safetensors, zip, pickle, empty, page, pointer or unknown."""
    with open(path, "rb") as handle:
        first = handle.read(512)
    if not first:
        return "empty"
    if first[8:9] == b"{" and struct.unpack("<Q", first[:8])[0] <= MAX_HEADER_BYTES:
        return "safetensors"
    if first[:4] == b"PK\x03\x04":
        return "zip"
    if first[:1] == b"\x80":
        return "pickle"
    if first.lstrip()[:14].lower().startswith((b"<!doctype html", b"<html")):
        return "page"
    if first.startswith(b"version https://git-lfs"):
        return "pointer"
    return "unknown"


NOT_A_MODEL = {
    "empty": ("The file is empty", AGAIN),
    "page": (
        "This is a web page, not a model: the download saved an error or login page",
        "download the file itself",
    ),
    "pointer": (
        "This is a Git LFS pointer, not the model it stands for",
        "run `git lfs pull`, or download the file itself",
    ),
    "unknown": ("This is not a model file", "choose a .safetensors, .ckpt, .pt or .bin file, or a diffusers folder"),
}


def read_header(path: Path | str) -> tuple[dict[str, TensorEntry], dict[str, str]]:
    """The tensors and the metadata of a model file, without reading a weight and without running anything from it.

    For a pickle the metadata are its plain top-level numbers and words (global_step, epoch ...).
    """
    path = Path(path)
    if not path.exists():
        raise ProblemsError.one("There is no such file", str(path), "check the path")
    if path.is_dir():
        raise ProblemsError.one("This is a folder, not a file", str(path), "choose a file in it")
    try:
        form = sniff(path)
        if form == "safetensors":
            return _safetensors_header(path)
        if form in ("zip", "pickle"):
            from core.formats.pickles import read_pickled_header

            return read_pickled_header(path, form)
    except OSError as error:
        raise ProblemsError.one(
            f"The file cannot be read: {error.strerror or error}", str(path), "check its permissions"
        ) from error
    what, fix = NOT_A_MODEL[form]
    raise ProblemsError.one(what, str(path), fix)


def _safetensors_header(path: Path) -> tuple[dict[str, TensorEntry], dict[str, str]]:
    size = os.path.getsize(path)
    with open(path, "rb") as handle:
        (length,) = struct.unpack("<Q", handle.read(8))
        if 8 + length > size:
            raise _cut_short(path, 8 + length, size)
        text = handle.read(length)
    try:
        listing = json.loads(text)
        metadata = {str(key): str(value) for key, value in (listing.pop("__metadata__", None) or {}).items()}
        tensors = {name: _entry(described, 8 + length) for name, described in listing.items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ProblemsError.one("The file's list of tensors is damaged", str(path), AGAIN) from error
    end = max((entry.stop for entry in tensors.values()), default=8 + length)
    if end > size:
        raise _cut_short(path, end, size)
    return tensors, metadata


def _entry(described: dict, data_start: int) -> TensorEntry:
    """One line of a safetensors header, checked: the bytes must be as many as type and shape ask for."""
    dtype, shape = described["dtype"], tuple(int(side) for side in described["shape"])
    begin, end = (int(offset) for offset in described["data_offsets"])
    if begin < 0 or end - begin != prod(shape) * ITEM_BYTES[dtype] or any(side < 0 for side in shape):
        raise ValueError(f"{dtype} {shape} does not fit {end - begin} bytes")
    return TensorEntry(dtype, shape, data_start + begin, data_start + end)


def _cut_short(path: Path, promised: int, found: int) -> ProblemsError:
    return ProblemsError.one(
        f"The file is cut short: {found:,} bytes of {promised:,} are there",
        str(path),
        "download or copy the whole file again",
    )
