"""Hashes by which other programs identify files, cached so that each file is hashed once."""

import hashlib
import os
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

from core.record import atomic
from core.record.bounded_json import read_json_object
from core.record.cancel import CancelToken
from core.record.problems import ProblemsError
from core.record.regular import open_regular
from core.record.stamps import stamp
from core.record.workspace import Workspace, display_path, real_path

CHUNK_BYTES = 1 << 22
HOLLOW = 20  # claimed size over size on disk
LEGACY_START, LEGACY_BYTES = 0x100000, 0x10000  # A1111's first hash reads 64 KiB there
LEGACY_OF_SMALL = hashlib.sha256().hexdigest()[:8]


class HashMemo:
    """Cache of strings computed from files, keyed by path and valid while size and modification time stay the same.
    path: JSON file that the cache is stored in; None keeps it in memory only"""

    def __init__(self, path: Path | str | None = None) -> None:
        self.path = Path(path) if path else None
        self._lock = threading.Lock()
        self._values: dict[str, dict] = {}
        if self.path is not None:
            with suppress(ProblemsError):
                self._values = read_json_object(self.path)

    @classmethod
    def of(cls, workspace: Workspace) -> "HashMemo":
        """Return the cache stored in the workspace, in private/hashes.json."""
        return cls(workspace.private / "hashes.json")

    def cached(self, purpose: str, files: Sequence[Path]) -> str | None:
        """Return the cached value if none of the files has changed, else None. Arguments as in `get`."""
        entry = self._values.get(_key(purpose, files))
        stamps = [list(stamp(file)) for file in files]
        valid = isinstance(entry, dict) and entry.get("stamps") == stamps and isinstance(entry.get("value"), str)
        return entry["value"] if entry is not None and valid else None

    def get(self, purpose: str, files: Sequence[Path], compute: Callable[[], str]) -> str:
        """Return the cached value if none of the files has changed, else compute and cache it.
        purpose: what is computed ("sha256"), a part of the cache key"""
        stamps = [list(stamp(file)) for file in files]
        if (value := self.cached(purpose, files)) is not None:
            return value
        value = compute()
        with self._lock:
            self._values[_key(purpose, files)] = {"stamps": stamps, "value": value}
            if self.path is not None:
                with suppress(OSError):  # a memo that cannot be saved only costs time
                    atomic.write_json(self.path, self._values)
        return value


def _key(purpose: str, files: Sequence[Path]) -> str:
    """Return the cache key of what is computed from files."""
    return f"{purpose}|" + "|".join(str(real_path(file)) for file in files)


def file_sha256(path: Path | str, cancel: CancelToken | None = None, start: int = 0) -> str:
    """Return the SHA-256 (64 hex digits) of a file's bytes from offset `start` on. Checks `cancel` between chunks.

    Raises ProblemsError for a sparse file, which may claim terabytes.
    """
    digest = hashlib.sha256()
    with open_regular(path) as handle:
        _refuse_sparse(path, os.fstat(handle.fileno()))
        handle.seek(start)
        while chunk := handle.read(CHUNK_BYTES):
            if cancel is not None:
                cancel.check()
            digest.update(chunk)
    return digest.hexdigest()


def _refuse_sparse(path: Path | str, facts: os.stat_result) -> None:
    """Raise ProblemsError if a file takes far less space on disk than its size. Passes if the file system does not report that space."""
    on_disk = getattr(facts, "st_blocks", 0) * 512
    if 0 < on_disk < facts.st_size / HOLLOW and facts.st_size > CHUNK_BYTES:
        what = (
            f"The file claims {facts.st_size / 1e9:,.1f} GB but takes {on_disk / 1e9:,.3f} GB on disk: it is incomplete"
        )
        raise ProblemsError.one(what, display_path(path), "download or copy it again", code="file.incomplete")


def legacy_hash(path: Path | str) -> str:
    """Return A1111's old model hash: the first 8 digits of the SHA-256 of the 64 KiB at offset 1 MiB.

    For a file that ends before, this is LEGACY_OF_SMALL.
    """
    with open_regular(path) as handle:
        handle.seek(LEGACY_START)
        return hashlib.sha256(handle.read(LEGACY_BYTES)).hexdigest()[:8]


def model_hashes(path: Path | str, memo: HashMemo | None = None, cancel: CancelToken | None = None) -> tuple[str, str]:
    """Return (A1111's old hash, SHA-256) of a model file for LoRA metadata; sd-scripts' placeholders "IsADirectory" for a folder and
    "NOFILE" for a missing file.
    memo: cache of the SHA-256"""
    path = Path(path)
    if path.is_dir():
        return "IsADirectory", "IsADirectory"
    if not path.is_file():
        return "NOFILE", "NOFILE"
    memo = memo or HashMemo()
    return legacy_hash(path), memo.get("sha256", [path], lambda: file_sha256(path, cancel))
