"""GLoRA (Chavan et al. 2023, arXiv:2306.07967) in LyCORIS' format: W' = W + scale * (W A + B) with low-rank A and B.

<name>.a1.weight [in, r(, 1, 1)]    a2.weight [r, in(, 1, 1)]    A = a1 @ a2, a change of the layer's input
<name>.b1.weight [out, r(, 1, 1)]   b2.weight [r, in(, kh, kw)]  B = b1 @ b2, LoRA's change       scale = alpha / r
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from core.formats.lora.names import ALPHA, group_by_module
from core.networks.adapter import ScaledAdapter, as_weight, fitted
from core.networks.kinds import NetworkKind, Tensors, number_error, ranked, register
from core.networks.kinds.lora import add_dropped_product, hidden_linear, up_conv, up_linear
from core.networks.kinds.lycoris import MODULE, lycoris_args
from core.record.draws import generator
from core.record.lazy_torch import Tensor, nn, torch
from core.settings.base import Settings
from core.settings.blocks import BlockSize
from core.settings.readers import REFUSED, UNREAD, Misread

if TYPE_CHECKING:
    from core.families.targets import Target

A1, A2, B1, B2 = GLORA = "a1.weight", "a2.weight", "b1.weight", "b2.weight"


class GloraAdapter(ScaledAdapter):
    """y' = f(x + strength * a1(a2(x))) + strength * b1(b2(x)), where f is the layer with the adapters attached before.

    weights   {key: float32 parameter} in the shapes of `shapes`
    The multiplier scales A and B. Dropout acts between the matrices of both. The norm is that of A and B together, since W A depends on
    the layer's weight.
    """

    def __init__(self, name: str, module: nn.Module, tensors: Tensors, alpha: float):
        super().__init__(name, module, tensors[A2].shape[0], alpha)
        self.weights = {key: nn.Parameter(tensors[key]) for key in GLORA}

    @classmethod
    def fresh(cls, target: Target, size: BlockSize, options: Settings | None, seed: int) -> GloraAdapter:
        """Create an adapter without effect: a1 and b1 kaiming uniform (a = sqrt 5), a2 and b2 zero, as in LyCORIS."""
        weight = as_weight(target.module.weight)
        device = torch.device("meta" if weight.is_meta else "cpu")
        tensors = {key: torch.zeros(shape, device=device) for key, shape in shapes(target.module, size.rank).items()}
        for key in (A1, B1):
            if not weight.is_meta:
                drawn = generator(seed, "network_init", f"{target.name}.{key}")
                nn.init.kaiming_uniform_(tensors[key], a=math.sqrt(5), generator=drawn)
        tensors = {key: value.to(weight.device) for key, value in tensors.items()}
        return cls(target.name, target.module, tensors, size.alpha)

    @classmethod
    def from_tensors(cls, target: Target, tensors: Tensors) -> GloraAdapter | None:
        matrices = matrices_of(tensors, target.module)
        return cls(target.name, target.module, matrices, _size(tensors).alpha) if matrices is not None else None

    def parameters(self) -> list[tuple[nn.Parameter, str]]:
        return [(weight, "plain") for weight in self.weights.values()]

    def changed_input(self, x: Tensor) -> Tensor:
        """Return x + strength * a1(a2(x)): the change A of the layer's input."""
        first, second = (self.cast(self.weights[key], x.dtype) for key in (A2, A1))
        if not isinstance(self.module, nn.Conv2d):
            hidden, factor = self.drop_hidden(hidden_linear(x, first), f"{self.name}.{A2}")
            return torch.add(x, up_linear(hidden, second), alpha=self.strength * factor)
        hidden, factor = self.drop_hidden(up_conv(x, first), f"{self.name}.{A2}")
        return torch.add(x, up_conv(hidden, second), alpha=self.strength * factor)

    def add_to(self, y: Tensor, x: Tensor) -> Tensor:
        """Return y + strength * b1(b2(x)): the change B of the layer's weight."""
        return add_dropped_product(self, y, x.to(y.dtype), self.weights[B2], self.weights[B1], f"{self.name}.{B2}")

    def merged(self, weight: Tensor) -> Tensor:
        """Return weight + strength * (weight A + B)."""
        a1, a2, b1, b2 = (self.weights[key].detach().float().flatten(1) for key in GLORA)
        on_input = torch.einsum("oi...,ir,rj->oj...", weight, a1, a2)
        return weight + self.strength * (on_input + (b1 @ b2).view(weight.shape))

    def norm(self) -> Tensor:
        """Return the Frobenius norm of A and B together, times the scale."""
        a1, a2, b1, b2 = (self.weights[key].detach().float().flatten(1) for key in GLORA)
        return torch.stack([(a1 @ a2).norm(), (b1 @ b2).norm()]).norm() * abs(self.scale)

    def shorten(self, ratio: Tensor) -> None:
        """Multiply A and B by `ratio`, half of it in each of their matrices."""
        for weight in self.weights.values():
            weight.mul_(ratio.sqrt().to(weight.dtype))

    def tensors(self) -> dict[str, Tensor]:
        tensors = {key: weight.detach() for key, weight in self.weights.items()}
        return tensors | {ALPHA: self.alpha_in_file()}

    def misfit(self, tensors: Tensors) -> str:
        matrices = matrices_of(tensors, self.module) if set(GLORA) <= tensors.keys() else None
        if matrices is None:
            return "has a different shape"
        return "" if matrices[A2].shape[0] == self.rank else f"has rank {matrices[A2].shape[0]}, not {self.rank}"

    def take(self, tensors: Tensors) -> None:
        matrices = matrices_of(tensors, self.module)
        assert matrices is not None
        with torch.no_grad():
            for key, weight in self.weights.items():
                weight.copy_(matrices[key])
        self.take_alpha(_size(tensors).alpha)


def shapes(module: nn.Module, rank: int) -> dict[str, tuple[int, ...]]:
    """Return {key: shape} of the matrices for this layer, as in files."""
    (out, width, *kernel), ones = as_weight(module.weight).shape, [1 for _ in as_weight(module.weight).shape[2:]]
    return {
        A1: (width, rank, *ones),
        A2: (rank, width, *ones),
        B1: (out, rank, *ones),
        B2: (rank, width, *kernel),
    }


def matrices_of(tensors: Tensors, module: nn.Module) -> dict[str, Tensor] | None:
    """Return a file's matrices as float32 in the shapes for this layer, on its device; None if they do not fit.

    Those of a 1x1 convolution fit a Linear and vice versa.
    """
    needed = shapes(module, tensors[A2].shape[0])
    if any(
        tensors[key].numel() != math.prod(shape) or tensors[key].shape[:2] != shape[:2] for key, shape in needed.items()
    ):
        return None
    return {key: fitted(tensors[key], shape, module) for key, shape in needed.items()}


def _from_older(tensors: Mapping[str, Any]) -> dict[str, Any]:
    """Return a file's tensors with a1 and a2, and b1 and b2, exchanged in layers of LyCORIS' older format.

    That is W' = W + scale * (W a2 a1 + b2 b1). If input and output are equally wide, the shape of a2 decides, as in ComfyUI.
    """
    present = dict(tensors)
    layers = group_by_module(tensors) if any(key.endswith(f".{A1}") for key in tensors) else {}
    for name, layer in layers.items():
        if not all(key in layer and len(layer[key].shape) >= 2 for key in GLORA):
            continue
        a1, a2, b1, b2 = (layer[key].shape for key in GLORA)
        if a1[0] == a2[1] == b1[0] == b2[1] and (a2[0] > a2[1] or not a1[1] == a2[0] == b1[1] == b2[0]):
            present |= {f"{name}.{new}": layer[old] for new, old in ((A1, A2), (A2, A1), (B1, B2), (B2, B1))}
    return present


def _size(tensors: Tensors) -> BlockSize:
    """Return rank and alpha of a layer in a file."""
    return ranked(tensors[A2].shape[0], tensors)


def _flaw(name: str, tensors: Tensors) -> str:
    for key in GLORA:
        if key not in tensors:
            return f"{name} has no {key}"
        if tensors[key].ndim not in (2, 4) or not tensors[key].is_floating_point() or not tensors[key].numel():
            return f"{name}.{key} has an invalid shape"
    if wrong := number_error(name, tensors):
        return wrong
    ranks = {tensors[A1].shape[1], tensors[A2].shape[0], tensors[B1].shape[1], tensors[B2].shape[0]}
    return "" if len(ranks) == 1 else f"{name} has matrices of several ranks"


register(
    NetworkKind(
        name="glora",
        title="GLoRA",
        forms=(GLORA,),
        optional=(ALPHA,),
        input_keys=(A2,),
        rank_keys=(A2,),
        fresh=GloraAdapter.fresh,
        from_tensors=GloraAdapter.from_tensors,
        size=_size,
        flaw=_flaw,
        module_name=MODULE,
        network_args=lambda job: lycoris_args(job, "glora", None),
        from_older=_from_older,
        misread=(Misread({"A1111": REFUSED, "InvokeAI": REFUSED, "diffusers": UNREAD}),),
        idle=lambda tensors: (
            not (tensors[A1].any() and tensors[A2].any()) and not (tensors[B1].any() and tensors[B2].any())
        ),
    )
)
