"""Replaces a safetensors file's metadata: the tensors' bytes are copied unchanged, and the old header can be restored."""

import hashlib
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from core.formats.hashes import HashMemo
from core.formats.tensors.header import header_with, read_header, sniff
from core.generation.model.sources import TENSORS, lora_hash
from core.record import atomic
from core.record.bounded_json import MAX_BYTES, json_or_none
from core.record.cancel import CancelToken
from core.record.problems import ProblemsError, problems_at
from core.record.regular import open_regular
from core.record.workspace import Workspace, display_path, real_path
from core.tools.files import single_file_of

CHUNK_BYTES = 1 << 22
HEADERS = "headers"  # in the engine's private folder: replaced ones
AFTER = ".after"  # ending of the file with the header that replaced a ".header"
OWNER = "path"  # file next to them with the path of the changed file
KEPT = ("atelier_kept", "atelier_choice", "modelspec.thumbnail")  # keys that *Keep* writes: name, reason, sample


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
    """Replace the header in the file, and store the old and the new one for `undo_change`. header: without its length"""
    digest, folder = _tensors_hash(path, workspace, cancel), _undo_folder(path, workspace)
    number = max((int(each.stem.partition("-")[0]) for each in _headers_in(folder)), default=0) + 1
    atomic.write_bytes(folder / OWNER, os.fsencode(real_path(path)))
    before = folder / f"{number:04}-{digest}.header"
    atomic.write_bytes(before, _header(path))
    atomic.write_bytes(before.with_suffix(AFTER), header)
    try:
        write_copy(path, header, path, cancel)
    except BaseException:
        _remove(before)  # nothing was changed: there is nothing to take back
        raise
    _remember(path, digest, workspace)


def undo_change(path: Path, workspace: Workspace, cancel: CancelToken, *, kept: bool = False) -> list[str]:
    """Undo the newest `replace_header`: byte for byte if the header has not changed since, else only the keys that still have its values.

    There must be one: see `newest_change`.

    kept      as in `newest_change`
    returns   the keys that were changed since, which stay
    """
    change = newest_change(path, workspace, kept=kept)
    assert change is not None
    header, left = change.before, list[str]()
    if (now := _header(path)) != change.after:
        old, new, metadata = (_metadata_of(each) for each in (change.before, change.after, now))
        for name in sorted(change.keys):
            if metadata.get(name) == new.get(name):
                metadata = {
                    key: value for key, value in (metadata | {name: old.get(name)}).items() if value is not None
                }
            elif metadata.get(name) != old.get(name):
                left.append(name)
        header = with_metadata(path, metadata)
    digest = HashMemo.of(workspace).cached(TENSORS, [path])
    write_copy(path, header, path, cancel)
    if digest is not None:
        _remember(path, digest, workspace)
    _remove(change.file)
    return left


@dataclass(frozen=True)
class Change:
    """A stored change of a file's metadata. before, after: headers without their length; file: the stored `before`"""

    file: Path
    before: bytes
    after: bytes

    @property
    def keys(self) -> set[str]:
        """The metadata keys that the change added, changed or removed."""
        old, new = _metadata_of(self.before), _metadata_of(self.after)
        return {name for name in old.keys() | new.keys() if old.get(name) != new.get(name)}


def newest_change(path: Path, workspace: Workspace, *, kept: bool = False) -> Change | None:
    """Return the newest stored change of a file, None if there is none. kept: only of *Keep*, which other changes leave out"""
    after = _header(path)
    for file in reversed(_saved_headers(path, workspace)):
        stored = file.with_suffix(AFTER)  # earlier versions stored none
        change = Change(file, file.read_bytes(), stored.read_bytes() if stored.is_file() else after)
        if (KEPT[0] in change.keys <= {*KEPT}) == kept:
            return change
        after = change.before
    return None


def check_can_undo(path: Path, workspace: Workspace, where: str) -> None:
    """Raise ProblemsError if no change is stored, or if the file's tensors have changed since; of headers stored by earlier versions,
    which lack the hash, only names, types and shapes are compared."""
    change = newest_change(path, workspace)
    if change is None:
        what, fix = f"No change of {display_path(path)} is recorded", "Undo works for changes of the file itself"
        raise ProblemsError.one(what, where, fix, "tools.nothing-to-undo")
    digest = change.file.stem.partition("-")[2]
    same = _tensors_of(change.before) == _tensors_of(_header(path))
    if not same or (digest and digest != _tensors_hash(path, workspace)):
        what = f"{display_path(path)} was replaced by another file since its metadata was changed"
        raise ProblemsError.one(what, where, "undo only the file that was changed", "tools.undo-other-file")


def _remove(before: Path) -> None:
    """Delete a stored change. before: its file"""
    atomic.remove(before)
    atomic.remove(before.with_suffix(AFTER))


def _tensors_hash(path: Path, workspace: Workspace, cancel: CancelToken | None = None) -> str:
    """Return the SHA-256 of a file's tensors, cached until the file changes."""
    return lora_hash(path, HashMemo.of(workspace), cancel)


def _remember(path: Path, digest: str, workspace: Workspace) -> None:
    """Cache the hash of a file whose header was replaced: its tensors are the same, and the check of Undo need not read them."""
    HashMemo.of(workspace).get(TENSORS, [path], lambda: digest)


def _tensors_of(header: bytes) -> Any:
    """Return the tensor entries of a header; None for a damaged one."""
    listing = json_or_none(header)
    return (
        {name: each for name, each in listing.items() if name != "__metadata__"} if isinstance(listing, dict) else None
    )


def _metadata_of(header: bytes) -> dict[str, str]:
    """Return the metadata of a header; {} for a damaged one."""
    listing = json_or_none(header)
    return dict(listing.get("__metadata__", {})) if isinstance(listing, dict) else {}


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
    """Return the stored headers of a file, oldest first: also of one with the same tensors that was moved here, or renamed."""
    if files := _headers_in(_undo_folder(path, workspace)):
        return files
    owners = (workspace.private / HEADERS).glob(f"*/{OWNER}")
    moved = [owner.parent for owner in owners if not os.path.lexists(os.fsdecode(owner.read_bytes()))]
    digest = _tensors_hash(path, workspace) if moved else ""
    return next((files for each in moved if (files := _headers_in(each)) and files[-1].stem.endswith(f"-{digest}")), [])


def _headers_in(folder: Path) -> list[Path]:
    """Return the headers before changes in a folder, oldest first."""
    files = folder.glob("*.header")  # NUMBER-HASH
    return sorted(each for each in files if re.fullmatch(r"\d{4,}(-[0-9a-f]{64})?", each.stem))
