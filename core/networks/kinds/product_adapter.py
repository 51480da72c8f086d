"""`ProductAdapter`: a layer's change that is a product of parameters, y + strength * (conv2d | linear)(x, change)."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn.functional import conv2d, linear
from torch.utils.checkpoint import checkpoint

from core.families.targets import Target
from core.networks.adapter import Adapter, as_weight
from core.networks.kinds.product import ALPHA, SCALAR, Factors, Product, Start
from core.record.draws import generator
from core.settings.base import Settings
from core.settings.blocks import BlockSize


class ProductAdapter(Adapter):
    """`weights`: float32 parameters by the key of files, with `scalar` if it trains."""

    def __init__(self, product: Product, name: str, module: nn.Module, tensors: Mapping[str, Tensor], alpha: float):
        size, place = product.size(tensors), as_weight(module.weight).device
        super().__init__(name, module, size.rank, alpha if product.ranked(tensors) else size.alpha)
        self.product = product
        self.weights = {key: nn.Parameter(tensor.float().to(place)) for key, tensor in tensors.items()}

    @classmethod
    def fresh(
        cls, product: Product, target: Target, size: BlockSize, own: Settings | None, seed: int
    ) -> ProductAdapter:
        """One without effect yet."""
        starts = product.starts(target.module, size.rank, own)
        if getattr(own, "use_scalar", False):
            starts[SCALAR] = Start(())
        tensors = {key: started(start, target, key, seed) for key, start in starts.items()}
        return cls(product, target.name, target.module, tensors, size.alpha)

    @classmethod
    def from_tensors(cls, product: Product, target: Target, tensors: Mapping[str, Tensor]) -> ProductAdapter | None:
        """That of a file, its scalar multiplied in; None if the shapes do not fit the layer."""
        form, module = product.form_of(tensors), target.module
        assert form is not None
        if not form.fits(tensors, tuple(as_weight(module.weight).shape)):
            return None
        if product.bias in form.keys and module.bias is None:
            return None
        given = {key: tensor.float() for key, tensor in tensors.items() if key != ALPHA}
        return cls(product, target.name, module, product.with_scalar(given), product.size(tensors).alpha)

    @property
    def scale(self) -> float:
        return self.alpha / self.rank

    @property
    def strength(self) -> float:
        return self.multiplier * self.scale

    def parameters(self) -> list[tuple[nn.Parameter, str]]:
        return [(weight, "plain") for weight in self.weights.values()]

    def add_to(self, y: Tensor, x: Tensor) -> Tensor:
        z, factor = self._product(x.to(y.dtype)), 1.0
        if self.dropout is not None and self.dropout.thins:
            z, factor = self.dropout.thinned(z, self.name, 1 if isinstance(self.module, nn.Conv2d) else -1)
        return torch.add(y, z, alpha=self.strength * factor)

    def _product(self, x: Tensor) -> Tensor:
        trains = torch.is_grad_enabled() and any(weight.requires_grad for weight in self.weights.values())
        if trains and self.product.recomputes and not torch.compiler.is_compiling():
            z: Tensor = checkpoint(self._computed, x, use_reentrant=False, preserve_rng_state=False)
            return z
        return self._computed(x)

    def _computed(self, x: Tensor) -> Tensor:
        factors = self._factors(x.dtype)
        if self.product.apply is not None:
            return self.product.apply(factors, x, self.module)
        change = self.product.change(factors, tuple(as_weight(self.module.weight).shape))
        return applied(self.module, x, change, factors.get(self.product.bias))

    def _factors(self, dtype: torch.dtype) -> Factors:
        # Detached without gradients: matmul sums parameters in another order, and samples would differ from Generate's.
        trains = torch.is_grad_enabled()
        weights = {key: (weight if trains else weight.detach()).to(dtype) for key, weight in self.weights.items()}
        return self.product.with_scalar(weights)

    def delta(self) -> Tensor:
        with torch.no_grad():
            shape = tuple(as_weight(self.module.weight).shape)
            return self.product.change(self._factors(torch.float32), shape) * self.scale

    def norm(self) -> Tensor:
        if self.product.norm is None:
            return super().norm()
        with torch.no_grad():
            return self.product.norm(self._factors(torch.float32)) * abs(self.scale)

    def bias_delta(self) -> Tensor | None:
        bias = self.weights.get(self.product.bias)
        return bias.detach().float() * self.scale if bias is not None else super().bias_delta()

    def tensors(self) -> dict[str, Tensor]:
        found = {key: weight.detach() for key, weight in self.weights.items()}
        return found | ({ALPHA: self.alpha_in_file()} if self.product.has_ranks else {})

    def saved(self) -> dict[str, Tensor]:
        return self.product.with_scalar(self.tensors())

    def misfit(self, tensors: Mapping[str, Tensor]) -> str:
        own, form = self.product.form_of(self.weights), self.product.form_of(tensors)
        if own is None or form is None or not form.fits(tensors, tuple(as_weight(self.module.weight).shape)):
            return "has a different shape"
        rank = self.product.size(tensors).rank
        if form is own and form.lengths(tensors) == own.lengths(self.weights):
            return ""
        return f"has rank {rank}, not {self.rank}" if rank != self.rank else "is made of other parts"

    def take(self, tensors: Mapping[str, Tensor]) -> None:
        given = dict(tensors) if SCALAR in self.weights else self.product.with_scalar(tensors)
        with torch.no_grad():
            for key, weight in self.weights.items():
                weight.copy_(given[key].reshape(weight.shape) if key in given else torch.ones(()))
        self.take_alpha(self.product.size(tensors).alpha)

    def shorten(self, ratio: Tensor) -> None:
        factors = len(self.weights.keys() - {self.product.bias})
        for key, weight in self.weights.items():
            weight.mul_(ratio if key == self.product.bias else ratio ** (1 / factors))


def applied(module: nn.Module, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """The layer's product of x and another weight of its shape."""
    if isinstance(module, nn.Conv2d):
        return conv2d(x, weight, bias, module.stride, module.padding, module.dilation, module.groups)
    return linear(x, weight, bias)


def started(start: Start, target: Target, key: str, seed: int) -> Tensor:
    """A tensor as it starts. The draw is addressed by layer and key, so it does not depend on what else trains."""
    weight = as_weight(target.module.weight)
    tensor = torch.zeros(start.shape, dtype=torch.float32, device="meta" if weight.is_meta else "cpu")
    if not weight.is_meta and start.how != "zero":
        drawn = generator(seed, "network_init", target.name, key)
        if start.how == "normal":
            tensor.normal_(0.0, start.spread, generator=drawn)
        else:
            nn.init.kaiming_uniform_(tensor, a=math.sqrt(5), generator=drawn)
    return tensor.to(weight.device)
