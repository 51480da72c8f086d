"""Replaces a safetensors file's metadata: the tensors' bytes are copied unchanged, and the old header can be restored."""

import hashlib
import os
import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, BinaryIO

from core.formats.hashes import HashMemo
from core.formats.tensors.header import header_with, read_header, sniff
from core.generation.model.sources import lora_hash
from core.record import atomic
from core.record.bounded_json import MAX_BYTES, json_or_none
from core.record.cancel import CancelToken
from core.record.problems import ProblemsError, problems_at
from core.record.regular import open_regular
from core.record.workspace import Workspace, display_path, real_path
from core.tools.files import single_file_of

CHUNK_BYTES = 1 << 22
HEADERS = "headers"  # in the engine's private folder: replaced ones


def safetensors_file(name: str | None, workspace: Workspace, where: str) -> Path:
    """Return the safetensors file that a setting names. Raises ProblemsError without a valid header. `where`: the setting."""
    path = single_file_of(name, workspace, where)
    if sniff(path) in ("zip", "pickle"):
        what = f"{display_path(path)} is not a safetensors file: other formats hold no metadata"
        raise ProblemsError.one(what, where, "convert it to safetensors first", "tools.not-safetensors")
    with problems_at(where):
        read_header(path)
    return path


def with_metadata(path: Path, metadata: Mapping[str, str]) -> bytes:
    """Return the file's header (without its length) with other metadata. Raises ProblemsError if it is too large."""
    header = header_with(_header(path), metadata)
    if len(header) > MAX_BYTES:
        what = f"The metadata would take more than {MAX_BYTES // 1_000_000} MB"
        raise ProblemsError.one(what, display_path(path), "use shorter values", "tools.metadata-too-large")
    return header


def write_copy(path: Path, header: bytes, target: Path, cancel: CancelToken) -> None:
    """Write `target` (which may be `path`) with this header (without its length) and the tensors of `path`. Raises Cancelled."""
    with atomic.open_atomic(target) as temporary:
        with open_regular(path) as source, open(temporary, "wb") as handle:
            source.seek(tensors_offset(source))
            handle.write(len(header).to_bytes(8, "little") + header)
            while chunk := source.read(CHUNK_BYTES):
                cancel.check()
                handle.write(chunk)


def replace_header(path: Path, header: bytes, workspace: Workspace, cancel: CancelToken) -> None:
    """Replace the header in the file, and store the old one for `restore_header`. header: without its length"""
    digest, number = _tensors_hash(path, workspace, cancel), len(_saved_headers(path, workspace)) + 1
    before = _undo_folder(path, workspace) / f"{number:04}-{digest}.header"
    atomic.write_bytes(before, _header(path))
    try:
        write_copy(path, header, path, cancel)
    except BaseException:
        atomic.remove(before)  # nothing was changed: there is nothing to take back
        raise


def restore_header(path: Path, workspace: Workspace, cancel: CancelToken) -> None:
    """Undo the last `replace_header`, byte for byte. There must be one: see `check_can_restore`."""
    latest = _saved_headers(path, workspace)[-1]
    write_copy(path, latest.read_bytes(), path, cancel)
    atomic.remove(latest)


def is_last_change(path: Path, keys: Collection[str], workspace: Workspace) -> bool:
    """Return whether the stored header differs from the file's only in the metadata `keys`, so that undo restores nothing else."""
    saved = _saved_headers(path, workspace)
    old, new = (json_or_none(header) for header in (saved[-1].read_bytes() if saved else b"", _header(path)))
    if not isinstance(old, dict) or not isinstance(new, dict):
        return False
    for listing in (old, new):
        listing["__metadata__"] = {
            name: each for name, each in listing.get("__metadata__", {}).items() if name not in keys
        }
    return bool(old == new)


def check_can_restore(path: Path, workspace: Workspace, where: str) -> None:
    """Raise ProblemsError if no header is stored, or if the file's tensors have changed since; of headers stored by earlier versions,
    which lack the hash, only names, types and shapes are compared."""
    saved = _saved_headers(path, workspace)
    if not saved:
        what, fix = f"No change of {display_path(path)} is recorded", "Undo works for changes of the file itself"
        raise ProblemsError.one(what, where, fix, "tools.nothing-to-undo")
    digest = saved[-1].stem.partition("-")[2]
    same = _tensors_of(saved[-1].read_bytes()) == _tensors_of(_header(path))
    if not same or (digest and digest != _tensors_hash(path, workspace)):
        what = f"{display_path(path)} was replaced by another file since its metadata was changed"
        raise ProblemsError.one(what, where, "undo only the file that was changed", "tools.undo-other-file")


def _tensors_hash(path: Path, workspace: Workspace, cancel: CancelToken | None = None) -> str:
    """Return the SHA-256 of a file's tensors, cached until the file changes."""
    return lora_hash(path, HashMemo.of(workspace), cancel)


def _tensors_of(header: bytes) -> Any:
    """Return the tensor entries of a header; None for a damaged one."""
    listing = json_or_none(header)
    return (
        {name: each for name, each in listing.items() if name != "__metadata__"} if isinstance(listing, dict) else None
    )


def _header(path: Path) -> bytes:
    """Return a file's header without its length."""
    with open_regular(path) as handle:
        stop = tensors_offset(handle)
        handle.seek(8)
        return handle.read(stop - 8)


def tensors_offset(handle: BinaryIO) -> int:
    """Return the byte offset of the tensors in an open safetensors file."""
    handle.seek(0)
    return 8 + int.from_bytes(handle.read(8), "little")


def _undo_folder(path: Path, workspace: Workspace) -> Path:
    """Return the folder with the stored headers of a file."""
    name = hashlib.sha256(os.fsencode(real_path(path))).hexdigest()[:32]
    return workspace.private / HEADERS / name


def _saved_headers(path: Path, workspace: Workspace) -> list[Path]:
    """Return the stored headers of a file, oldest first."""
    files = _undo_folder(path, workspace).glob("*.header")  # NUMBER-HASH
    return sorted(each for each in files if re.fullmatch(r"\d{4,}(-[0-9a-f]{64})?", each.stem))
