"""Lazy tensors, read from memory or files when they are written, so that no second model is in memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Self

from core.formats.tensors.entry import ITEM_BYTES, TORCH_NAMES
from core.formats.tensors.outline import StoredTensor
from core.formats.tensors.reading import PIECE_BYTES, TensorFile, gathered, sliced
from core.record.lazy_torch import torch

if TYPE_CHECKING:
    from core.formats.models.checkpoint import TensorLocation

TYPE_BYTES = {TORCH_NAMES[name]: size for name, size in ITEM_BYTES.items()}


def type_name(dtype: torch.dtype | str) -> str:
    """torch.float16 -> "float16"."""
    return str(dtype).removeprefix("torch.")


@dataclass(frozen=True)
class LazyTensor:
    """A tensor that is not read yet: `fetch(dtype)` returns it on the CPU in that dtype and this shape, contiguous.
    Torch is imported only then.

    type  torch's name of its dtype: "float16"
    cut   (dtype, numbers) -> its values in order, in flat tensors of that many or of whole rows, each valid until the
          next one. None: it is read as a whole
    """

    type: str
    shape: tuple[int, ...]
    fetch: Callable[[torch.dtype], torch.Tensor]
    cut: Callable[[torch.dtype, int], Iterator[torch.Tensor]] | None = None

    @property
    def dtype(self) -> torch.dtype:
        dtype: torch.dtype = getattr(torch, self.type)
        return dtype

    @property
    def is_float(self) -> bool:
        return "float" in self.type

    @property
    def item_bytes(self) -> int:
        return TYPE_BYTES[self.type]

    @property
    def byte_count(self) -> int:
        return prod(self.shape) * self.item_bytes

    def read(self) -> torch.Tensor:
        return self.fetch(self.dtype)

    def pieces(self, dtype: torch.dtype | None = None, numbers: int | None = None) -> Iterator[torch.Tensor]:
        """The pieces of `cut` or of the whole tensor: a large tensor then stays in the processor's cache from one file
        to the other."""
        dtype = dtype or self.dtype
        numbers = numbers or PIECE_BYTES // dtype.itemsize
        return sliced(self.fetch(dtype), numbers) if self.cut is None else self.cut(dtype, numbers)

    def cast(self, dtype: torch.dtype | str | None) -> LazyTensor:
        """The tensor in another dtype, or in that of this name; integers are unchanged, and None changes nothing."""
        if dtype is None or not self.is_float:
            return self
        return replace(self, type=type_name(dtype))

    def watched(self, see: Callable[[torch.Tensor], None]) -> LazyTensor:
        """The same tensor; `see` is called with each part that is read."""

        def observed(value: torch.Tensor) -> torch.Tensor:
            see(value)
            return value

        cut = self.cut
        return replace(
            self,
            fetch=lambda dtype: observed(self.fetch(dtype)),
            cut=None if cut is None else lambda dtype, numbers: map(observed, cut(dtype, numbers)),
        )

    def in_shape(self, *shape: int) -> LazyTensor:
        """The tensor reshaped, with the same number of elements."""
        if shape == self.shape:
            return self
        assert prod(shape) == prod(self.shape), f"{self.shape} does not reshape to {shape}"
        return replace(self, shape=shape, fetch=lambda dtype: self.fetch(dtype).reshape(shape))

    def transposed(self) -> LazyTensor:
        """The transpose of a matrix."""
        rows, columns = self.shape
        return LazyTensor(self.type, (columns, rows), lambda dtype: self.fetch(dtype).T.contiguous())


def in_pieces(
    dtype: torch.dtype, shape: tuple[int, ...], cut: Callable[[torch.dtype, int], Iterator[torch.Tensor]]
) -> LazyTensor:
    """A tensor that is computed piece by piece."""
    return LazyTensor(
        type_name(dtype),
        shape,
        lambda target: gathered(cut(target, PIECE_BYTES // target.itemsize), target, shape),
        cut,
    )


def in_memory(tensor: torch.Tensor) -> LazyTensor:
    """A tensor on any device; it is copied to the CPU when read."""
    return LazyTensor(
        type_name(tensor.dtype), tuple(tensor.shape), lambda dtype: tensor.detach().to("cpu", dtype).contiguous()
    )


def loaded(tensor: torch.Tensor | StoredTensor) -> torch.Tensor:
    """The tensor in memory: a stored one is read, any other returned as is."""
    return tensor.read() if isinstance(tensor, StoredTensor) else tensor


def lazily(tensor: torch.Tensor | StoredTensor) -> LazyTensor:
    """A lazy tensor from one in memory or in a file."""
    if not isinstance(tensor, StoredTensor):
        return in_memory(tensor)
    return LazyTensor(TORCH_NAMES[tensor.dtype], tensor.shape, lambda dtype: tensor.read().to(dtype).contiguous())


def stacked(parts: Sequence[LazyTensor]) -> LazyTensor:
    """The lazy concatenation along the first axis."""
    shape = (sum(part.shape[0] for part in parts), *parts[0].shape[1:])

    def fetch(dtype: torch.dtype) -> torch.Tensor:
        return torch.cat([part.fetch(dtype) for part in parts])

    return LazyTensor(parts[0].type, shape, fetch)


class OpenFiles:
    """Open files for lazy tensors, used by any thread. Close before replacing one of them."""

    def __init__(self) -> None:
        self._open: dict[Path, TensorFile] = {}
        self._opens = Lock()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close all files; one that is read again is reopened."""
        while self._open:
            self._open.popitem()[1].__exit__()

    def lazy(self, location: TensorLocation) -> LazyTensor:
        """The tensor at a location."""
        return LazyTensor(
            TORCH_NAMES[location.entry.dtype],
            location.entry.shape,
            lambda dtype: self._file(location.file).read_entry(location.entry, dtype),
            lambda dtype, numbers: self._file(location.file).pieces(location.entry, dtype, numbers),
        )

    def _file(self, path: Path) -> TensorFile:
        with self._opens:
            if path not in self._open:
                self._open[path] = TensorFile(path, once=True)
            return self._open[path]
