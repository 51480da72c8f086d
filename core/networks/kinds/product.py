"""Network kinds whose weight change is a product of their parameters (LoHa, LoKr, LoCon with Tucker ...).

A kind declares how its tensors' dimensions correspond (`Form`), and how they multiply and start (`Product`); keys, file checks, training
and merging follow. LyCORIS' `scalar`, a further factor of the change, trains with them and is multiplied into a tensor in files, as
LyCORIS 4 writes them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from core.formats.lora.names import ALPHA
from core.networks.adapter import ScaledAdapter, as_weight
from core.networks.kinds import Tensors, number_error, ranked
from core.record.draws import generator
from core.record.lazy_torch import Tensor, nn, torch
from core.settings.base import Settings
from core.settings.blocks import BlockSize

if TYPE_CHECKING:
    from core.families.targets import Target

SCALAR = "scalar"
Factors = Mapping[str, Tensor]  # of one layer by key, in the compute dtype; the scalar is multiplied in


@dataclass(frozen=True)
class Form:
    """A set of tensors that a layer of a kind can have.

    keys   {key: a letter per dimension}: equal letters are equal sizes, r is the rank, h and w the kernel's, 1 is one; h, w and 1 may be
           missing at the end, so that a 1x1 convolution fits a Linear and vice versa; H and W may not
    outs   letters whose sizes multiply to the layer's output width
    ins    letters whose sizes multiply to its input width times the kernel's sizes
    """

    keys: Mapping[str, str]
    outs: str
    ins: str

    def lengths(self, tensors: Tensors) -> dict[str, int]:
        """Return {letter in `keys`: size of that dimension}. Raises ValueError with the key of a tensor whose shape does not match."""
        sizes: dict[str, int] = {"1": 1}
        for key, letters in self.keys.items():
            shape = tensors[key].shape
            if len(shape) > len(letters) or letters[len(shape) :].strip("hw1"):
                raise ValueError(key)
            for letter, length in zip(letters, (*shape, *(1 for _ in letters)), strict=False):
                if sizes.setdefault(letter, length) != length or not length:
                    raise ValueError(key)
        return sizes

    def fits(self, tensors: Tensors, shape: tuple[int, ...]) -> bool:
        """Return whether the tensors are the change of a weight of this shape."""
        try:
            sizes = self.lengths(tensors)
        except ValueError:
            return False
        kernel = tuple(sizes[letter] for letter in "hwHW" if letter in sizes)
        outs, ins = math.prod(sizes[letter] for letter in self.outs), math.prod(sizes[letter] for letter in self.ins)
        return (outs, ins) == (shape[0], math.prod(shape[1:])) and kernel in ((), (1, 1), (*shape[2:],))

    def weight_shape(self, tensors: Tensors) -> tuple[int, ...] | None:
        """Return the shape of the weight that the tensors change; None if they are inconsistent.

        If no tensor has the kernel as dimensions, its size is part of the input width: (out, in * kh * kw).
        """
        try:
            sizes = self.lengths(tensors)
        except ValueError:
            return None
        kernels = (
            tensors[key].shape[-2:]
            for key, letters in self.keys.items()
            if letters.lower().endswith("hw") and len(tensors[key].shape) == len(letters)
        )
        outs, ins = (
            math.prod(sizes[letter] for letter in each if letter not in "hwHW") for each in (self.outs, self.ins)
        )
        return outs, ins, *next(kernels, ())


@dataclass(frozen=True)
class Start:
    """A tensor's initial values: zero, normal with standard deviation `spread`, or kaiming uniform (a = sqrt 5)."""

    shape: tuple[int, ...]
    how: Literal["zero", "normal", "kaiming"] = "zero"
    spread: float = 1.0


@dataclass(frozen=True)
class Product:
    """The tensors of a kind and their product.

    forms     sets of tensors that a layer can have
    change    (factors, shape of the weight) -> the change in that shape, without alpha / rank
    carrier   keys that a scalar may be multiplied into; the first one that a layer has is used
    starts    (layer, rank, kind's settings) -> {key: initialization}
    apply     (factors, x, layer) -> the layer's product of x and the change without building the change; None: it is built
    norm      (factors) -> norm of the change without alpha / rank, without building it; None: it is built
    bias      key of the bias' change; "" for kinds that do not change it
    recomputes   recompute the product in the backward pass instead of storing its intermediates, which are several times as large as
                 the weight or the layer's input
    """

    forms: tuple[Form, ...]
    change: Callable[[Factors, tuple[int, ...]], Tensor]
    carrier: tuple[str, ...]
    starts: Callable[[Any, int, Any], dict[str, Start]]
    apply: Callable[[Factors, Tensor, nn.Module], Tensor] | None = None
    norm: Callable[[Factors], Tensor] | None = None
    bias: str = ""
    recomputes: bool = False

    def form_of(self, tensors: Mapping[str, Any]) -> Form | None:
        """Return the form with exactly these keys, apart from alpha and scalar; None without one."""
        keys = tensors.keys() - {ALPHA, SCALAR}
        return next((form for form in self.forms if form.keys.keys() == keys), None)

    @property
    def has_ranks(self) -> bool:
        """Whether layers of some form have a rank, so that files have an alpha."""
        return any("r" in letters for form in self.forms for letters in form.keys.values())

    def ranked(self, tensors: Tensors) -> bool:
        """Return whether a layer has a rank, which it does not if all its matrices are full."""
        form = self.form_of(tensors)
        return form is not None and any("r" in letters for letters in form.keys.values())

    def size(self, tensors: Tensors) -> BlockSize:
        """Return rank and alpha of a layer in a file; a missing alpha means alpha = rank.

        Without a rank the scale is 1: both are the largest size of the tensors.
        """
        form = self.form_of(tensors)
        assert form is not None
        sizes = form.lengths(tensors)
        if not self.ranked(tensors):
            largest = max(sizes.values())
            return BlockSize(largest, float(largest))
        return ranked(sizes["r"], tensors)

    def weight_shape(self, tensors: Tensors) -> tuple[int, ...] | None:
        """Return the shape of the weight that a layer changes, as `Form.weight_shape`; None for unknown keys."""
        form = self.form_of(tensors)
        return form.weight_shape(tensors) if form is not None else None

    def flaw(self, name: str, tensors: Tensors) -> str:
        if wrong := number_error(name, tensors, ALPHA, SCALAR):
            return wrong
        form = self.form_of(tensors)
        if form is None:
            keys = tensors.keys() - {ALPHA, SCALAR}
            lacking = min(
                (form.keys.keys() - keys for form in self.forms if keys <= form.keys.keys()), key=len, default=None
            )
            return (
                f"{name} has no {sorted(lacking)[0]}" if lacking else f"{name} has tensors that do not belong together"
            )
        if not all(tensors[key].is_floating_point() for key in form.keys):
            return f"{name} has tensors that are not floating-point"
        try:
            form.lengths(tensors)
        except ValueError as key:
            return f"{name}.{key} has a shape that does not fit its other tensors"
        return ""

    def idle(self, tensors: Tensors) -> bool:
        """Return whether a layer of a file has no effect: a factor is zero, and the change of the bias is zero or missing."""
        factors = all(tensor.any() for key, tensor in tensors.items() if key not in (ALPHA, self.bias))
        return not factors and (self.bias not in tensors or not tensors[self.bias].any())

    def with_scalar(self, tensors: Tensors) -> dict[str, Tensor]:
        """Return the tensors without `scalar`, which is multiplied into the first key of `carrier`."""
        scaled = dict(tensors)
        scalar = scaled.pop(SCALAR, None)
        if scalar is not None:
            key = next(key for key in self.carrier if key in scaled)
            scaled[key] = scaled[key] * scalar.reshape(())
        return scaled


def tucker(core: Tensor, outs: Tensor, ins: Tensor) -> Tensor:
    """Return the weight [out, in, kh, kw] of a Tucker decomposition, as in LyCORIS.

    core: [rank, rank, kh, kw], outs: [rank, out], ins: [rank, in].
    """
    return torch.einsum("rqhw,ro,qi->oihw", core, outs, ins)


# -- the adapter


class ProductAdapter(ScaledAdapter):
    """An adapter whose change is the product of its parameters.

    product   the kind's tensors and their product
    weights   {key: float32 parameter}, with `scalar` if it is trained
    """

    def __init__(self, product: Product, name: str, module: nn.Module, tensors: Tensors, alpha: float):
        size, device = product.size(tensors), as_weight(module.weight).device
        super().__init__(name, module, size.rank, alpha if product.ranked(tensors) else size.alpha)
        self.product = product
        self.weights = {key: nn.Parameter(tensor.float().to(device)) for key, tensor in tensors.items()}

    @classmethod
    def fresh(
        cls, product: Product, target: Target, size: BlockSize, options: Settings | None, seed: int
    ) -> ProductAdapter:
        """Create an adapter without effect."""
        inits = product.starts(target.module, size.rank, options)
        if getattr(options, "use_scalar", False):
            inits[SCALAR] = Start(())
        tensors = {key: initial_tensor(init, target, key, seed) for key, init in inits.items()}
        return cls(product, target.name, target.module, tensors, size.alpha)

    @classmethod
    def from_tensors(cls, product: Product, target: Target, tensors: Tensors) -> ProductAdapter | None:
        """Return the adapter of a file with its scalar multiplied in; None if the shapes do not fit the layer."""
        form, module = product.form_of(tensors), target.module
        assert form is not None
        if not form.fits(tensors, tuple(as_weight(module.weight).shape)):
            return None
        if product.bias in form.keys and module.bias is None:
            return None
        values = {key: tensor.float() for key, tensor in tensors.items() if key != ALPHA}
        return cls(product, target.name, module, product.with_scalar(values), product.size(tensors).alpha)

    def parameters(self) -> list[tuple[nn.Parameter, str]]:
        return [(weight, "plain") for weight in self.weights.values()]

    def add_to(self, y: Tensor, x: Tensor) -> Tensor:
        """Return y + strength * product of x and the change, with dropout of the product in training."""
        z, factor = self.drop_hidden(self._checkpointed_output(x.to(y.dtype)), self.name)
        return torch.add(y, z, alpha=self.strength * factor)

    def _checkpointed_output(self, x: Tensor) -> Tensor:
        """Return the layer's product of x and the change, without alpha / rank; with gradients, checkpointed if the kind recomputes."""
        trains = torch.is_grad_enabled() and any(weight.requires_grad for weight in self.weights.values())
        if trains and self.product.recomputes and not torch.compiler.is_compiling():
            from torch.utils.checkpoint import checkpoint

            z: Tensor = checkpoint(self._output_of_change, x, use_reentrant=False, preserve_rng_state=False)
            return z
        return self._output_of_change(x)

    def _output_of_change(self, x: Tensor) -> Tensor:
        """Return the layer's product of x and the change, without alpha / rank."""
        factors = self._factors(x.dtype)
        if self.product.apply is not None:
            return self.product.apply(factors, x, self.module)
        change = self.product.change(factors, tuple(as_weight(self.module.weight).shape))
        return layer_output(self.module, x, change, factors.get(self.product.bias))

    def _factors(self, dtype: torch.dtype) -> Factors:
        """Return the tensors in this dtype, with the scalar multiplied in."""
        # Detached without gradients: matmul would sum parameters in another order, and samples differ from Generate's.
        trains = torch.is_grad_enabled()
        weights = {
            key: self.cast(weight, dtype) if trains else weight.detach().to(dtype)
            for key, weight in self.weights.items()
        }
        return self.product.with_scalar(weights)

    def delta(self) -> Tensor:
        """Return the change in the weight's shape, float32, with alpha / rank."""
        with torch.no_grad():
            shape = tuple(as_weight(self.module.weight).shape)
            return self.product.change(self._factors(torch.float32), shape) * self.scale

    def norm(self) -> Tensor:
        """Return the Frobenius norm of the change, without building it if the kind can."""
        if self.product.norm is None:
            return super().norm()
        with torch.no_grad():
            return self.product.norm(self._factors(torch.float32)) * abs(self.scale)

    def bias_delta(self) -> Tensor | None:
        """Return the change of the bias, for kinds that have one, times alpha / rank."""
        bias = self.weights.get(self.product.bias)
        return bias.detach().float() * self.scale if bias is not None else super().bias_delta()

    def tensors(self) -> dict[str, Tensor]:
        """Return the parameters, live, and alpha if layers of this kind have a rank, by their keys in files."""
        tensors = {key: weight.detach() for key, weight in self.weights.items()}
        return tensors | ({ALPHA: self.alpha_in_file()} if self.product.has_ranks else {})

    def saved(self) -> dict[str, Tensor]:
        return self.product.with_scalar(self.tensors())

    def misfit(self, tensors: Tensors) -> str:
        current, form = self.product.form_of(self.weights), self.product.form_of(tensors)
        if current is None or form is None or not form.fits(tensors, tuple(as_weight(self.module.weight).shape)):
            return "has a different shape"
        rank = self.product.size(tensors).rank
        if form is current and form.lengths(tensors) == current.lengths(self.weights):
            return ""
        return f"has rank {rank}, not {self.rank}" if rank != self.rank else "is made of other parts"

    def take(self, tensors: Tensors) -> None:
        """Load the tensors and alpha of a file; its scalar is multiplied in unless this adapter trains one."""
        values = dict(tensors) if SCALAR in self.weights else self.product.with_scalar(tensors)
        with torch.no_grad():
            for key, weight in self.weights.items():
                weight.copy_(values[key].reshape(weight.shape) if key in values else torch.ones(()))
        self.take_alpha(self.product.size(tensors).alpha)

    def shorten(self, ratio: Tensor) -> None:
        """Multiply the change by `ratio`: each of n factors by its n-th root, the bias by all of it."""
        factors = len(self.weights.keys() - {self.product.bias})
        for key, weight in self.weights.items():
            weight.mul_(ratio if key == self.product.bias else ratio ** (1 / factors))


def layer_output(module: nn.Module, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Return the layer's output for x with another weight of its shape, and with `bias` in place of its bias."""
    if isinstance(module, nn.Conv2d):
        return nn.functional.conv2d(x, weight, bias, module.stride, module.padding, module.dilation, module.groups)
    return nn.functional.linear(x, weight, bias)


def initial_tensor(init: Start, target: Target, key: str, seed: int) -> Tensor:
    """Return an initialized float32 tensor on the layer's device.

    The draw is addressed by seed, layer and key, so it does not depend on which other layers train.
    """
    weight = as_weight(target.module.weight)
    tensor = torch.zeros(init.shape, dtype=torch.float32, device="meta" if weight.is_meta else "cpu")
    if not weight.is_meta and init.how != "zero":
        drawn = generator(seed, "network_init", target.name, key)
        if init.how == "normal":
            tensor.normal_(0.0, init.spread, generator=drawn)
        else:
            nn.init.kaiming_uniform_(tensor, a=math.sqrt(5), generator=drawn)
    return tensor.to(weight.device)
