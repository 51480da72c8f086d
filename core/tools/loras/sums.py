"""Sums of LoRA layers: concatenated, averaged, or as one change to decompose. Pure functions of tensors."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from core.record.draws import generator
from core.record.lazy_torch import Tensor, torch
from core.tools.loras.svd import Product


@dataclass(frozen=True)
class Term:
    """A layer of one LoRA in a sum: strength * (alpha / r) * up [out, r] @ down [r, in], with strength = ratio * block_weight.
    full_change: the scaled change [out, in] of a kind without factors; then `factors` and `alpha` are unused"""

    ratio: float
    block_weight: float
    alpha: float
    factors: Product | None = None
    full_change: Tensor | None = None

    @property
    def strength(self) -> float:
        """The ratio times the block weight."""
        return self.ratio * self.block_weight

    @property
    def rank(self) -> int:
        """The rank r of the factors."""
        assert self.factors is not None
        return len(self.factors.down)

    def scaled(self, to_up: float, to_down: float) -> tuple[Tensor, Tensor]:
        """Return (up * to_up, down * to_down)."""
        assert self.factors is not None
        return self.factors.up * to_up, self.factors.down * to_down


Layer = tuple[Tensor, Tensor, float]  # up, down, alpha


def concatenated(terms: Sequence[Term]) -> Layer:
    """Return the exact sum as (up, down, alpha) with alpha = rank.

    The root of each |strength * alpha / r| multiplies up and down, and its sign multiplies down.
    """
    sizes = [term.strength * term.alpha / term.rank for term in terms]
    roots = [math.sqrt(abs(size)) for size in sizes]
    up, down = _joined(terms, [(root, math.copysign(root, size)) for root, size in zip(roots, sizes, strict=True)])
    return up, down, float(len(down))


def _joined(terms: Sequence[Term], scales: Sequence[tuple[float, float]]) -> tuple[Tensor, Tensor]:
    """Return the concatenated up and down matrices. `scales`: (factor of up, factor of down) of each term."""
    ups, downs = zip(*(term.scaled(*scale) for term, scale in zip(terms, scales, strict=True)), strict=True)
    return torch.cat(ups, 1), torch.cat(downs)


def averaged(terms: Sequence[Term]) -> Layer:
    """Return (sum |w_i| U_i)(sum w_i D_i) / sum |strength_i|, w_i = strength_i * sqrt(alpha_i / alpha_1), as (up, down, alpha).

    Exact for one LoRA and for equal ones; different LoRAs add cross terms of one's up with another's down.
    """
    up, down, alpha = _summed_factors(terms, squared=False)
    weights = sum(abs(term.strength) for term in terms)
    return up, down / weights if weights else down, alpha


def averaged_as_sd_scripts(terms: Sequence[Term]) -> Layer:
    """Return `averaged` without the division, so that the change is quadratic in the ratios; block weights multiply both matrices."""
    return _summed_factors(terms, squared=True)


def _summed_factors(terms: Sequence[Term], squared: bool) -> Layer:
    """Return (sum of scaled ups, sum of scaled downs, first alpha other than 0). `squared`: see `_scales`."""
    alpha = next((term.alpha for term in terms if term.alpha), 0.0)  # one of 0 has no effect, and no measure of others
    ups, downs = zip(*(term.scaled(*_scales(term, alpha, squared)) for term in terms), strict=True)
    return sum(ups, torch.zeros_like(ups[0])), sum(downs, torch.zeros_like(downs[0])), alpha


def _scales(term: Term, alpha: float, squared: bool) -> tuple[float, float]:
    """Return (factor of up, factor of down) of a term relative to `alpha`; the sign goes into down.
    squared: as sd-scripts: the block weight multiplies both, so that a negative one does not change the sign of the product"""
    relative = term.alpha / alpha if alpha else 0.0
    to_up = math.sqrt(abs(relative))
    to_down = math.copysign(to_up, relative)
    if squared:
        return abs(term.ratio) * to_up * term.block_weight, term.ratio * to_down * term.block_weight
    return abs(term.strength) * to_up, term.strength * to_down


def concatenated_as_sd_scripts(terms: Sequence[Term]) -> Layer:
    """Return sd-scripts' concatenation as (up, down, alpha). Its alpha does not grow with the rank: two LoRAs at 1 get half strength."""
    alpha = terms[0].alpha
    return *_joined(terms, [_scales(term, alpha, squared=True) for term in terms]), alpha


def total_change(terms: Sequence[Term]) -> Product | Tensor:
    """Return the sum of the terms' weight changes: as a product if all terms have factors, else as a matrix [out, in]."""
    if all(term.factors is not None for term in terms):
        up, down, _ = concatenated(terms)
        return Product(up, down)
    total: Tensor | None = None
    for term in terms:
        if term.factors is not None:
            change = term.factors.up @ term.factors.down * (term.alpha / term.rank)
        else:
            assert term.full_change is not None
            change = term.full_change
        total = change * term.strength if total is None else total + change * term.strength
    assert total is not None
    return total


def shuffled(up: Tensor, down: Tensor, seed: int, name: str) -> tuple[Tensor, Tensor]:
    """Return up and down with their ranks in random order, drawn by the seed and the layer's name."""
    order = torch.randperm(len(down), generator=generator(seed, "merge_loras", name))
    return up[:, order], down[order]
