"""Checks an ONNX file before a library opens it: completeness, external weight files, shapes of inputs and outputs.

The protobuf messages are walked without a schema, only along the fields that lead to tensors (github.com/onnx/onnx, onnx.proto).
Weights are skipped, so a file of a gigabyte takes milliseconds.
"""

import mmap
import os
from collections.abc import Iterator, Sequence
from math import prod
from pathlib import Path, PurePosixPath

from core.record.problems import ProblemsError
from core.record.regular import MissingFile, check_regular, open_regular
from core.record.units import memory_text

MAX_BYTES = 8 << 30  # of a model with its weights
MAX_DEPTH = 40
MAX_FIELDS = 5_000_000
MAX_NODES = 20_000  # the time to open a file may grow with their square; taggers have at most a few thousand
MAX_TEXT, MAX_PROPERTY = 10_000, 1_000_000  # bytes
MAX_BATCH = 256  # images of a fixed batch
MAX_INPUT = 1 << 30  # bytes of a batch in float32
MAX_OUTPUTS = 1_000_000  # numbers for an image; Camie has 70,500
# message -> {field: message inside}; a tensor's external_data (13) has pairs of key (1) and value (2).
MESSAGE_FIELDS = {
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


def check_onnx(path: Path, about: str = "tagger") -> dict[str, list[int]]:
    """Check an ONNX file and return {output name: shape}. 0 is an open dimension, [] an unknown shape.

    about   first part of the problem codes ("tagger.bad-model")
    Raises ProblemsError if the file is damaged, incomplete or too large, has a fixed batch size above MAX_BATCH, or reads weights outside
    its folder.
    """
    size = check_regular(path).st_size
    if size > MAX_BYTES:
        raise _error(about, path, f"is larger than {MAX_BYTES >> 30} GB", "choose another model")
    if not size:
        raise _error(about, path, "is empty")
    with open_regular(path) as handle, mmap.mmap(handle.fileno(), 0, access=mmap.ACCESS_READ) as data:
        if data[:15] == b"<!doctype html>" or data[:7] == b"version":
            raise _error(about, path, "is a web page or a Git LFS pointer, not a model", "download the file itself")
        try:
            protobuf = _Protobuf(data)
            locations = set(protobuf.external_locations(0, size, "model", 0))
            shapes = [*_Protobuf(data).shapes(size)]
        except (ValueError, IndexError) as error:
            raise _error(about, path, f"is incomplete or damaged ({error})") from error
    if protobuf.nodes > MAX_NODES:
        raise _error(about, path, f"has {protobuf.nodes:,} nodes, more than {MAX_NODES:,}", "choose another model")
    for is_input, _, shape in shapes:
        why = batch_too_large(shape) if is_input else outputs_too_many(shape)
        if why:
            raise _error(about, path, why, "choose another model")
    for location in locations:
        size += _size_of(about, location, path)
    if size > MAX_BYTES:
        raise _error(about, path, f"is larger than {MAX_BYTES >> 30} GB with its data", "choose another model")
    return {name.decode("utf-8", "replace"): shape for is_input, name, shape in shapes if not is_input}


def onnx_property(path: Path, name: str) -> str:
    """Return the value of `name` in the model's metadata (metadata_props), or "". The file must have passed `check_onnx`."""
    with open_regular(path) as handle, mmap.mmap(handle.fileno(), 0, access=mmap.ACCESS_READ) as data:
        protobuf = _Protobuf(data)
        pairs = dict(protobuf.entry(*span, MAX_PROPERTY) for span in protobuf.spans(0, len(data), (14,)))
        return pairs.get(name.encode(), "")


def batch_too_large(shape: Sequence[int]) -> str:
    """Return why a 4-dimensional input shape is too large a batch of images, as a clause for a message; "" if it is fine.

    0 is an open dimension. Shapes with another number of dimensions are fine.
    """
    size = 4 * prod(max(1, number) for number in shape)
    if len(shape) != 4 or (shape[0] <= MAX_BATCH and size <= MAX_INPUT):
        return ""
    if shape[0] > MAX_BATCH:
        return f"takes {shape[0]:,} images at once, more than {MAX_BATCH}"
    return f"takes {memory_text(size)} of images at once, more than {memory_text(MAX_INPUT)}"


def outputs_too_many(shape: Sequence[int]) -> str:
    """Return why a shape [batch, scores] has too many scores, as a clause for a message; "" if it is fine."""
    many = len(shape) == 2 and shape[1] > MAX_OUTPUTS
    return f"has {shape[1]:,} outputs, more than {MAX_OUTPUTS:,}" if many else ""


def _size_of(about: str, location: str, path: Path) -> int:
    """Return the size in bytes of a file with external weights. Raises ProblemsError if it is missing or outside the model's folder.

    location   path relative to the model's folder, as stored in the model
    path       the model's file
    """
    inside = PurePosixPath(location.replace("\\", "/"))
    folder = os.path.realpath(path.parent)
    real = os.path.realpath(path.parent / location) if "\0" not in location else ""
    if inside.is_absolute() or ".." in inside.parts or ":" in location or not real.startswith(folder + os.sep):
        raise _error(about, path, f"reads a file outside its folder ({location[:200]!r})", "do not use it")
    try:
        return check_regular(real).st_size
    except MissingFile:
        raise _error(about, path, f"needs the file {location[:200]}", "download that file too") from None


class _Protobuf:
    """Reads the protobuf messages of an ONNX file; positions are byte offsets. Raises ValueError for damaged or too deeply nested data."""

    def __init__(self, data: mmap.mmap):
        self.data, self.count, self.nodes = data, 0, 0

    def external_locations(self, start: int, end: int, message: str, depth: int) -> Iterator[str]:
        """Yield the locations of external weight files in the message between bytes `start` and `end`; counts the nodes it passes.

        message   a key of MESSAGE_FIELDS
        depth     levels of nesting above the message
        Raises ValueError if it is nested too deeply or damaged.
        """
        if depth > MAX_DEPTH:
            raise ValueError("it is nested too deeply")
        fields = MESSAGE_FIELDS[message]
        for field, begin, stop in self.messages(start, end):
            inside = fields.get(field)
            if inside == "entry":
                name, value = self.entry(begin, stop)
                if name == b"location":
                    yield value
            elif inside:
                self.nodes += inside == "node"
                yield from self.external_locations(begin, stop, inside, depth + 1)

    def shapes(self, size: int) -> Iterator[tuple[bool, bytes, list[int]]]:
        """Yield (is an input, name, shape) of each input and output of the graph; 0 is an open dimension. `size`: bytes of the file."""
        inputs = {self.name(*span): self.shape(*span) for span in self.spans(0, size, (7, 11))}
        for start, end in self.spans(0, size, (7, 5, 8)):  # old files list their weights as inputs too
            inputs.pop(self.data[start : min(end, start + MAX_TEXT)], None)
        yield from ((True, name, shape) for name, shape in inputs.items())
        yield from ((False, self.name(*span), self.shape(*span)) for span in self.spans(0, size, (7, 12)))

    def entry(self, start: int, end: int, most: int = MAX_TEXT) -> tuple[bytes, str]:
        """Return (key, value) of a key-value message, each cut to `most` bytes."""
        texts = {field: self.data[a : min(b, a + most)] for field, a, b in self.messages(start, end)}
        return texts.get(1, b""), texts.get(2, b"").decode("utf-8", "replace")

    def name(self, start: int, end: int) -> bytes:
        """Return the name of an input or output (ValueInfoProto)."""
        return b"".join(self.data[first : min(stop, first + MAX_TEXT)] for first, stop in self.spans(start, end, (1,)))

    def shape(self, start: int, end: int) -> list[int]:
        """Return the shape of an input or output (ValueInfoProto); 0 for an open or negative dimension."""
        sides = [self.numbers(*span).get(1, 0) for span in self.spans(start, end, (2, 1, 2, 1))]
        return [side if side < 1 << 63 else 0 for side in sides]

    def spans(self, start: int, end: int, fields: Sequence[int]) -> Iterator[tuple[int, int]]:
        """Yield (start, end) of every message that is reached by following the field numbers `fields`, outermost first."""
        if not fields:
            yield start, end
            return
        for field, begin, stop in self.messages(start, end):
            if field == fields[0]:
                yield from self.spans(begin, stop, fields[1:])

    def messages(self, start: int, end: int) -> Iterator[tuple[int, int, int]]:
        """Yield (field number, start, end) of the length-delimited fields: messages, texts and bytes."""
        return ((field, begin, stop) for field, kind, begin, stop in self.parts(start, end) if kind == 2)

    def numbers(self, start: int, end: int) -> dict[int, int]:
        """Return {field number: value} of the varint fields."""
        return {field: value for field, kind, value, _ in self.parts(start, end) if kind == 0}

    def parts(self, start: int, end: int) -> Iterator[tuple[int, int, int, int]]:
        """Yield (field number, wire type, start, end) of each field in a message; for a varint (wire type 0), `start` is its value. Raises
        ValueError for a damaged message."""
        at = start
        while at < end:
            self.count += 1
            if self.count > MAX_FIELDS:
                raise ValueError("it has too many parts")
            tag, at = self.number(at, end)
            field, kind = tag >> 3, tag & 7
            if tag < 8 or kind not in (0, 1, 2, 5):
                raise ValueError("it is not an ONNX file")
            if kind == 0:
                value, at = self.number(at, end)
                yield field, kind, value, at
                continue
            length, at = self.number(at, end) if kind == 2 else (8 if kind == 1 else 4, at)
            if length > end - at:
                raise ValueError(f"it ends {length - (end - at):,} bytes too early")
            yield field, kind, at, at + length
            at += length
        if not end:
            raise ValueError("it ends in the middle of a value")

    def number(self, at: int, end: int) -> tuple[int, int]:
        """Read the varint at byte `at`; return (value, position after it). Raises ValueError if it does not end before `end`."""
        value = shift = 0
        while at < end and shift < 70:
            byte = self.data[at]
            value |= (byte & 127) << shift
            at, shift = at + 1, shift + 7
            if byte < 128:
                return value, at
        raise ValueError("it ends in the middle of a number")


def _error(about: str, path: Path, why: str, fix: str = AGAIN) -> ProblemsError:
    """Return the error that the model `why`, a clause such as "is empty"."""
    return ProblemsError.one(f"The model {path.name} {why}", str(path), fix, f"{about}.bad-model")
