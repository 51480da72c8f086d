"""Reads the header of a model file: names, dtypes, shapes and byte ranges of its tensors, and its metadata."""

import json
import os
import re
import struct
from collections import Counter
from collections.abc import Mapping
from math import prod
from pathlib import Path
from typing import Any

from core.formats.tensors.entry import AGAIN, ITEM_BYTES, TensorEntry
from core.formats.tensors.pickles import read_pickled_header
from core.record.bounded_json import MAX_BYTES, parse_json
from core.record.problems import IN_USE, ProblemsError
from core.record.regular import check_regular, open_regular

MAX_HEADER_BYTES = 100_000_000  # the safetensors library's own limit, used to recognize a file
MAX_TENSORS = 20_000  # SDXL has 2,515, a LoRA of all its layers with dropout and norms 10,000
MAX_NAME = 300
MAX_AXES = 8
MAX_ELEMENTS = 1 << 48
# A tensor may repeat another's bytes (shared weights), or its own through a stride of 0.
MAX_TIMES_FILE, SMALL_BYTES = 4, 16_000_000
CONTROL = re.compile(r"[\x00-\x1f\x7f]")
# An entry in the usual form, or else the remaining text: one pass takes a tenth of the time of JSON within limits.
_NUMBER = "(?:0|[1-9][0-9]{0,17})"
_USUAL_ENTRY = re.compile(
    rf'"([^"\\\x00-\x1f]*)": ?{{"dtype": ?"([A-Z0-9_]+)", ?"shape": ?\[({_NUMBER}(?:, ?{_NUMBER})*|)\], ?'
    rf'"data_offsets": ?\[({_NUMBER}), ?({_NUMBER})\]}}(?:, ?(?=")|}} *\Z)|(.+)',
    re.DOTALL,
)
_METADATA = re.compile(r'\{"__metadata__": ?(\{(?:"(?:[^"\\]|\\.)*+"[:,]? ?)*+\})(?:, ?(?=")|(?=\} *\Z))', re.DOTALL)
MOST_USUAL_BYTES = 4_000_000  # of a listing in that form: 20,000 tensors take 3 MB


def sniff(path: Path | str) -> str:
    """Return the format by the first bytes: "safetensors", "zip", "pickle", or a key of NOT_A_MODEL, such as "empty" or "page".

    The file's name plays no role. Raises ProblemsError for a file that cannot be opened.
    """
    with open_regular(path) as handle:
        first = handle.read(512)
    if not first:
        return "empty"
    if first[8:9] == b"{" and struct.unpack("<Q", first[:8])[0] <= MAX_HEADER_BYTES:
        return "safetensors"
    if first[:4] == b"PK\x03\x04":
        return "zip"
    if first[:1] == b"\x80":
        return "pickle"
    other = _OTHER_FILES.match(first)
    return (other.lastgroup if other else None) or "unknown"


_OTHER_FILES = re.compile(
    rb"\s*+(?P<page><!doctype html|<html|<\?xml|\{\s*\"(?:error|message)\"|entry not found)"
    rb"|(?P<pointer>version https://git-lfs)|(?P<packed>\x1f\x8b|Rar!|7z\xbc\xaf)|(?P<gguf>GGUF)|(?P<zeros>\0{64,}\Z)",
    re.IGNORECASE,
)
NOT_A_MODEL = {
    "empty": ("The file is empty", AGAIN),
    "zeros": ("The file begins with zeros only: the download or the copy is incomplete", AGAIN),
    "packed": ("This is a packed file (gzip, RAR or 7z), not a model", "unpack it and choose the model in it"),
    "gguf": ("GGUF files are not read", "choose the model's .safetensors file"),
    "page": (
        "This is a web page or an error message of a server, not a model: the download was refused, perhaps a login is needed",
        "download the file itself",
    ),
    "pointer": (
        "This is a Git LFS pointer, not the model itself",
        "run `git lfs pull`, or download the file itself",
    ),
    "unknown": ("This is not a model file", "choose a .safetensors, .ckpt, .pt or .bin file, or a diffusers folder"),
}


# Formats of a weights file, by its extension.
FORMS = {".safetensors": ("safetensors",)} | dict.fromkeys(
    (".ckpt", ".pt", ".pth", ".bin"), ("zip", "pickle", "safetensors")
)


def check_format(path: Path, name: str) -> None:
    """Raise ProblemsError unless a file's format is one that the extension of `name` allows (FORMS) and its header is intact.

    Names with other extensions pass. Of zip and pickle files only the first bytes are read.
    """
    allowed = FORMS.get(Path(name).suffix.lower())
    if allowed is None:
        return
    form = sniff(path)
    if form not in NOT_A_MODEL and form not in allowed:
        what, fix = f"{name} is a {form} file, not what its extension says", "use the link of a .safetensors file"
        raise ProblemsError.one(what, str(path), fix, "model.other-format")
    if form not in ("zip", "pickle"):
        read_header(path)


def read_header(path: Path | str) -> tuple[dict[str, TensorEntry], dict[str, str]]:
    """Return (tensors by name, metadata) of a model file without reading weights or running a pickle.

    The metadata of a pickle are its top-level numbers and strings (global_step, epoch ...) as text.
    Raises ProblemsError for a file that cannot be read, is damaged or is no model.
    """
    path = Path(path)
    size = check_regular(path).st_size
    try:
        form = sniff(path)
        if form in NOT_A_MODEL:
            what, fix = NOT_A_MODEL[form]
            raise ProblemsError.one(what, str(path), fix, f"model.{form}-file")
        if form == "safetensors":
            tensors, metadata = _safetensors_header(path)
        else:
            tensors, metadata = read_pickled_header(path, form)
    except OSError as error:
        what = f"The file cannot be read: {error.strerror or error}"
        raise ProblemsError.one(what, str(path), f"{IN_USE}check its permissions", "file.unreadable") from error
    _check_entries(path, tensors, size)
    return tensors, metadata


def _safetensors_header(path: Path) -> tuple[dict[str, TensorEntry], dict[str, str]]:
    """Return (tensors by name, metadata) of a safetensors file. Raises ProblemsError for a damaged or truncated one."""
    size = os.path.getsize(path)
    with open_regular(path) as handle:
        (length,) = struct.unpack("<Q", handle.read(8))
        if 8 + length > size:
            raise _cut_short(path, 8 + length, size)
        if length > MAX_BYTES:
            raise _damaged(path, f"its header is larger than {MAX_BYTES / 1e6:.0f} MB")
        text = handle.read(length)
    if (usual := _usual_listing(path, text, 8 + length)) is not None:
        return usual
    subject = "The file is damaged: its header"
    listing = parse_json(text, str(path), AGAIN, subject=subject, object_pairs_hook=_unique_object)
    if not isinstance(listing, dict):
        raise _damaged(path, "its header is not a JSON object")
    metadata = listing.pop("__metadata__", None) or {}
    if not isinstance(metadata, dict):
        raise _damaged(path, "its metadata is not a JSON object")
    try:
        tensors = {name: _entry_from_json(entry, 8 + length) for name, entry in listing.items()}
    except ValueError as error:
        raise _damaged(path, str(error)) from error
    except (KeyError, TypeError) as error:
        raise _damaged(path, "a tensor's entry is invalid") from error
    _refuse_overlaps(path, tensors)
    return tensors, {key: str(value) for key, value in metadata.items()}


def _usual_listing(path: Path, text: bytes, data_start: int) -> tuple[dict[str, TensorEntry], dict[str, str]] | None:
    """Parse a header in the form that all programs write, ten times as fast as JSON; None if it has another form, valid or not.

    data_start   the file offset of the first tensor
    returns      (tensors by name, metadata)
    """
    if len(text) > MOST_USUAL_BYTES:
        return None
    try:
        listing = text.decode("utf-8")
    except UnicodeDecodeError:
        return None
    metadata_text = _METADATA.match(listing)
    entries = _USUAL_ENTRY.findall(listing, metadata_text.end() if metadata_text else 1)
    if not listing.startswith("{") or not entries or entries[-1][-1]:
        return None
    try:
        metadata = (
            parse_json(metadata_text[1], str(path), AGAIN, object_pairs_hook=_unique_object) if metadata_text else {}
        )
        tensors = {
            name: _entry(dtype, tuple(map(int, shape.split(","))) if shape else (), int(begin), int(end), data_start)
            for name, dtype, shape, begin, end, _ in entries
        }
    except (ProblemsError, ValueError):
        return None
    if len(tensors) < len(entries) or "__metadata__" in tensors:
        return None
    _refuse_overlaps(path, tensors)
    return tensors, {key: str(value) for key, value in metadata.items()}


def _unique_object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Build the dict of a JSON object. Raises ValueError for a repeated name, of which JSON readers keep different values."""
    unique = dict(pairs)
    if len(unique) < len(pairs):
        name = Counter(name for name, _ in pairs).most_common(1)[0][0]
        raise ValueError(f"'{name[:100]}' appears twice")
    return unique


def _entry_from_json(entry: Any, data_start: int) -> TensorEntry:
    """Convert a tensor's JSON object of a safetensors header. Raises ValueError, KeyError or TypeError if it is invalid.
    data_start: the file offset that "data_offsets" count from"""
    dtype, shape, (begin, end) = entry["dtype"], tuple(entry["shape"]), entry["data_offsets"]
    if not isinstance(dtype, str) or not all(type(number) is int for number in (*shape, begin, end)):
        raise ValueError("a tensor's entry is invalid")
    return _entry(dtype, shape, begin, end, data_start)


def _entry(dtype: str, shape: tuple[int, ...], begin: int, end: int, data_start: int) -> TensorEntry:
    """Return a tensor's entry. Raises ValueError for an unknown dtype, or if the byte count does not match dtype and shape.
    begin, end: byte offsets after `data_start`"""
    if dtype not in ITEM_BYTES:
        raise ValueError(f"a tensor has the unknown dtype {dtype[:20]}")
    if len(shape) > MAX_AXES or min((*shape, begin, end)) < 0:
        raise ValueError("a tensor's entry is invalid")
    if end - begin != prod(shape) * ITEM_BYTES[dtype]:
        raise ValueError(f"a tensor of {dtype} {list(shape)} does not fit its {end - begin} bytes")
    return TensorEntry(dtype, shape, data_start + begin, data_start + end)


def _refuse_overlaps(path: Path, tensors: Mapping[str, TensorEntry]) -> None:
    """Raise ProblemsError for overlapping byte ranges, with which a small file could claim any number of bytes."""
    before = 0
    for entry in sorted(tensors.values(), key=lambda entry: (entry.start, entry.stop)):
        if entry.start < before and entry.stop > entry.start:
            raise _damaged(path, "tensors overlap")
        before = max(before, entry.stop)


def _check_entries(path: Path, tensors: Mapping[str, TensorEntry], size: int) -> None:
    """Raise ProblemsError for too many or too large tensors, unprintable names, or byte ranges beyond the file's `size`."""
    if len(tensors) > MAX_TENSORS:
        raise _damaged(path, f"it lists more than {MAX_TENSORS:,} tensors")
    if max(map(len, tensors), default=0) > MAX_NAME or CONTROL.search("".join(tensors)):
        raise _damaged(path, "a tensor's name is too long or contains control characters")
    claimed = 0
    for entry in tensors.values():
        count = prod(entry.shape)
        if len(entry.shape) > MAX_AXES or (count or prod(max(side, 1) for side in entry.shape)) > MAX_ELEMENTS:
            raise _damaged(path, "a tensor has too many elements or axes")
        if entry.stop > size:
            raise _cut_short(path, max(each.stop for each in tensors.values()), size)
        claimed += count * ITEM_BYTES[entry.dtype]
    if claimed > MAX_TIMES_FILE * size + SMALL_BYTES:
        raise _damaged(path, f"its tensors would take {claimed:,} bytes, far more than the file has")


def _damaged(path: Path, why: str) -> ProblemsError:
    """Return the error that the header is invalid because of `why`."""
    return ProblemsError.one(f"The file's header is invalid: {why}", str(path), AGAIN, code="model.bad-header")


def _cut_short(path: Path, promised: int, actual: int) -> ProblemsError:
    """Return the error that a file has only `actual` of the `promised` bytes."""
    what = f"The file is truncated: {actual:,} of {promised:,} bytes"
    return ProblemsError.one(what, str(path), "download or copy the whole file again", "model.truncated")


def header_with(header: bytes, metadata: Mapping[str, str]) -> bytes:
    """Return a safetensors header (JSON without its length) with `metadata` in place of its own; the tensors' entries stay."""
    listing = json.loads(header)
    listing.pop("__metadata__", None)
    return header_of(listing, metadata)


def header_of(listing: Mapping[str, Any], metadata: Mapping[str, str]) -> bytes:
    """Return the JSON of a safetensors header, padded with spaces to a multiple of 8 bytes.
    listing: {tensor name: {"dtype", "shape", "data_offsets"}}"""
    content = ({"__metadata__": dict(metadata)} if metadata else {}) | dict(listing)
    text = json.dumps(content, ensure_ascii=False, separators=(",", ":")).encode("utf-8")
    return text + b" " * (-len(text) % 8)
