"""(IA)^3 (Liu et al. 2022, arXiv:2205.05638) in LyCORIS' format: a vector multiplies a layer's output, before its bias, or its
input, by 1 + vector.

<name>.weight    [channels], of a convolution [1, channels, 1, 1]     <name>.on_input    0 or 1: whose channels they are
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from core.networks.kinds import NetworkKind, Tensors, register
from core.networks.kinds.keys import ON_INPUT, WEIGHT
from core.networks.kinds.lycoris import MODULE, lycoris_args
from core.settings.base import Settings
from core.settings.blocks import BlockSize
from core.settings.layers import Layer
from core.settings.network import NetworkSettings
from core.settings.readers import OTHER, REFUSED, UNREAD, Misread
from core.settings.turning import Ia3Settings

if TYPE_CHECKING:
    from core.families.targets import Target
    from core.networks.kinds.ia3_adapter import Ia3Adapter
    from core.settings.job import TrainJob

NAME = "ia3"
# The layers of the paper, and those of LyCORIS' preset "ia3": keys and values by their output, the feed-forward by its input.
OUTPUTS, INPUTS = ("_to_k", "_to_v", "_k_proj", "_v_proj"), ("_ff_net_2", "_mlp_fc2")


def _takes(layer: Layer, network: NetworkSettings, own: Settings | None) -> bool:
    """The paper's layers, all, or those that expressions choose."""
    assert isinstance(own, Ia3Settings)
    return own.all_layers or bool(network.layers) or layer.name.endswith((*OUTPUTS, *INPUTS))


def _fresh(target: Target, size: BlockSize, own: Settings | None, seed: int) -> Ia3Adapter:
    from core.networks.kinds.ia3_adapter import Ia3Adapter

    assert isinstance(own, Ia3Settings)
    on_input = own.train_on_input if own.all_layers else target.name.endswith(INPUTS)
    return Ia3Adapter.fresh(target.name, target.module, on_input)


def _from_tensors(target: Target, tensors: Tensors) -> Ia3Adapter | None:
    from core.networks.kinds.ia3_adapter import Ia3Adapter, fitted

    weight = fitted(tensors, target.module)
    return Ia3Adapter(target.name, target.module, weight, bool(tensors[ON_INPUT])) if weight is not None else None


def _flaw(name: str, tensors: Tensors) -> str:
    for key in (WEIGHT, ON_INPUT):
        if key not in tensors:
            return f"{name} has no {key}"
    if tensors[ON_INPUT].numel() != 1:
        return f"{name}.{ON_INPUT} is neither 0 nor 1"
    weight = tensors[WEIGHT]
    valid = weight.is_floating_point() and weight.numel() == max(weight.shape, default=0)
    return "" if valid else f"{name}.{WEIGHT} has an invalid shape"


def _network_args(job: TrainJob) -> dict[str, str]:
    own: Ia3Settings = getattr(job, NAME)
    if not own.all_layers and not job.network.layers:
        return {"algo": NAME, "preset": NAME}
    return {name: value for name, value in lycoris_args(job, NAME, own).items() if name != "all_layers"}


register(
    NetworkKind(
        name=NAME,
        title="(IA)^3",
        forms=((WEIGHT, ON_INPUT),),
        fresh=_fresh,
        from_tensors=_from_tensors,
        size=lambda tensors: BlockSize(1, 1.0),
        flaw=_flaw,
        module_name=MODULE,
        network_args=_network_args,
        settings=Ia3Settings,
        uses=frozenset(),
        rates=50,  # LyCORIS: 5e-3 to 1e-2
        takes=_takes,
        idle=lambda tensors: not tensors[WEIGHT].any(),
        misread=(
            Misread({"ComfyUI": UNREAD, "Forge": REFUSED, "diffusers": UNREAD}),
            Misread(
                {"A1111": OTHER},
                "scaled outputs of convolutions",
                lambda own, conv: own.all_layers and not own.train_on_input,
                lambda tensors: len(tensors[WEIGHT].shape) > 2 and not tensors[ON_INPUT],
            ),
        ),
    )
)
