"""LoRA: a low-rank correction beside frozen Linear and Conv2d modules (Hu et al. 2021, arXiv:2106.09685).

    y = W x + multiplier * scale * up(down(x)),   scale = alpha / rank

down is [rank, in] (or [rank, in, kh, kw] with the module's own stride and padding), up is [out, rank] (or
[out, rank, 1, 1]). Names, shapes and alpha are those of kohya's files, so a file and a network map one to one. Weights
are float32 unless told otherwise; they are cast to the type the module computes in at each call.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor, nn

from core.formats.lora_names import kohya_name, module_path
from core.networks.adapted import adapt, kind_of, restore
from core.networks.dropout import Dropout
from core.networks.low_rank import (
    add_low_rank_conv,
    add_low_rank_linear,
    hidden_conv,
    hidden_linear,
    linear_with_low_rank,
    up_conv,
    up_linear,
)
from core.networks.norms import NormFacts, apply_max_norm
from core.networks.sizes import SizeOf, Target, has_large_kernel, needs_conv_rank, part_of, sizes_by_settings
from core.record.draws import generator
from core.record.problems import ProblemsError

if TYPE_CHECKING:
    from core.settings.network import NetworkSettings

__all__ = [
    "LoraLayer",
    "LoraNetwork",
    "NormFacts",
    "Target",
    "attached",
    "group_by_module",
    "has_large_kernel",
    "needs_conv_rank",
    "part_of",
]

STACK = "_lora_layers"
KEYS = ("lora_down.weight", "lora_up.weight", "alpha")


class HasTensors(Protocol):
    """What a LoRA file gives: its tensors by kohya key (see core.formats.lora_file.LoraFile)."""

    @property
    def tensors(self) -> Mapping[str, Tensor]: ...


class LoraLayer:
    """The correction of one module. `down` and `up` are float32 parameters in the file's shapes."""

    def __init__(self, name: str, module: nn.Module, down: Tensor, up: Tensor, alpha: float):
        self.name = name
        self.module = module
        self.down = nn.Parameter(down)
        self.up = nn.Parameter(up)
        self.alpha = alpha
        self.saved_alpha: float | None = (
            None  # another one in files than in force: sd-scripts' way with a starting file
        )
        self.multiplier = 1.0
        self.dropout: Dropout | None = None
        self._cast: tuple[Tensor, Tensor] | None = None

    @property
    def rank(self) -> int:
        return self.down.shape[0]

    @property
    def scale(self) -> float:
        return self.alpha / self.rank

    @property
    def strength(self) -> float:
        return self.multiplier * self.scale

    @classmethod
    def fresh(cls, name: str, module: nn.Module, rank: int, alpha: float, seed: int) -> LoraLayer:
        """A layer that changes nothing yet: down uniform in +-1 / sqrt(fan in) (kaiming, a = sqrt 5), up zero.

        The draw is addressed by the module's name, so it does not depend on which other modules are trained.
        """
        weight = module.weight
        assert isinstance(weight, Tensor)
        place = torch.device("meta" if weight.is_meta else "cpu")
        down = torch.empty((rank, *weight.shape[1:]), dtype=torch.float32, device=place)
        if not weight.is_meta:
            nn.init.kaiming_uniform_(down, a=math.sqrt(5), generator=generator(seed, "network_init", name))
        up = torch.zeros((weight.shape[0], rank, *(1 for _ in weight.shape[2:])), dtype=torch.float32, device=place)
        return cls(name, module, down.to(weight.device), up.to(weight.device), alpha)

    def add_to(self, y: Tensor, x: Tensor) -> Tensor:
        """The module's output y with this correction added; x is the module's input."""
        down, up = self._weights(y.dtype)
        if isinstance(self.module, nn.Conv2d):
            return add_low_rank_conv(y, x.to(y.dtype), down, up, self.strength, self.module)
        return add_low_rank_linear(y, x.to(y.dtype), down, up, self.strength)

    @property
    def left_out(self) -> bool:
        """Whether the module computes without this correction now."""
        return self.strength == 0.0 or (self.dropout is not None and self.dropout.leaves_out(self.name))

    @property
    def thins(self) -> bool:
        """Whether a part of down(x) is left out now."""
        return self.dropout is not None and self.dropout.thins

    def add_thinned(self, y: Tensor, x: Tensor) -> Tensor:
        """As add_to, with dropout between down and up: down -> elements -> ranks -> up."""
        assert self.dropout is not None
        x = x.to(y.dtype)
        if isinstance(self.module, nn.Conv2d):
            hidden, factor = self.dropout.thinned(hidden_conv(x, self.down, self.module), self.name, 1)
            return torch.add(y, up_conv(hidden, self.up), alpha=self.strength * factor)
        hidden, factor = self.dropout.thinned(hidden_linear(x, self.down), self.name, -1)
        return torch.add(y, up_linear(hidden, self.up), alpha=self.strength * factor)

    def whole(self, x: Tensor) -> Tensor:
        """A Linear module's output with this correction, in one go."""
        assert isinstance(self.module, nn.Linear)
        return linear_with_low_rank(x, self.module, *self._weights(x.dtype), self.strength)

    def _weights(self, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """The parameters while they train; else a copy in `dtype`, made once."""
        if self.down.requires_grad or self.up.requires_grad or self.down.dtype == dtype:
            return self.down, self.up
        if self._cast is None or self._cast[0].dtype != dtype:
            self._cast = (self.down.detach().to(dtype), self.up.detach().to(dtype))
        return self._cast

    def weight_change(self) -> Tensor:
        """scale * up @ down in the shape of the module's weight, float32, without the multiplier."""
        down, up = self.down.detach().float(), self.up.detach().float()
        product = up.flatten(1) @ down.flatten(1)  # [out, rank] @ [rank, in * kh * kw]
        return (product * self.scale).view(up.shape[0], *down.shape[1:])

    def set_weights(self, down: Tensor, up: Tensor, alpha: float) -> None:
        """Take over weights of the same shapes; the scale follows the alpha that comes with them, unless it has been
        decided that files say another (`saved_alpha`)."""
        with torch.no_grad():
            self.down.copy_(down)
            self.up.copy_(up)
        if self.saved_alpha is None:
            self.alpha = alpha
        else:
            self.saved_alpha = alpha
        self._cast = None


def forward_with_loras(module: nn.Module, x: Tensor) -> Tensor:
    """What an adapted module computes: its own forward, then the corrections in the order they were attached."""
    layers = [layer for layer in module.__dict__[STACK] if not layer.left_out]
    kind, y = kind_of(module), x
    if layers and not layers[0].thins and kind is nn.Linear and x.dtype == module.weight.dtype:
        y = layers.pop(0).whole(x)
    else:
        y = kind.forward(module, x)
    for layer in layers:
        y = layer.add_thinned(y, x) if layer.thins else layer.add_to(y, x)
    return y


class LoraNetwork:
    """A set of LoRA layers, by kohya name, for one model. Nothing of the model changes while it is not attached."""

    def __init__(self, layers: Iterable[LoraLayer], unmatched: Iterable[str] = (), dropout: Dropout | None = None):
        self.layers = {layer.name: layer for layer in layers}
        self.unmatched = tuple(unmatched)  # module names of the file it was made from that this model cannot take
        self.attached = False
        self.dropout = dropout
        for layer in self.layers.values():
            layer.dropout = dropout

    # -- making one

    @classmethod
    def create(
        cls, targets: Iterable[Target], settings: NetworkSettings, seed: int, size_of: SizeOf | None = None
    ) -> LoraNetwork:
        """A fresh network over those of the targets that have a size: by the settings, unless told otherwise."""
        targets = list(targets)
        size_of = sizes_by_settings(settings, targets) if size_of is None else size_of
        layers = []
        for target in targets:
            size = size_of(target)
            if size is not None:
                layers.append(LoraLayer.fresh(target.name, target.module, size.rank, size.alpha, seed))
        return cls(layers, dropout=Dropout(settings, seed) if settings.dropped_out else None)

    @classmethod
    def from_file(cls, lora_file: HasTensors, targets: Iterable[Target], multiplier: float = 1.0) -> LoraNetwork:
        """The network a file holds, with each module's own rank and alpha (no alpha: alpha = rank, so the scale is 1).

        Weights of a 1x1 convolution fit a Linear and the reverse. Modules this model lacks, or whose keys are of
        another kind of adapter, are listed in `unmatched`.
        """
        targets = list(targets)
        by_module = named_as(group_by_module(lora_file.tensors), [target.name for target in targets])
        layers = []
        for target in targets:
            tensors = by_module.get(target.name)
            if tensors is None or not set(KEYS[:2]) <= set(tensors) <= set(KEYS):
                continue
            shaped = fit_shapes(tensors[KEYS[0]], tensors[KEYS[1]], target.module)
            if shaped is None:
                continue
            down, up = shaped
            alpha = float(tensors["alpha"]) if "alpha" in tensors else float(down.shape[0])
            layer = LoraLayer(target.name, target.module, down, up, alpha)
            layer.down.requires_grad_(False)
            layer.up.requires_grad_(False)
            layers.append(layer)
        network = cls(layers, unmatched=[name for name in by_module if name not in {layer.name for layer in layers}])
        network.set_multiplier(multiplier)
        return network

    # -- weights

    def parameters_by_part(self) -> dict[str, list[nn.Parameter]]:
        """The trained parameters, down before up, by part; a part without modules has an empty list."""
        parts: dict[str, list[nn.Parameter]] = {"text_encoder": [], "unet": []}
        for name, layer in self.layers.items():
            parts[part_of(name)] += [layer.down, layer.up]
        return parts

    def parameters(self) -> list[nn.Parameter]:
        parts = self.parameters_by_part()
        return parts["text_encoder"] + parts["unet"]

    def state_dict(self) -> dict[str, Tensor]:
        """kohya key -> float32 tensor; the weights are the live ones, not copies."""
        tensors: dict[str, Tensor] = {}
        for name, layer in self.layers.items():
            tensors[f"{name}.lora_down.weight"] = layer.down.detach()
            tensors[f"{name}.lora_up.weight"] = layer.up.detach()
            alpha = layer.alpha if layer.saved_alpha is None else layer.saved_alpha
            tensors[f"{name}.alpha"] = torch.tensor(alpha, dtype=torch.float32)
        return tensors

    def load_state(self, tensors: Mapping[str, Tensor]) -> None:
        """Take over the weights of a file with the same modules and ranks; its alphas count. All or nothing."""
        by_module = group_by_module(tensors)
        wrong = [f"{name} is not trained" for name in by_module if name not in self.layers]
        found = {}
        for name, layer in self.layers.items():
            given = by_module.get(name, {})
            shaped = fit_shapes(given[KEYS[0]], given[KEYS[1]], layer.module) if set(KEYS[:2]) <= given.keys() else None
            if shaped is None:
                wrong.append(f"{name} is missing" if not given else f"{name} is of another shape")
            elif shaped[0].shape != layer.down.shape:
                wrong.append(f"{name} is of rank {shaped[0].shape[0]}, not {layer.rank}")
            else:
                found[name] = (*shaped, float(given["alpha"]) if "alpha" in given else float(layer.rank))
        if wrong:
            shown = "; ".join(wrong[:5]) + (f"; and {len(wrong) - 5} more" if len(wrong) > 5 else "")
            raise ProblemsError.one(
                f"{len(wrong)} modules of the LoRA differ from what is trained: {shown}",
                "the LoRA's weights",
                "use the network settings it was trained with",
            )
        for name, weights in found.items():
            self.layers[name].set_weights(*weights)

    def set_multiplier(self, multiplier: float) -> None:
        """Strength of the whole network: 0 gives exactly the model without it, 1 is as trained, below 0 reverses."""
        for layer in self.layers.values():
            layer.multiplier = multiplier

    def apply_max_norm(self, limit: float) -> NormFacts:
        """Shorten the weight changes that are longer than `limit`; the facts stay on the device."""
        return apply_max_norm(self.layers.values(), limit)

    def to(self, dtype: torch.dtype) -> None:
        """Keep the weights, and so their gradients, in this type. Before an optimizer takes them."""
        for parameter in self.parameters():
            parameter.data = parameter.data.to(dtype)

    # -- what a step shows

    def show(self, step: int, micro_batch: int, images: Sequence[object]) -> None:
        """Until `hide`, the layers see these images, in the batch's order, and leave out what their dropouts say."""
        if self.dropout is not None:
            device = next(iter(self.layers.values())).down.device
            self.dropout.show(step, micro_batch, images, device)

    def hide(self) -> None:
        if self.dropout is not None:
            self.dropout.hide()

    # -- on the model

    def attach(self) -> None:
        """Let the modules compute with the corrections. Any number of networks may be attached, in any order."""
        assert not self.attached
        for layer in self.layers.values():
            stack = layer.module.__dict__.setdefault(STACK, [])
            stack.append(layer)
            adapt(layer.module, forward_with_loras)
        self.attached = True

    def lay_in_modules(self) -> None:
        """Make the weights parameters of the modules they correct: who gathers a module's weights finds them there."""
        for layer in self.layers.values():
            number = len(layer.module.__dict__[STACK])
            layer.module.register_parameter(f"lora_down_{number}", layer.down)
            layer.module.register_parameter(f"lora_up_{number}", layer.up)

    def detach(self) -> None:
        """Take the corrections away again; a module without any left is as it was, to the bit."""
        assert self.attached
        for layer in self.layers.values():
            stack = layer.module.__dict__[STACK]
            stack.remove(layer)
            if not stack:
                del layer.module.__dict__[STACK]
                restore(layer.module)
        self.attached = False

    @torch.no_grad()
    def merge_to(self) -> None:
        """Write the corrections into the model's weights for good: added in float32, then cast to the weight's type."""
        for layer in self.layers.values():
            weight = layer.module.weight
            assert isinstance(weight, Tensor)
            change = layer.weight_change() * layer.multiplier
            weight.copy_((weight.float() + change.to(weight.device)).to(weight.dtype))


@contextmanager
def attached(*networks: LoraNetwork) -> Iterator[None]:
    """Run the block with these networks on the model; afterwards, also after an error, the model is as before."""
    done = []
    try:
        for network in networks:
            network.attach()
            done.append(network)
        yield
    finally:
        for network in reversed(done):
            network.detach()


def group_by_module(tensors: Mapping[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    """{"name.lora_down.weight": tensor} -> {"name": {"lora_down.weight": tensor}}. Module names hold no dots."""
    grouped: dict[str, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        name, _, rest = key.partition(".")
        grouped.setdefault(name, {})[rest] = tensor
    return grouped


def named_as(modules: dict[str, dict[str, Tensor]], names: Sequence[str]) -> dict[str, dict[str, Tensor]]:
    """The same modules under the names of a model's layers: SDXL's blocks are written as the original's or as diffusers'."""
    known = set(names)
    if modules.keys() <= known:
        return modules
    return {_known_name(name, known): tensors for name, tensors in modules.items()}


def _known_name(name: str, known: set[str]) -> str:
    found = None if name in known else module_path(name)
    other = kohya_name(*found, "sdxl") if found is not None and found[0] == "unet" else None
    return other if other in known else name


def fit_shapes(down: Tensor, up: Tensor, module: nn.Module) -> tuple[Tensor, Tensor] | None:
    """down and up as float32 copies in the shapes this module needs, on its device; None when they cannot fit."""
    weight = module.weight
    assert isinstance(weight, Tensor)
    rank = down.shape[0]
    down_shape = (rank, *weight.shape[1:])
    up_shape = (weight.shape[0], rank, *(1 for _ in weight.shape[2:]))
    if down.numel() != math.prod(down_shape) or up.numel() != math.prod(up_shape) or up.shape[1] != rank:
        return None
    if down.dim() > 2 and weight.dim() > 2 and down.shape != down_shape:
        return None
    down = torch.empty(down_shape, device=weight.device, dtype=torch.float32).copy_(down.view(down_shape))
    up = torch.empty(up_shape, device=weight.device, dtype=torch.float32).copy_(up.view(up_shape))
    return down, up
