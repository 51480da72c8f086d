"""OFT (Qiu et al. 2023, arXiv:2306.07280) in sd-scripts' format: blocks of a layer's output are turned; the network rank is their
number, the network alpha the limit of the angles. Layers of the U-Net only.

oft_unet_<path>.oft_blocks [blocks, width, width]     oft_unet_<path>.alpha, a number
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from core.networks.kinds import NetworkKind, Tensors, register
from core.networks.kinds.keys import ALPHA, OFT_BLOCKS, constraint, oft_flaw, oft_idle
from core.settings.base import Settings
from core.settings.blocks import BlockSize
from core.settings.layers import Layer
from core.settings.network import NetworkSettings
from core.settings.turning import OftSettings

if TYPE_CHECKING:
    from core.families.targets import Target
    from core.networks.kinds.oft_adapter import OftAdapter
    from core.settings.job import TrainJob

NAME, PREFIX = "oft", "oft_unet_"
ATTENTION, TRANSFORMER = ("_attn1_", "_attn2_"), ("_transformer_blocks_", "_proj_in", "_proj_out")


def _takes(layer: Layer, network: NetworkSettings, own: Settings | None) -> bool:
    """sd-scripts' layers: attention, with enable_all_linear whole transformers, with enable_conv the residual and resampling
    blocks. Layers chosen by expressions are taken as chosen."""
    assert isinstance(own, OftSettings)
    if layer.name.startswith("lora_te") or layer.outer:
        return False
    if network.layers or any(part in layer.name for part in ATTENTION):
        return True
    return own.enable_all_linear if any(part in layer.name for part in TRANSFORMER) else own.enable_conv


def _sized(network: NetworkSettings, own: Settings | None) -> NetworkSettings:
    """3x3 convolutions have the same number of blocks and the same limit."""
    assert isinstance(own, OftSettings)
    size = {"conv_rank": network.rank, "conv_alpha": network.alpha} if own.enable_conv else {"conv_rank": None}
    return network.model_copy(update={**size, "rs_lora": False})


def _fresh(target: Target, size: BlockSize, own: Settings | None, seed: int) -> OftAdapter:
    from core.networks.kinds.oft_adapter import OftAdapter, out_width

    width = out_width(target.module) // size.rank
    shape = (size.rank, width, width)
    return OftAdapter.fresh(target.name, target.module, shape, size.rank, size.alpha, kohya=True)


def _from_tensors(target: Target, tensors: Tensors) -> OftAdapter | None:
    from core.networks.kinds.oft_adapter import OftAdapter, fits

    if not fits(tensors, target.module):
        return None
    return OftAdapter(target.name, target.module, tensors, tensors[OFT_BLOCKS].shape[0], kohya=True)


def _network_args(job: TrainJob) -> dict[str, str]:
    own: OftSettings = getattr(job, NAME)
    return {name: "True" for name in type(own).model_fields if getattr(own, name)}


register(
    NetworkKind(
        name=NAME,
        title="OFT",
        forms=((OFT_BLOCKS,),),
        optional=(ALPHA,),
        fresh=_fresh,
        from_tensors=_from_tensors,
        size=lambda tensors: BlockSize(tensors[OFT_BLOCKS].shape[0], constraint(tensors)),
        flaw=oft_flaw,
        module_name="networks.oft",
        network_args=_network_args,
        settings=OftSettings,
        uses=frozenset({"rank", "alpha", "block_alphas"}),
        idle=oft_idle,
        prefix=PREFIX,
        looks=lambda tensors: len(tensors[OFT_BLOCKS].shape) == 3,
        takes=_takes,
        sized=_sized,
        fits=lambda width, rank: width % rank == 0,
    )
)
