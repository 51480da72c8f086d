"""A tensor's shape and dtype from its file's header, for checks without torch."""

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
    """A tensor's shape and dtype, with the interface of a tensor. dtype: safetensors' name; number: the value of a
    tensor with one element"""

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
        """The outline in another shape. first: -1 for the remaining elements"""
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
    """An outline whose values are read on demand. fetch: reads them, in their stored shape"""

    fetch: Callable[[], torch.Tensor] = field(kw_only=True)

    def read(self) -> torch.Tensor:
        return self.fetch().reshape(self.shape)

    def __mul__(self, factor: float) -> StoredTensor:
        number = None if self.number is None else self.number * factor
        return replace(self, number=number, fetch=lambda: self.read() * factor)


def number_of(raw: bytes, dtype: str) -> float:
    """The first number of these bytes."""
    if dtype == "F8_E4M3":
        return _e4m3(raw[0])
    if dtype in WIDER:  # the upper half of the wider dtype
        raw, dtype = bytes(ITEM_BYTES[dtype]) + raw[: ITEM_BYTES[dtype]], WIDER[dtype]
    return float(struct.unpack_from(f"<{FORMATS[dtype]}", raw)[0])


def _e4m3(byte: int) -> float:
    """The value of a float8_e4m3fn: a sign, 4 bits of exponent with bias 7 and 3 of fraction; all ones are NaN, and
    there is no infinity."""
    exponent, fraction = byte >> 3 & 15, byte & 7
    size = math.ldexp(8 + fraction, exponent - 10) if exponent else math.ldexp(fraction, -9)
    return math.nan if byte & 127 == 127 else -size if byte & 128 else size
