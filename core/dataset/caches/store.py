"""Storage of cached tensors: small safetensors files named by a hash of everything that their content depends on.

Each kind of content has a row (`LATENTS`, `TEXTS`, `MASKS`, `CONTROLS`) and a subclass of `Store` that computes it. An entry has a checksum
of its tensors in the header; a damaged one is reported and computed again. After a change of the code, entries of all files become invalid
by the row's version; those of a few images, which are decoded otherwise, by `decoding_of` (images/opening.py).
"""

import hashlib
import json
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import KW_ONLY, dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar, NamedTuple
from zlib import crc32

from core.record import atomic
from core.record.lazy_torch import Tensor
from core.record.problems import Problem, ProblemsError, write_errors
from core.record.regular import MissingFile, read_regular
from core.record.space import require_space
from core.record.units import count

MAX_BYTES = 1 << 28  # of an entry; the latents of 4096 x 4096 pixels have 8 MB
FLOATS = ("F32", "F16", "BF16", "F64")
CHECKSUM = "crc32"  # in the metadata; entries of earlier versions have none and are used without a check
Shapes = Mapping[str, tuple[int | None, ...]]  # by name; None: any length
Warn = Callable[[Problem], None]


class Row(NamedTuple):
    """A kind of cached content.

    folder       name of its folder in a workspace's cache folder
    name         first part of the keys
    version      second part of the keys; raised when the code that computes the content changes
    titles       plural noun for it in a warning of entries that cannot be written
    otherwise    clause for that warning: what happens instead
    keeps_room   do not write to a disk that is nearly full
    dtypes       allowed safetensors dtypes of the tensors
    """

    folder: str
    name: str
    version: int
    titles: str
    otherwise: str
    keeps_room: bool = False
    dtypes: Sequence[str] = FLOATS


LATENTS = Row("latents", "latents", 2, "some latents", "the next run encodes them again")
TEXTS = Row("text", "text", 2, "encoded captions", "captions are encoded again when needed")
MASKS = Row("masks", "mask", 1, "some masks", "they are computed again at the next start", True)
CONTROLS = Row("controls", "control", 1, "some control images", "they are decoded at each step", True, ("U8",))


@dataclass(eq=False)
class Store:
    """Cache entries of one kind of content.

    folder      the cache folder, shared by all datasets and models
    memo_path   where hashes and measurements of image files are stored, so that a warm start reads no image
    writes      False: nothing is written
    warn        called with advice: damaged entries, which are computed again, and a failed write that does not end the run
    unwritten   the problem of the first failed write by `try_write`, after which nothing more is written; else None
    """

    folder: Path
    _: KW_ONLY
    memo_path: Path | str | None = None
    writes: bool = True
    warn: Warn | None = None
    unwritten: Problem | None = field(default=None, init=False)
    _damaged: list[Path] = field(default_factory=list, init=False)
    _reported: bool = field(default=False, init=False)

    row: ClassVar[Row]

    def path_of(self, *parts: object) -> Path:
        """Return the path of the entry whose content depends on `parts`."""
        return file_of(self.folder, key_of(self.row.name, self.row.version, *parts))

    def read_entry(self, path: Path, shapes: Shapes) -> dict[str, Tensor] | None:
        """Return an entry's tensors by name; None if it is missing or damaged. Damaged ones are noted for `report_damaged`.
        shapes: expected shapes by name"""
        return read_tensors(path, shapes, self._damaged, self.row.dtypes)

    def report_damaged(self, *, once: bool = False) -> None:
        """Warn of the damaged entries read since the last call.
        once: do not warn if an earlier call with `once` has warned"""
        reported, self._reported = self._reported, self._reported or (once and bool(self._damaged))
        if self._damaged and self.warn is not None and not (once and reported):
            what = (
                f"{count(len(self._damaged), 'cached file')} could not be read or failed the checksum; computing again"
            )
            fix = "if this happens again, close programs that read the outputs folder, check the disk or move the folder to another one"
            self.warn(Problem(what, str(self._damaged[0]), fix, "advice", code="cache.damaged"))
        self._damaged.clear()

    def try_write(self, path: Path, tensors: dict[str, Tensor]) -> int:
        """Write an entry and return its size in bytes, or 0 if it is not written.

        An error is stored in `unwritten` instead of raised.
        """
        if not self.writes or self.unwritten is not None:
            return 0
        try:
            if self.row.keeps_room:
                fix = "free some space, or start with --outputs on another disk"
                require_space(self.folder, sum(each.nbytes for each in tensors.values()), "A cache entry", fix)
            return write_tensors(path, tensors)
        except ProblemsError as error:
            self.unwritten = error.problems[0]
            return 0

    def not_cached(self, problem: Problem) -> Problem:
        """Return advice that entries are not cached, from the problem of writing one."""
        what, fix = f"{problem.what}: {self.row.titles} are not cached", f"{problem.fix}; {self.row.otherwise}"
        return replace(problem, what=what, fix=fix, level="advice")


def key_of(*parts: object) -> str:
    """Return the key of a cached value: SHA-256 (first 40 hex digits) of all `parts` that the value depends on."""
    text = "\x1f".join(str(part) for part in parts)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:40]


def file_of(folder: Path, key: str) -> Path:
    """Return the path of an entry. Keys are spread over 256 subfolders: file systems slow down with many files in one."""
    return folder / key[:2] / f"{key}.safetensors"


def write_tensors(path: Path, tensors: dict[str, Tensor]) -> int:
    """Write an entry and return its size in bytes. Raises ProblemsError if it cannot be written.

    Without fsync: an entry that a power cut damages fails its checksum.
    """
    from safetensors.torch import save

    data = _with_checksum(save({name: tensor.detach().contiguous().cpu() for name, tensor in tensors.items()}))
    with write_errors("The cache cannot be written", str(path.parent), "entries cached so far are kept"):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(prefix=".tmp-", dir=path.parent)
        try:
            with os.fdopen(handle, "wb") as out:
                out.write(data)
            atomic.replace(temporary, path)
        finally:
            atomic.remove(temporary)
    return len(data)


def _with_checksum(data: bytes) -> bytes:
    """Return the bytes of a safetensors file with a checksum of the tensors in its metadata."""
    start = 8 + int.from_bytes(data[:8], "little")
    header = {"__metadata__": {CHECKSUM: _checksum(data, start)}} | json.loads(data[8:start])
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + data[start:]


def _checksum(data: bytes, start: int) -> str:
    """Return the CRC-32 in hex of the bytes from `start` on."""
    return f"{crc32(memoryview(data)[start:]):08x}"


def read_tensors(
    path: Path, shapes: Shapes, damaged: list[Path] | None = None, dtypes: Sequence[str] = FLOATS
) -> dict[str, Tensor] | None:
    """Read an entry's tensors by name; None if the file is missing or damaged. Damaged files are appended to `damaged`.

    shapes, dtypes   the expected shapes by name, and the allowed safetensors dtypes
    Tensors are copied, because a mapped file cannot be replaced on Windows. Reading sets the file's time, for `prune`.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load

    try:
        tensors = load(_checked_bytes(path, shapes, dtypes))
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


def _checked_bytes(path: Path, shapes: Shapes, dtypes: Sequence[str]) -> bytes:
    """Return the bytes of an entry after checking header, shapes, dtypes and checksum. Raises any exception if damaged."""
    data = read_regular(path, MAX_BYTES)
    start = 8 + int.from_bytes(data[:8], "little")
    if not 10 <= start <= min(len(data), 1 << 16):
        raise ValueError("not an entry")
    header = json.loads(data[8:start])
    stated = header.get("__metadata__", {}).get(CHECKSUM)
    if not all(_fits(header[name], shape, dtypes) for name, shape in shapes.items()):
        raise ValueError("other tensors")
    if stated is not None and stated != _checksum(data, start):
        raise ValueError("wrong checksum")
    return data


def _fits(entry: dict[str, Any], shape: tuple[int | None, ...], dtypes: Sequence[str]) -> bool:
    """Return whether a tensor's header entry has this shape and one of these dtypes."""
    sides = entry["shape"]
    same = len(sides) == len(shape) and all(want in (None, side) for side, want in zip(sides, shape, strict=True))
    return same and entry["dtype"] in dtypes


class Entry(NamedTuple):
    """A cache file; sorts by the time of its last use.

    used    time of the last use, seconds since 1970
    bytes   size of the file
    """

    used: float
    bytes: int
    path: Path


def entries(folder: Path) -> Iterator[Entry]:
    """Yield every entry of a cache folder, or of the thumbnails', unsorted."""
    for path in folder.glob("??/*.*"):
        with suppress(OSError):
            status = os.stat(path)
            yield Entry(status.st_mtime, status.st_size, path)


def prune(folder: Path, keep_bytes: int, needed: frozenset[str] | set[str] = frozenset()) -> int:
    """Delete the least recently used entries until the folder has at most `keep_bytes`; return the bytes freed.
    needed: keys that are never deleted"""
    oldest_first = sorted(entries(folder))
    over = sum(entry.bytes for entry in oldest_first) - keep_bytes
    freed = 0
    for entry in oldest_first:
        if freed >= over:
            break
        if entry.path.stem in needed:
            continue
        with suppress(OSError):  # in use by another program: it stays
            atomic.remove(entry.path)
            freed += entry.bytes
    return freed
