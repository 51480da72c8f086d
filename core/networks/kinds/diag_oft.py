"""OFT in LyCORIS' format (diag-oft): the network rank is the width of the blocks that are turned, or where it does not divide a
layer's output the next smaller divisor.

<name>.oft_blocks [blocks, width, width]     alpha, the constraint     rescale [out, 1(, 1, 1)], a trained factor for each channel
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from core.networks.kinds import NetworkKind, register
from core.networks.kinds.keys import ALPHA, OFT_BLOCKS, RESCALE, constraint, oft_flaw, oft_idle
from core.networks.kinds.lokr import split
from core.networks.kinds.lycoris import MODULE, lycoris_args, turned
from core.settings.base import Settings
from core.settings.blocks import BlockSize
from core.settings.turning import TurnSettings

if TYPE_CHECKING:
    from core.families.targets import Target
    from core.networks.kinds.oft_adapter import OftAdapter


def _fresh(target: Target, size: BlockSize, own: Settings | None, seed: int) -> OftAdapter:
    from core.networks.kinds.oft_adapter import OftAdapter, out_width

    assert isinstance(own, TurnSettings)
    width, count = split(out_width(target.module), size.rank)
    return OftAdapter.fresh(target.name, target.module, (count, width, width), width, own.constraint, own.rescaled)


NAME = "diag_oft"
register(
    NetworkKind(
        name=NAME,
        title="Diag-OFT",
        forms=((OFT_BLOCKS,),),
        optional=(ALPHA, RESCALE),
        fresh=_fresh,
        from_tensors=turned,
        size=lambda tensors: BlockSize(tensors[OFT_BLOCKS].shape[-1], constraint(tensors)),
        flaw=oft_flaw,
        module_name=MODULE,
        network_args=lambda job: lycoris_args(job, "diag-oft", getattr(job, NAME)),
        settings=TurnSettings,
        uses=frozenset({"rank"}),
        idle=oft_idle,
        looks=lambda tensors: len(tensors[OFT_BLOCKS].shape) == 3,
    )
)
