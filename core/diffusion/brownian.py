"""A Brownian path determined by a seed, whatever points are queried: torchsde's BrownianTree, with the same values.

k-diffusion's SDE samplers take their noise from one, so that it depends on the noise levels and not on their number.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch
    from torch import Tensor

DIGITS = 6  # to which points are rounded
POOL = 24  # words of entropy


class BrownianPath:
    """A Brownian path from `low` to `high`, refined by Brownian bridges between midpoints.

    seed    any integer of 64 bits      shape   of a point; random numbers are drawn on `device`
    """

    def __init__(self, seed: int, shape: Sequence[int], low: float, high: float, device: torch.device | str = "cpu"):
        self._seed, self._shape, self._device = seed, tuple(shape), device
        self._ends = round(low, DIGITS), round(high, DIGITS)
        self._total = self._draw() * math.sqrt(high - low)
        self.at = lru_cache(maxsize=4)(self._at)

    def _draw(self, *node: int) -> Tensor:
        import torch
        from numpy.random import SeedSequence

        seed = int(SeedSequence(self._seed, spawn_key=node, pool_size=POOL).generate_state(1)[0])
        generator = torch.Generator(self._device).manual_seed(seed)
        return torch.randn(self._shape, generator=generator, device=self._device)

    def _at(self, point: float) -> Tensor:
        """The path at a point between its ends; it begins at 0."""
        import torch

        start, end = self._ends
        point, before, total = min(max(round(point, DIGITS), start), end), torch.zeros_like(self._total), self._total
        number = depth = 0
        while start < point < end:
            middle = round(0.5 * (end + start), DIGITS)
            left, right, size = middle - start, end - middle, end - start
            half = total * (left / size) + math.sqrt(left * right / size) * self._draw(number, depth)
            if point < middle:
                number, end, total = 2 * number, middle, half
            else:
                number, start, before, total = 2 * number + 1, middle, before + half, total - half
            depth += 1
        return before + total if point >= end else before

    def noise(self, now: float, after: float) -> Tensor:
        """The noise of the step from one point down to another, with deviation 1."""
        return (self.at(after) - self.at(now)) / math.sqrt(now - after)
