"""(IA)^3 (Liu et al. 2022, arXiv:2205.05638) in LyCORIS' format: a layer's output (without bias) or input is scaled by 1 + vector.

<name>.weight    the vector [channels], for a convolution [1, channels, 1, 1]
<name>.on_input    1: it scales the input channels, 0: the output channels
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from core.networks.adapter import Adapter, as_weight, fitted, over_channels
from core.networks.kinds import NetworkKind, Tensors, register
from core.networks.kinds.lycoris import MODULE, lycoris_args
from core.record.lazy_torch import Tensor, nn, torch
from core.settings.base import Settings
from core.settings.blocks import BlockSize
from core.settings.dora_ia3_oft import Ia3Settings
from core.settings.layers import Layer
from core.settings.network import NetworkSettings
from core.settings.readers import OTHER, REFUSED, UNREAD, Misread

if TYPE_CHECKING:
    from core.families.targets import Target
    from core.settings.job import TrainJob

NAME = "ia3"
WEIGHT, ON_INPUT = "weight", "on_input"
# The layers of the paper, and those of LyCORIS' preset "ia3": keys and values by their output, the feed-forward by its input.
OUTPUTS, INPUTS = ("_to_k", "_to_v", "_k_proj", "_v_proj"), ("_ff_net_2", "_mlp_fc2")


class Ia3Adapter(Adapter):
    """W' = diag(1 + m * vector) W, or W diag(1 + m * vector) if `on_input`; m is the multiplier.
    weight: the vector, a float32 parameter in the file's shape; the norm is its norm"""

    def __init__(self, name: str, module: nn.Module, weight: Tensor, on_input: bool):
        super().__init__(name, module)
        self.weight, self.on_input = nn.Parameter(weight), on_input

    @classmethod
    def fresh(cls, target: Target, size: BlockSize, options: Settings | None, seed: int) -> Ia3Adapter:
        """Create an adapter without effect: a vector of zeros."""
        assert isinstance(options, Ia3Settings)
        on_input = options.train_on_input if options.all_layers else target.name.endswith(INPUTS)
        zero = torch.zeros(shape_of(target.module, on_input), device=as_weight(target.module.weight).device)
        return cls(target.name, target.module, zero, on_input)

    @classmethod
    def from_tensors(cls, target: Target, tensors: Tensors) -> Ia3Adapter | None:
        weight = vector_of(tensors, target.module)
        return cls(target.name, target.module, weight, bool(tensors[ON_INPUT])) if weight is not None else None

    def parameters(self) -> list[tuple[nn.Parameter, str]]:
        return [(self.weight, "plain")]

    def changed_input(self, x: Tensor) -> Tensor:
        """Return the input with its channels scaled, if `on_input`."""
        return x + self._scaled(x) if self.on_input else x

    def add_to(self, y: Tensor, x: Tensor) -> Tensor:
        """Return the output with its channels scaled except for the bias, unless `on_input`."""
        return y if self.on_input else y + self._scaled(self.without_bias(y))

    def _scaled(self, value: Tensor) -> Tensor:
        """Return multiplier * vector * value, along the channels: the change of an input or output."""
        return value * over_channels(self.weight * self.multiplier, value, self.module)

    def merged(self, weight: Tensor) -> Tensor:
        """Return the weight with its input or output channels scaled."""
        side = [1, -1] if self.on_input else [-1, 1]
        vector = self.weight.detach().float().view(*side, *(1 for _ in weight.shape[2:]))
        return weight + weight * (vector * self.multiplier)

    def norm(self) -> Tensor:
        return self.weight.detach().float().norm()

    def shorten(self, ratio: Tensor) -> None:
        self.weight.mul_(ratio.to(self.weight.dtype))

    def tensors(self) -> dict[str, Tensor]:
        """Return the vector, live, and whether it is on the input (0 or 1), by their keys in files."""
        return {WEIGHT: self.weight.detach(), ON_INPUT: torch.tensor(int(self.on_input))}

    def misfit(self, tensors: Tensors) -> str:
        if not {WEIGHT, ON_INPUT} <= tensors.keys():
            return f"has no {WEIGHT} with {ON_INPUT}"
        if bool(tensors[ON_INPUT]) != self.on_input:
            return "scales the layer's other side"
        return "" if vector_of(tensors, self.module) is not None else "has a different shape"

    def take(self, tensors: Tensors) -> None:
        vector = vector_of(tensors, self.module)
        assert vector is not None
        with torch.no_grad():
            self.weight.copy_(vector)


def shape_of(module: nn.Module, on_input: bool) -> tuple[int, ...]:
    """Return the vector's shape for this layer, as in files: [C] for a Linear, [1, C, 1, 1] for a convolution."""
    weight = as_weight(module.weight)
    count = weight.shape[int(on_input)]
    return (1, count, *(1 for _ in weight.shape[2:])) if weight.dim() > 2 else (count,)


def vector_of(tensors: Tensors, module: nn.Module) -> Tensor | None:
    """Return a file's vector as float32 in the shape for this layer, on its device; None if it does not fit.

    That of a 1x1 convolution fits a Linear and vice versa.
    """
    shape, vector = shape_of(module, bool(tensors[ON_INPUT])), tensors[WEIGHT]
    if vector.numel() != max(shape):
        return None
    return fitted(vector, shape, module)


def _takes(layer: Layer, network: NetworkSettings, options: Settings | None) -> bool:
    """Return whether (IA)^3 changes a layer: keys, values and feed-forward as in the paper, or any with `all_layers` or chosen layers."""
    assert isinstance(options, Ia3Settings)
    return options.all_layers or bool(network.layers) or layer.name.endswith((*OUTPUTS, *INPUTS))


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
    """Return LyCORIS' network_args: {"algo": "ia3", "preset": "ia3"} for the layers of the paper, else as `lycoris_args`."""
    options: Ia3Settings = getattr(job, NAME)
    if not options.all_layers and not job.network.layers:
        return {"algo": NAME, "preset": NAME}
    return {name: value for name, value in lycoris_args(job, NAME, options).items() if name != "all_layers"}


register(
    NetworkKind(
        name=NAME,
        title="(IA)^3",
        forms=((WEIGHT, ON_INPUT),),
        fresh=Ia3Adapter.fresh,
        from_tensors=Ia3Adapter.from_tensors,
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
                {"A1111": OTHER, "InvokeAI": UNREAD},
                "scaled outputs of convolutions",
                lambda options, conv: options.all_layers and not options.train_on_input,
                lambda tensors: len(tensors[WEIGHT].shape) > 2 and not float(tensors[ON_INPUT]),
            ),
        ),
    )
)
