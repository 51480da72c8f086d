"""Singular value decomposition of layers' changes: of products by their factors, of matrices completely or for the largest values."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from core.formats.models.overflow import largest
from core.record.draws import normal
from core.record.lazy_torch import Tensor, torch

QUANTILE_NUMBERS = 2**24  # that torch.quantile takes
CLAMP = 0.99  # the quantile of sd-scripts

BLOCK = 16  # vectors that the subspace grows by
SHARE = 0.5  # of the smaller side: with a larger subspace the whole decomposition is as quick
GROWTH = 1.3  # of the subspace between two checks
TOLERANCE = 1e-2  # of s^2, see `leading`
ROUNDING = 2e-6  # of the largest s^2: float32 products
ORTHOGONAL = 1e-3
MOST_TIMES, NEGLIGIBLE = 6, 3e-6  # of orthogonalizing a block against those before it, and the remainder allowed


@dataclass(frozen=True)
class Product:
    """The product up [out, r] @ down [r, in], kept as factors."""

    up: Tensor
    down: Tensor

    @property
    def is_low_rank(self) -> bool:
        """Whether the rank is below both sides of the product."""
        return len(self.down) < min(len(self.up), self.down.shape[1])


@dataclass(frozen=True)
class Parts:
    """A (truncated) SVD: u [out, k], s [k] descending, v [k, in], float32 on the CPU.
    squares: sum of squares of all singular values if `s` has only the largest; None if it has all"""

    u: Tensor
    s: Tensor
    v: Tensor
    squares: float | None = None

    @property
    def norm(self) -> float:
        """The Frobenius norm of the whole change."""
        return float(self.s.double().norm()) if self.squares is None else math.sqrt(self.squares)

    def cut(self, rank: int, quantile: float | None = None) -> tuple[Tensor, Tensor]:
        """Return (up [out, rank], down [rank, in]): the best approximation of this rank (Eckart and Young 1936).

        The singular values are in up. `quantile`: see `clamped`; None does not clamp
        """
        up, down = self.u[:, :rank] * self.s[:rank], self.v[:rank].clone()
        return clamped(up, down, quantile) if quantile else (up, down)

    def retained(self, rank: int) -> float:
        """Return the share of the Frobenius norm that this rank retains, 0 to 1; 1 for a zero change."""
        squares = self.s.double().square()
        whole = float(squares.sum()) if self.squares is None else self.squares
        return min(1.0, math.sqrt(float(squares[:rank].sum()) / whole)) if whole > 0 else 1.0


def retained_of_all(layers: Iterable[tuple[float, float]]) -> float:
    """Return the share of the norm of all layers that remains, from (share, norm) of each; 1 if all are zero."""
    pairs = list(layers)
    whole = sum(norm**2 for _, norm in pairs)
    return (sum((share * norm) ** 2 for share, norm in pairs) / whole) ** 0.5 if whole else 1.0


def retained_by(change: Product | Tensor, up: Tensor, down: Tensor) -> float:
    """Return the share of the norm that up @ down retains: (1 - squared relative error) ** 0.5; 0 for an error above the change."""
    matrix = _matrix(change).double().cpu()
    whole, error = (float(each.square().sum()) for each in (matrix, matrix - up.double().cpu() @ down.double().cpu()))
    return math.sqrt(max(0.0, 1 - error / whole)) if whole > 0 else 1.0


def decompose(
    change: Product | Tensor, device: str = "cpu", compatibility: str = "none", rank: int | None = None
) -> Parts:
    """Return the SVD of a change [out, in].

    A low-rank product is decomposed by the QR factors of its matrices; a matrix is decomposed completely, or truncated (`leading`)
    if `rank` is given. Each left vector's largest element is positive, so that results do not depend on the library's choice of
    signs.

    rank            number of largest values needed; None: all
    compatibility   "sd-scripts": computed from the multiplied product in fp32, with the library's signs
    """
    if compatibility == "sd-scripts":
        return Parts(*torch.linalg.svd(_matrix(change).float(), full_matrices=False))
    if isinstance(change, Product) and change.is_low_rank:
        return _with_signs(*_by_factors(change, device))
    matrix = _matrix(change).to(device)
    if rank is not None and (truncated := leading(matrix.float(), rank)) is not None:
        return truncated
    return _with_signs(*torch.linalg.svd(matrix.to(_svd_dtype(device)), full_matrices=False))


def _svd_dtype(device: str) -> torch.dtype:
    """Return the dtype to decompose in: float64 on a CPU, else float32."""
    return torch.float64 if torch.device(device).type == "cpu" else torch.float32


def _by_factors(product: Product, device: str) -> tuple[Tensor, Tensor, Tensor]:
    """Return (u, s, v) of a product by the QR factors of its matrices."""
    left, upper = torch.linalg.qr(product.up.to(device, _svd_dtype(device)))
    right, lower = torch.linalg.qr(product.down.to(device, _svd_dtype(device)).mT)
    u, s, v = torch.linalg.svd(upper @ lower.mT)
    return left @ u, s, v @ right.mT


def _with_signs(u: Tensor, s: Tensor, v: Tensor, squares: float | None = None) -> Parts:
    """Return the SVD with each left vector's largest element positive, as float32 on the CPU."""
    signs = u.gather(0, u.abs().argmax(0, keepdim=True)).sign()
    u, s, v = (factor.float().cpu() for factor in (u * signs, s, v * signs.mT))
    return Parts(u, s, v, squares)


def _matrix(change: Product | Tensor) -> Tensor:
    """Return a change as a matrix [out, in]."""
    return change if isinstance(change, torch.Tensor) else change.up.float() @ change.down.float()


def clamped(up: Tensor, down: Tensor, quantile: float) -> tuple[Tensor, Tensor]:
    """Return both matrices clamped to +- a quantile of their elements, as sd-scripts does: of signed, not absolute values."""
    numbers = torch.cat([up.flatten(), down.flatten()])
    if numbers.numel() > QUANTILE_NUMBERS:
        numbers = numbers[:: -(-numbers.numel() // QUANTILE_NUMBERS)]
    limit = float(torch.quantile(numbers, quantile))
    return up.clamp(-limit, limit), down.clamp(-limit, limit)


# -- the largest values alone


def leading(matrix: Tensor, rank: int) -> Parts | None:
    """Return the `rank` largest singular values of a float32 matrix A [out, in] with their vectors; None without convergence.

    Computed in a block Krylov subspace of A A^T (Golub, Luk and Overton 1981; Musco and Musco 2015) with keyed random draws.
    Vectors u with A^T u = s v are accepted if each |A A^T u - s^2 u| is at most TOLERANCE s^2. The sum of the largest s^2 is then
    at most a share of TOLERANCE below the optimum (Ky Fan's inequality), unless all draws missed one of the best vectors; the
    retained norm half of that. In practice the deficit is the square of the residuals.
    """
    tall = len(matrix) > matrix.shape[1]
    if (factors := _leading(matrix.mT if tall else matrix, rank)) is None:
        return None
    u, s, v, squares = factors
    return _with_signs(v.mT, s, u.mT, squares) if tall else _with_signs(u, s, v, squares)


def _leading(matrix: Tensor, rank: int) -> tuple[Tensor, Tensor, Tensor, float] | None:
    """Return (u, s, v, sum of all squares) of a matrix with no more rows than columns; None without convergence."""
    side, width = matrix.shape
    max_size, next_check = int(side * SHARE), rank + 2 * BLOCK
    if next_check > max_size:
        return None
    if not (size := largest(matrix)):
        return torch.eye(side, rank), torch.zeros(rank), torch.eye(rank, width), 0.0
    scale = 2.0 ** (math.frexp(size)[1] - 1)  # exact, and the squares stay within float32
    space = _Subspace(matrix / scale, max_size)
    while space.size + BLOCK <= max_size:
        space.grow()
        if space.size >= next_check:
            if (converged := space.converged(rank)) is not None:
                u, s, v = converged
                return u, s * scale, v, space.squares * scale**2
            next_check = int(space.size * GROWTH)
    return None


class _Subspace:
    """A growing block Krylov subspace: orthonormal rows Q with Q A (`_images`) and Q A A^T Q^T (`_inner`).

    The latter are in float64, since squaring in float32 would lose small values.
    """

    def __init__(self, matrix: Tensor, max_size: int):
        """`matrix`: A [rows, columns], float32; `max_size`: the highest number of basis rows."""
        side, width = matrix.shape
        self.matrix, self.size = matrix, 0
        self.squares = float(torch.linalg.vector_norm(matrix, dim=1).double().square().sum())
        self._basis = matrix.new_empty(max_size, side)
        self._images = matrix.new_empty(max_size, width, dtype=torch.float64)
        self._inner = matrix.new_zeros(max_size, max_size, dtype=torch.float64)  # the lower half
        self._next = normal((BLOCK, width), 0, "decompose").to(matrix.device) @ matrix.mT

    def grow(self) -> None:
        """Add the next BLOCK rows to the basis."""
        new, before = slice(self.size, self.size + BLOCK), self._basis[: self.size]
        self._basis[new] = _orthonormal(self._next, before)
        image = self._basis[new] @ self.matrix
        self._images[new] = image
        self.size += BLOCK
        self._inner[new, : self.size] = self._images[new] @ self._images[: self.size].mT
        self._next = image @ self.matrix.mT

    def converged(self, rank: int) -> tuple[Tensor, Tensor, Tensor] | None:
        """Return (u [out, rank], s [rank], v [rank, in]) if the `rank` largest values have converged, else None."""
        values, vectors = _largest_first(self._inner[: self.size, : self.size], rank)
        left = vectors.float().mT @ self._basis[: self.size]
        right = vectors.mT @ self._images[: self.size]  # s times v
        residuals = torch.linalg.vector_norm(right.float() @ self.matrix.mT - values.float()[:, None] * left, dim=1)
        accurate = (residuals <= TOLERANCE * values + ROUNDING * values[0]).all()
        orthogonal = (left @ left.mT - torch.eye(rank, device=left.device)).abs().max() < ORTHOGONAL
        if not (accurate and orthogonal):
            return None
        u = torch.linalg.qr(left.double().mT).Q  # the basis is orthonormal within the rounding of float32 alone
        right = (u.mT.float() @ self.matrix).double()
        values, vectors = _largest_first(right @ right.mT, rank)
        s = values.sqrt()
        return u @ vectors, s, torch.where(s > 0, 1 / s, 0.0)[:, None] * (vectors.mT @ right)


def _largest_first(squares: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """Return (the `rank` largest eigenvalues, descending; their vectors as columns) of a symmetric matrix, from its lower half."""
    values, vectors = torch.linalg.eigh(squares)  # ascending
    return values[-rank:].flip(0).clamp(min=0), vectors[:, -rank:].flip(1)


def _orthonormal(rows: Tensor, before: Tensor) -> Tensor:
    """Return orthonormal rows that span `rows` orthogonally to the rows `before`.

    Projected repeatedly, since each projection leaves rounding errors, which dominate rows nearly in the span of `before`.
    """
    projections = rows @ before.mT
    for _ in range(MOST_TIMES):
        rows = torch.linalg.qr((rows - projections @ before).mT).Q.mT
        projections = rows @ before.mT
        if not projections.numel() or projections.abs().max() < NEGLIGIBLE:
            break
    return rows
