"""What the kinds of LyCORIS have in common: their metadata and their registration."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from core.networks.kinds import NetworkKind, register
from core.networks.kinds.keys import OFT_BLOCKS, RESCALE, constraint, oft_flaw, oft_idle
from core.networks.kinds.lora import network_args
from core.networks.kinds.product import ALPHA, SCALAR, Product
from core.settings.base import Settings
from core.settings.blocks import BlockSize
from core.settings.layers import PRESETS
from core.settings.readers import OTHER, READ, UNREAD, Misread
from core.settings.turning import TurnSettings

if TYPE_CHECKING:
    from torch import Tensor

    from core.families.targets import Target
    from core.networks.adapter import Adapter
    from core.networks.kinds.oft_adapter import OftAdapter
    from core.settings.job import TrainJob

MODULE = "lycoris.kohya"
NOT_IN_PEFT = Misread({"diffusers": UNREAD})


def lycoris_args(job: TrainJob, algo: str, own: Settings | None) -> dict[str, str]:
    """The network_args that LyCORIS would have been given: the algorithm, its options that are on, and the common ones."""
    options = {name: getattr(own, name) for name in type(own).model_fields} if own is not None else {}
    on = {name: str(value) for name, value in options.items() if value not in (False, None, -1)}
    layers = job.network.layers
    preset = {"preset": layers[0]} if len(layers) == 1 and layers[0] in PRESETS else {}
    network = job.network
    scaled = network.rank_dropout > 0 and network.rank_dropout_scale and "rank_dropout" in network.traits.uses
    on |= {"rank_dropout_scale": "True"} if scaled else {}
    return {"algo": algo} | preset | on | network_args(job)


def turned(target: Target, tensors: Mapping[str, Tensor]) -> OftAdapter | None:
    """The adapter of a layer of Diag-OFT or BOFT in a file; None if it does not fit."""
    from core.networks.kinds.oft_adapter import OftAdapter, fits

    if not fits(tensors, target.module):
        return None
    return OftAdapter(target.name, target.module, tensors, tensors[OFT_BLOCKS].shape[-1])


def register_turned(
    name: str,
    title: str,
    fresh: Callable[[Target, BlockSize, Settings | None, int], OftAdapter],
    dims: int,
    algo: str = "",
    misread: tuple[Misread, ...] = (),
    **given: Any,
) -> None:
    """Register a kind whose blocks are turned. dims: of the tensor of blocks; algo: LyCORIS' name, if another"""
    limited = Misread(
        {"ComfyUI": OTHER, "A1111": READ} if dims == 3 else {"ComfyUI": OTHER},
        "a constraint",
        lambda own, conv: own.constraint > 0,
        lambda tensors: constraint(tensors) > 0,
    )
    register(
        NetworkKind(
            name=name,
            title=title,
            forms=((OFT_BLOCKS,),),
            optional=(ALPHA, RESCALE),
            fresh=fresh,
            from_tensors=turned,
            size=lambda tensors: BlockSize(tensors[OFT_BLOCKS].shape[-1], constraint(tensors)),
            flaw=oft_flaw,
            module_name=MODULE,
            network_args=lambda job: lycoris_args(job, algo or name, getattr(job, name)),
            settings=TurnSettings,
            uses=frozenset({"rank"}),
            idle=oft_idle,
            looks=lambda tensors: len(tensors[OFT_BLOCKS].shape) == dims,
            misread=(NOT_IN_PEFT, *misread, limited),
            **given,
        )
    )


def register_product(name: str, title: str, product: Product, algo: str = "", **given: Any) -> None:
    """Register a kind whose layers are `ProductAdapter`s. given: further fields of its NetworkKind."""

    def fresh(target: Target, size: BlockSize, own: Settings | None, seed: int) -> Adapter | None:
        from core.networks.kinds.product_adapter import ProductAdapter

        return ProductAdapter.fresh(product, target, size, own, seed)

    def from_tensors(target: Target, tensors: Mapping[str, Tensor]) -> Adapter | None:
        from core.networks.kinds.product_adapter import ProductAdapter

        return ProductAdapter.from_tensors(product, target, tensors)

    kind: dict[str, Any] = {
        "name": name,
        "title": title,
        "forms": product.key_sets(),
        "optional": (ALPHA, SCALAR),
        "fresh": fresh,
        "from_tensors": from_tensors,
        "size": product.size,
        "flaw": product.flaw,
        "weight_shape": product.weight_shape,
        "idle": product.idle,
        "module_name": MODULE,
        "network_args": lambda job: lycoris_args(job, algo or name, getattr(job, name, None)),
    }
    register(NetworkKind(**kind | given))
