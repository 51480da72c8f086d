"""What an ONNX file says before a library opens it: whether it is complete, and which other files its numbers lie in.

Protocol buffers: each field is a number, a kind and a value; only the fields on the way to tensors are followed
(github.com/onnx/onnx, onnx.proto). The numbers themselves are skipped, so that a file of a gigabyte takes milliseconds.
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from core.record.problems import ProblemsError
from core.record.regular import MissingFile, check_regular, open_regular

MAX_BYTES = 8 << 30  # of a model with its numbers
MAX_DEPTH = 40
MAX_FIELDS = 5_000_000
MAX_TEXT = 10_000
# message -> {field: message inside}; a tensor's external_data (13) has pairs of key (1) and value (2).
WAYS = {
    "model": {7: "graph", 20: "training", 25: "function"},
    "training": {1: "graph", 2: "graph"},
    "function": {7: "node"},
    "graph": {1: "node", 5: "tensor", 15: "sparse"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph", 22: "sparse", 23: "sparse"},
    "sparse": {1: "tensor", 2: "tensor"},
    "tensor": {13: "entry"},
}
AGAIN = "download it again"


def check_onnx(path: Path) -> None:
    """Raises ProblemsError for a file that is damaged, incomplete or too large, or that reads files outside its folder."""
    size = check_regular(path).st_size
    if size > MAX_BYTES:
        raise _bad(path, f"is larger than {MAX_BYTES >> 30} GB", "choose another model")
    if not size:
        raise _bad(path, "is empty")
    with open_regular(path) as handle, mmap.mmap(handle.fileno(), 0, access=mmap.ACCESS_READ) as data:
        if data[:15] == b"<!doctype html>" or data[:7] == b"version":
            raise _bad(path, "is a web page or a Git LFS pointer, not a model", "download the file itself")
        try:
            places = set(_Walk(data).external(0, size, "model", 0))
        except (ValueError, IndexError) as error:
            raise _bad(path, f"is incomplete or damaged ({error})") from error
    for place in places:
        size += _size_of(place, path)
    if size > MAX_BYTES:
        raise _bad(path, f"is larger than {MAX_BYTES >> 30} GB with its data", "choose another model")


def _size_of(place: str, path: Path) -> int:
    """The size of a file with numbers beside the model."""
    inside = PurePosixPath(place.replace("\\", "/"))
    folder = os.path.realpath(path.parent)
    real = os.path.realpath(path.parent / place) if "\0" not in place else ""
    if inside.is_absolute() or ".." in inside.parts or ":" in place or not real.startswith(folder + os.sep):
        raise _bad(path, f"reads a file outside its folder ({place[:200]!r})", "do not use it")
    try:
        return check_regular(real).st_size
    except MissingFile:
        raise _bad(path, f"needs the file {place[:200]}", "download that file too") from None


class _Walk:
    def __init__(self, data: mmap.mmap):
        self.data, self.fields = data, 0

    def external(self, start: int, end: int, message: str, depth: int) -> Iterator[str]:
        """The locations of external numbers within one message."""
        if depth > MAX_DEPTH:
            raise ValueError("it is nested too deeply")
        ways = WAYS[message]
        for field, begin, stop in self.messages(start, end):
            inside = ways.get(field)
            if inside == "entry":
                entry = {name: self.data[a : min(b, a + MAX_TEXT)] for name, a, b in self.messages(begin, stop)}
                if entry.get(1) == b"location":
                    yield entry.get(2, b"").decode("utf-8", "replace")
            elif inside:
                yield from self.external(begin, stop, inside, depth + 1)

    def messages(self, start: int, end: int) -> Iterator[tuple[int, int, int]]:
        """(field, start, end) of the fields that have a length; the others are stepped over."""
        at = start
        while at < end:
            self.fields += 1
            if self.fields > MAX_FIELDS:
                raise ValueError("it has too many parts")
            tag, at = self.number(at, end)
            kind = tag & 7
            if tag < 8:
                raise ValueError("it is not an ONNX file")
            if kind == 0:
                _, at = self.number(at, end)
            elif kind == 2:
                length, at = self.number(at, end)
                if length > end - at:
                    raise ValueError(f"it ends {length - (end - at):,} bytes too early")
                yield tag >> 3, at, at + length
                at += length
            elif kind in (1, 5):
                at += 8 if kind == 1 else 4
            else:
                raise ValueError("it is not an ONNX file")
        if at != end or not end:
            raise ValueError("it ends in the middle of a value")

    def number(self, at: int, end: int) -> tuple[int, int]:
        value = shift = 0
        while at < end and shift < 70:
            byte = self.data[at]
            value |= (byte & 127) << shift
            at, shift = at + 1, shift + 7
            if byte < 128:
                return value, at
        raise ValueError("it ends in the middle of a number")


def _bad(path: Path, why: str, fix: str = AGAIN) -> ProblemsError:
    return ProblemsError.one(f"The model {path.name} {why}", str(path), fix, "tagger.bad-model")
