"""BOFT (Liu et al. 2024, arXiv:2311.06243) in LyCORIS' format: several stages of OFT, each turning blocks of channels that lie
further apart, so that every channel reaches every other. The network rank is the largest width of the blocks.

<name>.oft_blocks [stages, blocks, width, width], blocks a power of two     alpha and rescale as of diag-OFT
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from core.networks.kinds.lycoris import register_turned
from core.settings.base import Settings
from core.settings.blocks import BlockSize
from core.settings.readers import REFUSED, Misread
from core.settings.turning import TurnSettings

if TYPE_CHECKING:
    from core.families.targets import Target
    from core.networks.kinds.oft_adapter import OftAdapter


def split_in_powers(width: int, largest: int) -> tuple[int, int] | None:
    """The largest even number up to `largest` that leaves a power of two, and that power: 320, 16 -> (10, 32). None if there is
    none."""
    for block in range(largest - largest % 2, 0, -2):
        count = width // block
        if width % block == 0 and count & (count - 1) == 0:
            return block, count
    return None


def _fresh(target: Target, size: BlockSize, own: Settings | None, seed: int) -> OftAdapter:
    from core.networks.kinds.oft_adapter import OftAdapter, out_width

    found = split_in_powers(out_width(target.module), size.rank)
    assert isinstance(own, TurnSettings) and found is not None
    width, count = found
    shape = (count.bit_length(), count, width, width)
    return OftAdapter.fresh(target.name, target.module, shape, width, own.constraint, own.rescaled)


register_turned(
    "boft",
    "BOFT",
    _fresh,
    dims=4,
    misread=(Misread({"Forge": REFUSED, "A1111": REFUSED}),),
    fits=lambda width, rank: split_in_powers(width, rank) is not None,
)
