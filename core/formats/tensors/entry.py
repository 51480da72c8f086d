"""One tensor of a model file, from its header."""

from __future__ import annotations

from dataclasses import dataclass

AGAIN = "download or copy the file again"
# Bytes per element, by safetensors' dtype names.
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


@dataclass(frozen=True)
class TensorEntry:
    """One tensor of a file, from byte `start` to `stop`; `strides` (in elements) only if not row-major."""

    dtype: str
    shape: tuple[int, ...]
    start: int
    stop: int
    strides: tuple[int, ...] | None = None

    def side(self, axis: int) -> int:
        """The length of an axis; 0 if there is none."""
        return self.shape[axis] if -len(self.shape) <= axis < len(self.shape) else 0
