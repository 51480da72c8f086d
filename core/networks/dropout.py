"""Dropout in a network: of activations between down and up, of ranks, of whole layers.

Each mask depends only on its address (seed, step, micro-batch, layer, image): an image has the same masks in any batch and process, on
a CPU or a GPU, and when gradient checkpointing recomputes a layer. Random generators would have to be created for each layer and
image, on the CPU; the masks are hashes of counters instead, computed for a whole batch on its device.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from core.record.draws import address, uniform
from core.record.queued import queued

if TYPE_CHECKING:
    from core.settings.network import NetworkSettings

BITS = 32


@dataclass(frozen=True)
class CurrentBatch:
    """The batch whose masks are drawn. `keys`: int32 [B, 2] on the device, each image's 64-bit address in two halves."""

    step: int
    micro_batch: int
    keys: Tensor


class Dropout:
    """Element, rank and module dropout of a network, for all its layers. Nothing is dropped outside of training (`show`, `hide`)."""

    def __init__(self, settings: NetworkSettings, seed: int):
        self.elements, self.modules = settings.network_dropout, settings.module_dropout
        self.ranks, self.scales_ranks = settings.rank_dropout, settings.rank_dropout_scale
        self._seed = seed
        self._batch: CurrentBatch | None = None

    def show(self, step: int, micro_batch: int, images: Sequence[object], device: torch.device | str) -> None:
        """Set the current batch, for which values are dropped until `hide`.
        images: any values that identify the images, in the batch's order"""
        addresses = [address(self._seed, "dropout", step, micro_batch, image) for image in images]
        halves = torch.tensor([_halves(number) for number in addresses], dtype=torch.int32)
        self._batch = CurrentBatch(step, micro_batch, queued(halves, device))

    def hide(self) -> None:
        """Drop nothing until the next `show`."""
        self._batch = None

    def drops_layer(self, name: str) -> bool:
        """Return whether module dropout drops the whole layer `name` in the current micro-batch."""
        batch = self._batch
        if batch is None or not self.modules:
            return False
        return uniform(self._seed, "module_dropout", batch.step, batch.micro_batch, name) < self.modules

    @property
    def drops_values(self) -> bool:
        """Whether activations or ranks are dropped in the current batch."""
        return self._batch is not None and (self.elements > 0 or self.ranks > 0)

    def drop_values(self, hidden: Tensor, name: str, channels: int) -> tuple[Tensor, float]:
        """Return `hidden` with dropped values set to 0, and the factor that compensates for them.

        hidden    output of down: [rows, ..., rank] or [rows, rank, H, W]; each image has the same number of rows (text windows)
        name      of the layer
        channels  the dimension of the rank: -1 or 1
        """
        assert self._batch is not None
        keys, factor = self._batch.keys, 1.0
        assert hidden.shape[0] % len(keys) == 0, (hidden.shape, len(keys))
        if self.elements:
            shape = list(hidden.shape)
            hidden = hidden * self._mask(keys, "network_dropout", name, self.elements, shape).to(hidden.dtype)
            factor /= 1 - self.elements
        if self.ranks:
            shape = [1] * hidden.dim()
            shape[0], shape[channels] = hidden.shape[0], hidden.shape[channels]
            hidden = hidden * self._mask(keys, "rank_dropout", name, self.ranks, shape).to(hidden.dtype)
            factor /= 1 - self.ranks if self.scales_ranks else 1
        return hidden, factor

    def _mask(self, keys: Tensor, purpose: str, name: str, share: float, shape: list[int]) -> Tensor:
        """Return a boolean mask of `shape`, True (keep) with probability 1 - share.

        keys            int32 [B, 2]; the first dimension of `shape` is a multiple of B
        purpose, name   kind of dropout and layer, which address the draw
        """
        count = torch.Size(shape).numel() // len(keys)
        lowest = -(1 << (BITS - 1))
        return (hashes(keys, _layer_key(purpose, name), count) >= lowest + int(share * (1 << BITS))).view(shape)


@cache
def _layer_key(purpose: str, name: str) -> tuple[int, int]:
    """Return a layer's address for one kind of dropout (`purpose`), in two signed 32-bit halves."""
    return _halves(address(0, purpose, name))


def _halves(number: int) -> tuple[int, int]:
    """Split a 64-bit number into its lower and upper half as signed 32-bit integers."""
    low, high = number & 0xFFFFFFFF, number >> BITS
    return low - ((low >> (BITS - 1)) << BITS), high - ((high >> (BITS - 1)) << BITS)


def hashes(keys: Tensor, layer: tuple[int, int], count: int) -> Tensor:
    """Return `count` numbers for each key, int32 [B, count], uniform over -2^31 .. 2^31 - 1.

    keys    int32 [B, 2], the images' addresses
    layer   the layer's address in two halves
    The counter is mixed as in Wellons' 32-bit hash (prospecting for hash functions, 2018; constants of 2022), half of the address before
    and half within. Products wrap, so every device gives the same. (32 bits: on a CPU a fifth of the time of 64.)
    """
    x = torch.arange(count, dtype=torch.int32, device=keys.device) ^ (keys[:, :1] ^ layer[0])
    x ^= (x >> 16) & 0xFFFF
    x *= 0x21F0AAAD
    x ^= keys[:, 1:] ^ layer[1]
    x ^= (x >> 15) & 0x1FFFF
    x *= 0x735A2D97
    x ^= (x >> 15) & 0x1FFFF
    return x
