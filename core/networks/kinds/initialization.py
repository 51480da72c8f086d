"""Initializations of a LoRA's matrices, as in PEFT: normal, orthogonal, or principal components of the base weight (PiSSA)."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from core.formats.lora.names import ALPHA, DOWN, UP
from core.networks.adapter import Adapter
from core.networks.fp8 import base_weight
from core.networks.kinds.lora import LoraAdapter, add_dropped_product, add_low_rank_conv, add_low_rank_linear
from core.record.draws import generator

ITERATIONS = 16  # PEFT's pissa_niter_16
SPARE = 8  # directions more than the rank: Halko et al. 2011, arXiv:0909.4061, section 4.2


def initialized(adapter: Adapter, initialization: str, seed: int) -> Adapter:
    """Initialize a new LoRA adapter in place and return it; PiSSA returns the adapter that replaces it.

    initialization   "kaiming" (unchanged: `fresh` has drawn it), "gaussian", "orthogonal" or "pissa"
    seed             addresses the draw, with the layer's name
    """
    assert isinstance(adapter, LoraAdapter)
    if initialization == "kaiming":
        return adapter
    if initialization == "pissa":
        return PissaAdapter.of(adapter, seed)
    if not adapter.down.is_meta:
        initialize = {"gaussian": _gaussian, "orthogonal": _orthogonal}[initialization]
        down, up = initialize(adapter, generator(seed, f"network_init_{initialization}", adapter.name))
        adapter.put(down.reshape(adapter.down.shape), up.reshape(adapter.up.shape))
    return adapter


def _gaussian(adapter: LoraAdapter, rng: torch.Generator) -> tuple[Tensor, Tensor]:
    """Return (down, up) with down normal with standard deviation 1 / rank, and up zero."""
    down = torch.empty(adapter.down.shape).normal_(0.0, 1 / adapter.rank, generator=rng)
    return down, torch.zeros(adapter.up.shape)


def _orthogonal(adapter: LoraAdapter, rng: torch.Generator) -> tuple[Tensor, Tensor]:
    """Return (down [rank, in], up [out, rank]), both nonzero, whose product is 0 (PEFT's "orthogonal").

    down = (X Q1)^T / 10 and up = Y Q2 / 10, with X [in, .] and Y [out, .] standard normal, Q1 and Q2 the rows 0, 2 ... and 1, 3 ... of an
    orthogonal [rank, rank] matrix. With an odd rank Q1 has one row more.
    """
    rank, out, width = adapter.rank, adapter.up.shape[0], adapter.down[0].numel()
    square, _ = torch.linalg.qr(torch.randn(rank, rank, generator=rng, dtype=torch.float64))
    odd, even = square[0::2], square[1::2]
    x = torch.randn(width, len(odd), generator=rng, dtype=torch.float64)
    y = torch.randn(out, len(even), generator=rng, dtype=torch.float64)
    return (x @ odd).t() / 10, y @ even / 10


class PissaAdapter(LoraAdapter):
    """PiSSA (Meng et al. 2024, arXiv:2404.02948): down and up start as the `rank` largest singular triplets of the base weight.

        up = U sqrt(S / scale),   down = sqrt(S / scale) V^T,   change = scale * (up @ down - first_up @ first_down)

    first_down, first_up: float32 copies of the start, which are subtracted, so the base weight stays unchanged: training is the same as
    with the paper's residual weight. The file is a LoRA for the unchanged model, at twice the rank.
    """

    def __init__(self, name: str, module: nn.Module, down: Tensor, up: Tensor, alpha: float):
        super().__init__(name, module, down.clone(), up.clone(), alpha)
        self.first_down, self.first_up = down, up

    @classmethod
    def of(cls, adapter: LoraAdapter, seed: int) -> PissaAdapter:
        """Create the PiSSA adapter that replaces a new LoRA, with its rank and alpha."""
        down, up = adapter.down.detach(), adapter.up.detach()
        if not down.is_meta:
            u, values, right = largest_singular_triplets(
                base_weight(adapter.module).flatten(1), adapter.rank, seed, adapter.name
            )
            roots = (values / adapter.scale).sqrt()
            up = up.new_zeros(up.shape).flatten(1).copy_(u * roots).view(up.shape)
            down = down.new_zeros(down.shape).flatten(1).copy_(roots[:, None] * right).view(down.shape)
        return cls(adapter.name, adapter.module, down, up, adapter.alpha)

    def to(self, dtype: torch.dtype) -> None:
        """Cast the parameters, and round the subtracted matrices alike, so that a new adapter still has no effect."""
        super().to(dtype)
        self.first_down, self.first_up = self.first_down.to(dtype).float(), self.first_up.to(dtype).float()

    def _weights(self, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Return down and up of rank 2r, whose product is the trained one minus the subtracted one."""
        down, up = super()._weights(dtype)
        first_down, first_up = self.first_down.to(down.dtype), self.first_up.to(up.dtype)
        return torch.cat([down, first_down]), torch.cat([up, -first_up], dim=1)

    def _add_with_dropout(self, y: Tensor, x: Tensor) -> Tensor:
        """Add the change to y with dropout of the trained product only; the subtracted one stays whole."""
        if isinstance(self.module, nn.Conv2d):
            y = add_low_rank_conv(y, x, self.first_down, self.first_up, -self.strength, self.module)
        else:
            y = add_low_rank_linear(y, x, self.first_down, self.first_up, -self.strength)
        return add_dropped_product(self, y, x, self.down, self.up, self.name)

    def factors(self) -> None:
        """Return None: the change is a difference of two products."""
        return None

    def delta(self) -> Tensor:
        product = self.up.detach().flatten(1).float() @ self.down.detach().flatten(1).float()
        first = self.first_up.flatten(1) @ self.first_down.flatten(1)
        return ((product - first) * self.scale).view(self.up.shape[0], *self.down.shape[1:])

    # LoRA's are of one product, without building the change
    merged, norm = Adapter.merged, Adapter.norm

    def shorten(self, ratio: Tensor) -> None:
        """Scale both products, since their difference is the change; the subtracted one is rounded to the parameters' dtype."""
        super().shorten(ratio)
        root = ratio.sqrt().to(self.down.dtype).float()
        for first in (self.first_down, self.first_up):
            first.copy_((first * root).to(self.down.dtype))

    def tensors(self) -> dict[str, Tensor]:
        return super().tensors() | {f"first.{DOWN}": self.first_down, f"first.{UP}": self.first_up}

    def saved(self) -> dict[str, Tensor]:
        """Return the change as one LoRA of twice the rank (at most the layer's smaller width), balanced by an SVD.

        In 16 bits, two products in one matrix would lose their small difference.
        """
        down, up = (matrix.detach().cpu().double() for matrix in self._weights(torch.float32))
        left, upper = torch.linalg.qr(up.flatten(1))
        right, lower = torch.linalg.qr(down.flatten(1).t())
        inner_left, values, inner_right = torch.linalg.svd(upper @ lower.t(), full_matrices=False)
        roots, rank = values.sqrt(), len(values)
        ones = (1,) * (up.dim() - 2)
        return {
            DOWN: (roots[:, None] * (inner_right @ right.t())).float().view(rank, *down.shape[1:]),
            UP: (left @ inner_left * roots).float().view(up.shape[0], rank, *ones),
            ALPHA: torch.tensor(self.scale * rank, dtype=torch.float32),
        }

    def misfit(self, tensors: Mapping[str, Tensor]) -> str:
        """Return why a training state cannot be loaded; "" if it can. A LoRA file cannot: it lacks the subtracted matrices."""
        complete = f"first.{DOWN}" in tensors and f"first.{UP}" in tensors
        return super().misfit(tensors) if complete else "has no initial weights (PiSSA)"

    def take(self, tensors: Mapping[str, Tensor]) -> None:
        super().take(tensors)
        self.first_down.copy_(tensors[f"first.{DOWN}"])
        self.first_up.copy_(tensors[f"first.{UP}"])


def largest_singular_triplets(weight: Tensor, rank: int, seed: int, name: str) -> tuple[Tensor, Tensor, Tensor]:
    """Return U [out, rank], S [rank] and V^T [rank, in] of the largest singular values of `weight` [out, in]; zeros beyond its size.

    Subspace iteration from draws addressed by seed and name (Halko et al. 2011, algorithm 4.4), as in PEFT's fast PiSSA.
    """
    out, width = weight.shape
    size = min(rank + SPARE, out, width)
    start = torch.randn(width, size, generator=generator(seed, "network_init_pissa", name)).to(weight.device)
    basis, _ = torch.linalg.qr(weight @ start)
    for _ in range(ITERATIONS if size < min(out, width) else 0):
        basis, _ = torch.linalg.qr(weight.t() @ basis)
        basis, _ = torch.linalg.qr(weight @ basis)
    inner_u, values, right = torch.linalg.svd(basis.t() @ weight, full_matrices=False)
    count = min(rank, size)
    u, s, v = weight.new_zeros(out, rank), weight.new_zeros(rank), weight.new_zeros(rank, width)
    u[:, :count], s[:count], v[:count] = (basis @ inner_u)[:, :count], values[:count], right[:count]
    return u, s, v
