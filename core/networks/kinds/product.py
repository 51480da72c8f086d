"""Kinds whose change of the weight is a product of their parameters (LoHa, LoKr, LoCon with Tucker ...). Without torch.

A kind says how the dimensions of its tensors belong together (`Form`), how they multiply and how they start (`Product`); keys,
checks of files, training and merging follow. LyCORIS' `scalar`, one more number that the change is multiplied by, trains
next to them and is multiplied into a tensor in files, as LyCORIS 4 writes them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING, Any, Literal

from core.networks.kinds.keys import ALPHA, is_number
from core.settings.blocks import BlockSize

if TYPE_CHECKING:
    from torch import Tensor, nn

SCALAR = "scalar"
Factors = Mapping[str, "Tensor"]  # of one layer by key, in the dtype that is computed in; the scalar is multiplied in


@dataclass(frozen=True)
class Form:
    """Tensors that a layer of a kind can have.

    keys   key -> a letter for each dimension: equal letters are equal sizes, r is the rank, h and w the kernel's, 1 is one;
           h, w and 1 may be missing at the end, so that a 1x1 convolution fits a Linear and vice versa; H and W may not
    outs   the letters whose sizes multiply to the layer's output width
    ins    those that multiply to its input width times its kernel's sizes
    """

    keys: Mapping[str, str]
    outs: str
    ins: str

    def lengths(self, tensors: Mapping[str, Tensor]) -> dict[str, int]:
        """The size of each letter. Raises ValueError with the key that differs."""
        found: dict[str, int] = {"1": 1}
        for key, letters in self.keys.items():
            shape = tensors[key].shape
            if len(shape) > len(letters) or letters[len(shape) :].strip("hw1"):
                raise ValueError(key)
            for letter, length in zip(letters, (*shape, *(1 for _ in letters)), strict=False):
                if found.setdefault(letter, length) != length or not length:
                    raise ValueError(key)
        return found

    def fits(self, tensors: Mapping[str, Tensor], shape: tuple[int, ...]) -> bool:
        """Whether they are the change of a weight of this shape."""
        try:
            found = self.lengths(tensors)
        except ValueError:
            return False
        kernel = tuple(found[letter] for letter in "hwHW" if letter in found)
        outs, ins = prod(found[letter] for letter in self.outs), prod(found[letter] for letter in self.ins)
        return (outs, ins) == (shape[0], prod(shape[1:])) and kernel in ((), (1, 1), (*shape[2:],))

    def weight_shape(self, tensors: Mapping[str, Tensor]) -> tuple[int, ...] | None:
        """The shape of the weight that they change, None where they do not belong together; a kernel that no tensor has as
        dimensions is part of the input."""
        try:
            found = self.lengths(tensors)
        except ValueError:
            return None
        kernels = (
            tensors[key].shape[-2:]
            for key, letters in self.keys.items()
            if letters.lower().endswith("hw") and len(tensors[key].shape) == len(letters)
        )
        outs, ins = (prod(found[letter] for letter in each if letter not in "hwHW") for each in (self.outs, self.ins))
        return outs, ins, *next(kernels, ())


@dataclass(frozen=True)
class Start:
    """How a tensor starts: normal with this spread, kaiming uniform (a = sqrt 5), zero or one."""

    shape: tuple[int, ...]
    how: Literal["zero", "normal", "kaiming"] = "zero"
    spread: float = 1.0


@dataclass(frozen=True)
class Product:
    """A kind's tensors and their product.

    forms     those of a layer; the first whose keys it has is its own
    change    (factors, shape of the weight) -> the change in that shape, without alpha / rank
    carrier   the keys that a scalar is multiplied into: the first that a layer has
    starts    (layer, rank, own settings) -> how each tensor starts
    apply     (factors, x, layer) -> the layer's product of x and the change, where there is a faster way than building it
    norm      (factors) -> the norm of the change without alpha / rank, where there is a faster way than building it
    bias      the key of the bias' change, for kinds that change it
    recomputes   the backward pass computes the product again instead of keeping what it is made from: as large as the weight
                 or the layer's input, several times
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
        """The form that a layer with these keys has."""
        keys = tensors.keys() - {ALPHA, SCALAR}
        return next((form for form in self.forms if form.keys.keys() == keys), None)

    def key_sets(self) -> tuple[tuple[str, ...], ...]:
        return tuple(tuple(form.keys) for form in self.forms)

    @property
    def has_ranks(self) -> bool:
        """Whether layers of some form have a rank, and files an alpha."""
        return any("r" in letters for form in self.forms for letters in form.keys.values())

    def ranked(self, tensors: Mapping[str, Tensor]) -> bool:
        """Whether a layer has a rank: not where all its matrices are whole."""
        form = self.form_of(tensors)
        return form is not None and any("r" in letters for letters in form.keys.values())

    def size(self, tensors: Mapping[str, Tensor]) -> BlockSize:
        """Rank and alpha of a layer in a file: without an alpha it equals the rank. Where all matrices are whole, the scale is 1:
        both are given as the largest size."""
        form = self.form_of(tensors)
        assert form is not None
        found = form.lengths(tensors)
        if not self.ranked(tensors):
            largest = max(found.values())
            return BlockSize(largest, float(largest))
        return BlockSize(found["r"], float(tensors[ALPHA]) if ALPHA in tensors else float(found["r"]))

    def weight_shape(self, tensors: Mapping[str, Tensor]) -> tuple[int, ...] | None:
        """The shape of the weight that a layer changes; kernels may be flattened into its input."""
        form = self.form_of(tensors)
        return form.weight_shape(tensors) if form is not None else None

    def flaw(self, name: str, tensors: Mapping[str, Tensor]) -> str:
        """What is wrong with a layer of a file."""
        for key in (ALPHA, SCALAR):
            if key in tensors and not is_number(tensors[key]):
                return f"{name}.{key} is not a number"
        form = self.form_of(tensors)
        if form is None:
            given = tensors.keys() - {ALPHA, SCALAR}
            lacking = min(
                (form.keys.keys() - given for form in self.forms if given <= form.keys.keys()), key=len, default=None
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

    def idle(self, tensors: Mapping[str, Tensor]) -> bool:
        """Whether a layer of a file has no effect: a factor is zero, and so is the bias' change."""
        factors = all(tensor.any() for key, tensor in tensors.items() if key not in (ALPHA, self.bias))
        return not factors and (self.bias not in tensors or not tensors[self.bias].any())

    def with_scalar(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The tensors with their scalar multiplied into one of them."""
        found = dict(tensors)
        scalar = found.pop(SCALAR, None)
        if scalar is not None:
            key = next(key for key in self.carrier if key in found)
            found[key] = found[key] * scalar.reshape(())
        return found


def tucker(core: Tensor, outs: Tensor, ins: Tensor) -> Tensor:
    """[rank, rank, kh, kw] with [rank, out] and [rank, in] -> [out, in, kh, kw] (Tucker decomposition, as in LyCORIS)."""
    import torch

    return torch.einsum("rqhw,ro,qi->oihw", core, outs, ins)
