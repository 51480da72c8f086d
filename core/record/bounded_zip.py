"""Reads user zip files (PyTorch checkpoints, .npz) within limits: a small one can claim or expand to gigabytes."""

import struct
import zipfile
import zlib
from pathlib import Path
from typing import Any, BinaryIO

from core.record.problems import ProblemsError

MAX_LISTING_BYTES = 4_000_000  # its list of members; SDXL's has 190,000
# bz2 and LZMA decompress without a memory limit.
METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
# What `zipfile` raises on damage. KeyError: a missing member.
DAMAGED = (
    *(zipfile.BadZipFile, zlib.error, struct.error, EOFError, OSError),
    *(NotImplementedError, RuntimeError, ValueError, KeyError),
)


class _Bounded:
    """Binary file that raises BadZipFile when more than `limit` bytes are read at once; None sets no limit.

    `zipfile` loads the list of members in one read.
    """

    def __init__(self, handle: BinaryIO, limit: int) -> None:
        self._handle = handle
        self.limit: int | None = limit

    def read(self, count: int = -1) -> bytes:
        """Read `count` bytes, or without a count up to the limit. Raises BadZipFile if `count` is over the limit."""
        if self.limit is not None:
            if count > self.limit:
                raise zipfile.BadZipFile("its list of members is too long")
            count = self.limit if count < 0 else count
        return self._handle.read(count)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._handle, name)


def open_zip(
    handle: BinaryIO, path: Path | str, fix: str = "download or copy it again", max_listing: int = MAX_LISTING_BYTES
) -> zipfile.ZipFile:
    """Open the zip archive in `handle`, which the caller closes. Raises ProblemsError, with `path` as location and `fix` as advice, if it
    is damaged or its list of members has more than `max_listing` bytes."""
    bounded = _Bounded(handle, max_listing)
    try:
        archive = zipfile.ZipFile(bounded)  # type: ignore[call-overload]
    except DAMAGED as error:
        raise ProblemsError.one(f"The zip file is damaged: {error}", str(path), fix, code="zip.damaged") from error
    bounded.limit = None
    return archive


def read_member(archive: zipfile.ZipFile, info: zipfile.ZipInfo, max_bytes: int) -> bytes:
    """Return a member's decompressed bytes. Raises zipfile.BadZipFile if there are more than `max_bytes`, or if the compression is not
    stored or deflate."""
    if info.compress_type not in METHODS:
        raise zipfile.BadZipFile(f"{info.filename[:100]} uses an unsupported compression")
    if info.file_size > max_bytes:
        raise zipfile.BadZipFile(f"{info.filename[:100]} is too large")
    with archive.open(info) as member:
        data = member.read(max_bytes + 1)
    if len(data) > max_bytes:
        raise zipfile.BadZipFile(f"{info.filename[:100]} is too large")
    return data
