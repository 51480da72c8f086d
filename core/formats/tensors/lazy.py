"""Tensors that are read from memory or files only when they are written, so that memory never holds a second model."""

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
    """Return the name of a dtype: torch.float16 -> "float16". A name is returned as it is."""
    return str(dtype).removeprefix("torch.")


@dataclass(frozen=True)
class LazyTensor:
    """A tensor that is not read yet, of known dtype and shape. Torch is imported when it is read.

    type   torch's name of the dtype: "float16"
    fetch  (dtype) -> the tensor in that dtype and in `shape`, on the CPU, contiguous
    cut    (dtype, n) -> its values in order in flat tensors of n values or whole rows, each valid until the next one; None: only `fetch`
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
        """Read the tensor in its own dtype."""
        return self.fetch(self.dtype)

    def pieces(self, dtype: torch.dtype | None = None, numbers: int | None = None) -> Iterator[torch.Tensor]:
        """Yield the values in order in flat tensors, each valid until the next one.

        dtype     None: its own
        numbers   values per piece; None: PIECE_BYTES, so that a piece stays in the processor's cache until it is written
        """
        dtype = dtype or self.dtype
        numbers = numbers or PIECE_BYTES // dtype.itemsize
        return sliced(self.fetch(dtype), numbers) if self.cut is None else self.cut(dtype, numbers)

    def cast(self, dtype: torch.dtype | str | None) -> LazyTensor:
        """Return the lazy tensor in another dtype (a dtype or its name). None and integer tensors change nothing."""
        if dtype is None or not self.is_float:
            return self
        return replace(self, type=type_name(dtype))

    def observed(self, on_value: Callable[[torch.Tensor], None]) -> LazyTensor:
        """Return the same lazy tensor, which calls `on_value` with each tensor or piece as it is read."""

        def observed(value: torch.Tensor) -> torch.Tensor:
            on_value(value)
            return value

        cut = self.cut
        return replace(
            self,
            fetch=lambda dtype: observed(self.fetch(dtype)),
            cut=None if cut is None else lambda dtype, numbers: map(observed, cut(dtype, numbers)),
        )

    def in_shape(self, *shape: int) -> LazyTensor:
        """Return the lazy tensor reshaped to the same number of elements."""
        if shape == self.shape:
            return self
        assert prod(shape) == prod(self.shape), f"{self.shape} does not reshape to {shape}"
        return replace(self, shape=shape, fetch=lambda dtype: self.fetch(dtype).reshape(shape))

    def transposed(self) -> LazyTensor:
        """Return the lazy transpose of a matrix."""
        rows, columns = self.shape
        return LazyTensor(self.type, (columns, rows), lambda dtype: self.fetch(dtype).T.contiguous())


def in_pieces(
    dtype: torch.dtype, shape: tuple[int, ...], cut: Callable[[torch.dtype, int], Iterator[torch.Tensor]]
) -> LazyTensor:
    """Return a lazy tensor that is computed piece by piece by `cut` (see LazyTensor)."""
    return LazyTensor(
        type_name(dtype),
        shape,
        lambda target: gathered(cut(target, PIECE_BYTES // target.itemsize), target, shape),
        cut,
    )


def in_memory(tensor: torch.Tensor) -> LazyTensor:
    """Return a lazy tensor of one in memory, on any device; reading copies it to the CPU."""
    return LazyTensor(
        type_name(tensor.dtype), tuple(tensor.shape), lambda dtype: tensor.detach().to("cpu", dtype).contiguous()
    )


def loaded(tensor: torch.Tensor | StoredTensor) -> torch.Tensor:
    """Return the tensor in memory: a StoredTensor is read, any other is returned as it is."""
    return tensor.read() if isinstance(tensor, StoredTensor) else tensor


def as_lazy(tensor: torch.Tensor | StoredTensor) -> LazyTensor:
    """Return a lazy tensor of one in memory or in a file."""
    if not isinstance(tensor, StoredTensor):
        return in_memory(tensor)
    return LazyTensor(TORCH_NAMES[tensor.dtype], tensor.shape, lambda dtype: tensor.read().to(dtype).contiguous())


def stacked(parts: Sequence[LazyTensor]) -> LazyTensor:
    """Return the lazy concatenation of `parts` along the first axis."""
    shape = (sum(part.shape[0] for part in parts), *parts[0].shape[1:])

    def fetch(dtype: torch.dtype) -> torch.Tensor:
        return torch.cat([part.fetch(dtype) for part in parts])

    return LazyTensor(parts[0].type, shape, fetch)


class OpenFiles:
    """Model files that stay open for lazy tensors, usable from any thread. Close it before one of the files is replaced."""

    def __init__(self) -> None:
        self._open: dict[Path, TensorFile] = {}
        self._opens = Lock()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close all files. A lazy tensor that is read later opens its file again."""
        while self._open:
            self._open.popitem()[1].__exit__()

    def lazy(self, location: TensorLocation) -> LazyTensor:
        """Return the lazy tensor stored at a location."""
        return LazyTensor(
            TORCH_NAMES[location.entry.dtype],
            location.entry.shape,
            lambda dtype: self._file(location.file).read_entry(location.entry, dtype),
            lambda dtype, numbers: self._file(location.file).pieces(location.entry, dtype, numbers),
        )

    def _file(self, path: Path) -> TensorFile:
        """Return the open file, opening it at the first use."""
        with self._opens:
            if path not in self._open:
                self._open[path] = TensorFile(path, once=True)
            return self._open[path]
