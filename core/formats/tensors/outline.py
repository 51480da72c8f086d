"""Shapes and dtypes of tensors without their values, for checks that do not need torch."""

from __future__ import annotations

import math
import struct
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from math import prod

from core.formats.tensors.entry import FLOATS, ITEM_BYTES
from core.record.lazy_torch import torch

FORMATS = {"F64": "d", "F32": "f", "F16": "e", "I64": "q", "I32": "i", "I16": "h", "I8": "b", "BOOL": "?"}
FORMATS |= {"U64": "Q", "U32": "I", "U16": "H", "U8": "B"}
WIDER = {"BF16": "F32", "F8_E5M2": "F16"}


@dataclass(frozen=True)
class Outline:
    """A tensor's shape and dtype without its values, with part of the interface of torch.Tensor.

    dtype    safetensors' name: "F32"
    number   the value of a tensor with one element; None for others
    """

    shape: tuple[int, ...]
    dtype: str = "F32"
    number: float | None = None

    @property
    def ndim(self) -> int:
        return len(self.shape)

    def numel(self) -> int:
        return prod(self.shape)

    def is_floating_point(self) -> bool:
        return self.dtype in FLOATS

    def reshape(self, first: int, *sides: int) -> Outline:
        """Return the outline in another shape. `first` may be -1, which stands for the remaining elements."""
        return replace(self, shape=(self.numel() // prod(sides) if first == -1 else first, *sides))

    def __mul__(self, factor: float) -> Outline:
        return replace(self, number=None if self.number is None else self.number * factor)

    def __len__(self) -> int:
        return self.shape[0]

    def __float__(self) -> float:
        assert self.number is not None
        return self.number


@dataclass(frozen=True)
class StoredTensor(Outline):
    """An outline whose values can be read. `fetch` reads them in the shape they are stored in, `read` in `shape`."""

    fetch: Callable[[], torch.Tensor] = field(kw_only=True)

    def read(self) -> torch.Tensor:
        """Read the values, in `shape`."""
        return self.fetch().reshape(self.shape)

    def __mul__(self, factor: float) -> StoredTensor:
        number = None if self.number is None else self.number * factor
        return replace(self, number=number, fetch=lambda: self.read() * factor)


def number_of(raw: bytes, dtype: str) -> float:
    """Decode the first number in little-endian bytes. `dtype` is safetensors' name."""
    if dtype == "F8_E4M3":
        return _e4m3(raw[0])
    if dtype in WIDER:  # the upper half of the wider dtype
        raw, dtype = bytes(ITEM_BYTES[dtype]) + raw[: ITEM_BYTES[dtype]], WIDER[dtype]
    return float(struct.unpack_from(f"<{FORMATS[dtype]}", raw)[0])


def _e4m3(byte: int) -> float:
    """Decode a float8_e4m3fn: 1 sign bit, 4 exponent bits (bias 7), 3 fraction bits; no infinity, all ones are NaN."""
    exponent, fraction = byte >> 3 & 15, byte & 7
    size = math.ldexp(8 + fraction, exponent - 10) if exponent else math.ldexp(fraction, -9)
    return math.nan if byte & 127 == 127 else -size if byte & 128 else size
