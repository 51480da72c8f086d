"""Singular value decompositions of layers' changes: of low-rank products by their factors, many of one shape at once."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from math import prod

import torch
from torch import Tensor

BATCH_NUMBERS = 2**26  # of the factors that are decomposed at once: 512 MB in float64
AT_ONCE = 2**25  # numbers of whole changes that are in memory together: 128 MB
QUANTILE_NUMBERS = 2**24  # that torch.quantile takes
CLAMP = 0.99  # the quantile of sd-scripts


@dataclass(frozen=True)
class Product:
    """up [out, r] times down [r, in]: a change that is never built."""

    up: Tensor
    down: Tensor


@dataclass(frozen=True)
class Parts:
    """u [out, k], s [k] descending, v [k, in], float32 on the CPU: the change is u @ diag(s) @ v."""

    u: Tensor
    s: Tensor
    v: Tensor

    def cut(self, rank: int, quantile: float | None = None) -> tuple[Tensor, Tensor]:
        """(up [out, rank], down [rank, in]): the nearest product of this rank (Eckart and Young 1936), the values in up. quantile:
        see `clamped`"""
        up, down = self.u[:, :rank] * self.s[:rank], self.v[:rank].clone()
        return clamped(up, down, quantile) if quantile else (up, down)

    def kept(self, rank: int) -> float:
        """The share of the Frobenius norm that this rank keeps; 1 of a change that is zero."""
        squares = self.s.double().square()
        return float((squares[:rank].sum() / squares.sum()).sqrt()) if squares.sum() > 0 else 1.0


def decompose(
    changes: Mapping[str, Product | Tensor], device: str = "cpu", compatibility: str = "none"
) -> Iterator[tuple[str, Parts]]:
    """(name, its parts), those of one shape together. A product's are found by the QR factors of its two matrices and the SVD of
    the small matrix between them; a matrix [out, in] and a product whose rank is not smaller are decomposed whole.

    Each left vector's largest number is positive, so that results do not depend on the library's choice of signs.

    compatibility   "sd-scripts": each as sd-scripts computes it
    """
    if compatibility == "sd-scripts":
        yield from ((name, as_sd_scripts(change)) for name, change in changes.items())
        return
    groups: dict[tuple[int, ...], list[str]] = defaultdict(list)
    for name, change in changes.items():
        groups[shape_of(change)].append(name)
    for shape, names in groups.items():
        size = max(1, BATCH_NUMBERS // sum(shape) // max(1, shape[1]))
        for first in range(0, len(names), size):
            part = names[first : first + size]
            yield from zip(part, _batch([changes[name] for name in part], device), strict=True)


def in_groups(shapes: Mapping[str, tuple[int, ...]]) -> Iterator[list[str]]:
    """Names of layers by the shape of their weights, as many of one shape as fit in memory."""
    by_shape: dict[tuple[int, ...], list[str]] = defaultdict(list)
    for name, shape in shapes.items():
        by_shape[shape].append(name)
    for shape, names in by_shape.items():
        size = max(1, AT_ONCE // prod(shape))
        yield from (names[first : first + size] for first in range(0, len(names), size))


def shape_of(change: Product | Tensor) -> tuple[int, ...]:
    """(out, r, in) of a product that is decomposed by its factors, (out, in) of what is decomposed whole."""
    if isinstance(change, Tensor):
        return tuple(change.shape)
    (out, rank), into = change.up.shape, change.down.shape[1]
    return (out, rank, into) if rank < min(out, into) else (out, into)


def _batch(changes: list[Product | Tensor], device: str) -> Iterable[Parts]:
    wide = torch.float64 if torch.device(device).type == "cpu" else torch.float32
    if len(shape_of(changes[0])) == 2:
        u, s, v = torch.linalg.svd(
            torch.stack([_whole(each).to(device, wide) for each in changes]), full_matrices=False
        )
    else:
        products = [each for each in changes if isinstance(each, Product)]
        left, upper = torch.linalg.qr(torch.stack([each.up.to(device, wide) for each in products]))
        right, lower = torch.linalg.qr(torch.stack([each.down.to(device, wide).mT for each in products]))
        u, s, v = torch.linalg.svd(upper @ lower.mT)
        u, v = left @ u, v @ right.mT
    signs = u.gather(-2, u.abs().argmax(-2, keepdim=True)).sign()
    u, v = u * signs, v * signs.mT
    return [Parts(*each) for each in zip(*(found.float().cpu().unbind() for found in (u, s, v)), strict=True)]


def _whole(change: Product | Tensor) -> Tensor:
    return change if isinstance(change, Tensor) else change.up.float() @ change.down.float()


def as_sd_scripts(change: Product | Tensor) -> Parts:
    """The decomposition that sd-scripts computes: of the whole product in fp32, with the library's signs."""
    u, s, v = torch.linalg.svd(_whole(change).float(), full_matrices=False)
    return Parts(u, s, v)


def clamped(up: Tensor, down: Tensor, quantile: float) -> tuple[Tensor, Tensor]:
    """Both within +- the quantile of their numbers, as sd-scripts bounds outliers: of the signed numbers, not of their sizes."""
    numbers = torch.cat([up.flatten(), down.flatten()])
    if numbers.numel() > QUANTILE_NUMBERS:
        numbers = numbers[:: -(-numbers.numel() // QUANTILE_NUMBERS)]
    limit = float(torch.quantile(numbers, quantile))
    return up.clamp(-limit, limit), down.clamp(-limit, limit)
