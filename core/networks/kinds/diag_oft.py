"""OFT in LyCORIS' format (diag-oft): the network rank is the width of the blocks that are turned, or where it does not divide a
layer's output the next smaller divisor.

<name>.oft_blocks [blocks, width, width]     alpha, the constraint     rescale [out, 1(, 1, 1)], a trained factor for each channel
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from core.networks.kinds.keys import RESCALE, constraint
from core.networks.kinds.lokr import split
from core.networks.kinds.lycoris import register_turned
from core.settings.base import Settings
from core.settings.blocks import BlockSize
from core.settings.readers import OTHER, REFUSED, UNREAD, Misread
from core.settings.turning import TurnSettings

if TYPE_CHECKING:
    from core.families.targets import Target
    from core.networks.kinds.oft_adapter import OftAdapter


def _fresh(target: Target, size: BlockSize, own: Settings | None, seed: int) -> OftAdapter:
    from core.networks.kinds.oft_adapter import OftAdapter, out_width

    assert isinstance(own, TurnSettings)
    width, count = split(out_width(target.module), size.rank)
    return OftAdapter.fresh(target.name, target.module, (count, width, width), width, own.constraint, own.rescaled)


MISREAD = (
    Misread({"Forge": REFUSED}),
    # A1111 takes the constraint 0, which is none, for a limit of 0.
    Misread({"A1111": UNREAD}, "", lambda own, conv: own.constraint == 0, lambda tensors: constraint(tensors) == 0),
    Misread({"ComfyUI": OTHER}, "rescale", lambda own, conv: own.rescaled, lambda tensors: RESCALE in tensors),
)
register_turned("diag_oft", "Diag-OFT", _fresh, dims=3, algo="diag-oft", misread=MISREAD)
