"""`Adapter`, the trained change of one layer, and the forward pass of a layer with any number of adapters."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from core.record.lazy_torch import Tensor, nn, torch

if TYPE_CHECKING:
    from core.networks.dropout import Dropout
    from core.networks.low_rank import CastCache

STACK = "_adapters"
PLUS = "plus"  # the role of weights that train at LoRA+'s higher rate


class Adapter(ABC):
    """The change of one Linear or Conv2d. Each network kind (core/networks/kinds) subclasses it.

    Parameters are float32 in the shapes of the kind's files; products run in the dtype of the layer's output. The base weight must not be
    read unless the kind sets `needs_base_weight`: it may be packed or sharded.

    name            kohya's layer name
    module          the layer; calls its input x, its output y
    rank, alpha     1 for kinds without a rank
    saved_alpha     alpha to write to files, if it differs from `alpha`: sd-scripts' behavior with network_weights; else None
    bias            change of the layer's bias [out], added without alpha / rank (core/networks/bias_norm.py); None for no change
    multiplier      strength of the network
    dropout         of the network; None without dropout
    casts           cache of the network's parameters in the compute dtype; None: each use casts
    micro_step          (step, micro-batch) during training; None: the network is used, not trained
    """

    def __init__(self, name: str, module: nn.Module, rank: int = 1, alpha: float = 1.0):
        self.name, self.module = name, module
        self.rank, self.alpha = rank, alpha
        self.saved_alpha: float | None = None
        self.bias: Tensor | None = None
        self.multiplier = 1.0
        self.dropout: Dropout | None = None
        self.casts: CastCache | None = None
        self.micro_step: tuple[int, int] | None = None

    # -- implemented by each kind

    @abstractmethod
    def parameters(self) -> list[tuple[nn.Parameter, str]]:
        """Return [(parameter, role)]. The role `PLUS` trains at LoRA+'s higher learning rate, any other role at the usual one."""

    @abstractmethod
    def add_to(self, y: Tensor, x: Tensor) -> Tensor:
        """Return the layer's output `y` with this change, as a new tensor.

        y   output with the changes of the adapters attached before
        x   the layer's input before `changed_input` of this adapter
        """

    @abstractmethod
    def tensors(self) -> dict[str, Tensor]:
        """Return {key below the layer's name: tensor} for a training state; live tensors, not copies.

        Files get the same tensors unless `saved` differs, with floats in the file's dtype.
        """

    @abstractmethod
    def misfit(self, tensors: Mapping[str, Tensor]) -> str:
        """Return why the tensors of a file cannot be loaded ("has a different shape", after the layer's name); "" if they can."""

    @abstractmethod
    def take(self, tensors: Mapping[str, Tensor]) -> None:
        """Load the tensors of a file, which must fit (`misfit`), and their alpha unless `saved_alpha` is set."""

    @abstractmethod
    def shorten(self, ratio: Tensor) -> None:
        """Multiply the change by `ratio`, 0-d on the layer's device, for the max weight norm."""

    # -- defaults for most kinds

    def alpha_in_file(self) -> Tensor:
        """Return the alpha to write to files, float32 0-d: `saved_alpha` if it is set."""
        return torch.tensor(self.alpha if self.saved_alpha is None else self.saved_alpha, dtype=torch.float32)

    def take_alpha(self, alpha: float) -> None:
        """Use a file's alpha; if `saved_alpha` is set, only save it."""
        if self.saved_alpha is None:
            self.alpha = alpha
        else:
            self.saved_alpha = alpha

    def delta(self) -> Tensor:
        """Return the change of the weight: float32 in the weight's shape, without the multiplier.

        Raises TypeError for kinds that rotate or scale the weight, which only have `merged`.
        """
        raise TypeError(f"the change of {self.name} depends on the weight")

    def merged(self, weight: Tensor) -> Tensor:
        """Return `weight` with this change at its multiplier.
        weight: float32, with the changes that were merged before"""
        return weight + self.delta() * self.multiplier

    def to(self, dtype: torch.dtype) -> None:
        """Cast the parameters to this dtype in place."""
        for parameter, _ in self.parameters():
            parameter.data = parameter.data.to(dtype)

    def cast(self, weight: Tensor, dtype: torch.dtype) -> Tensor:
        """Return a parameter in this dtype, differentiable."""
        from core.networks.low_rank import cast_weight

        return cast_weight(weight, dtype, self.casts)

    def changed_input(self, x: Tensor) -> Tensor:
        """Return the input for the layer and the adapters attached before: `x`, unless this kind changes the input."""
        return x

    def earlier_adapters(self) -> Iterator[Adapter]:
        """Yield the active adapters that were attached to the layer before this one."""
        for adapter in self.module.__dict__.get(STACK, ()):
            if self in (adapter, getattr(adapter, "limited", None)):  # limited: to a region
                return
            if not adapter.is_inactive:
                yield adapter

    def without_bias(self, y: Tensor) -> Tensor:
        """Return the output `y` of the layer and the adapters attached before, minus the bias that they add."""
        bias = self.module.bias
        biases = [bias] if isinstance(bias, torch.Tensor) else []
        for adapter in self.earlier_adapters():
            change = adapter.bias_delta()
            biases += [change * adapter.multiplier] if change is not None else []
        for each in biases:
            y = y - over_channels(each, y, self.module)
        return y

    def saved(self) -> dict[str, Tensor]:
        """Return the tensors for checkpoint files, if other programs need other ones than `tensors` (without `scalar`, for example)."""
        return self.tensors()

    def bias_delta(self) -> Tensor | None:
        """Return the change of the layer's bias [out], without the multiplier; None if the bias does not change."""
        return self.bias

    def changed(self, y: Tensor, x: Tensor) -> Tensor:
        """Return `add_to(y, x)` plus the change of the bias."""
        return self.with_bias(self.add_to(y, x))

    def with_bias(self, y: Tensor) -> Tensor:
        """Add the change of the bias to the layer's output."""
        return y if self.bias is None else y + over_channels(self.bias * self.multiplier, y, self.module)

    def factors(self) -> tuple[Tensor, Tensor] | None:
        """Return up [out, rank] and down [rank, in * kernel], float32, with up @ down * alpha / rank the change; None for other kinds."""
        return None

    def norm(self) -> Tensor:
        """Return the Frobenius norm of the change, 0-d."""
        return self.delta().norm()

    def fused_output(self, x: Tensor) -> Tensor | None:
        """Return the layer's output with this change, without `bias`, computed in one product; None if a sum is as fast."""
        return None

    @property
    def file_name(self) -> str:
        """The layer's name in files of this kind."""
        return self.name

    @property
    def strength(self) -> float:
        """The factor of the change in the layer's output."""
        return self.multiplier

    @property
    def is_inactive(self) -> bool:
        """Whether this change has no effect now: its strength is 0, or module dropout drops it."""
        return self.strength == 0.0 or (self.dropout is not None and self.dropout.drops_layer(self.name))


class ScaledAdapter(Adapter):
    """An adapter whose change is multiplied by alpha / rank."""

    @property
    def scale(self) -> float:
        """alpha / rank."""
        return self.alpha / self.rank

    @property
    def strength(self) -> float:
        """The factor of the change in the layer's output: multiplier * alpha / rank."""
        return self.multiplier * self.scale

    def drop_hidden(self, hidden: Tensor, name: str) -> tuple[Tensor, float]:
        """Apply dropout and rank dropout to hidden activations; return (activations, the factor that compensates for it).

        hidden   [..., rank] for a Linear, [B, rank, H, W] for a Conv2d
        name     addresses the random draw
        """
        if self.dropout is None or not self.dropout.drops_values:
            return hidden, 1.0
        return self.dropout.drop_values(hidden, name, 1 if isinstance(self.module, nn.Conv2d) else -1)


def forward_with_adapters(module: nn.Module, x: Tensor) -> Tensor:
    """Forward pass of an adapted layer: f_n(x) = add_to(f_n-1(changed_input(x)), x) for its adapters in the order they were attached."""
    return forward_through(module, [adapter for adapter in module.__dict__[STACK] if not adapter.is_inactive], x)


def forward_through(module: nn.Module, adapters: list[Adapter], x: Tensor) -> Tensor:
    """Forward pass of an adapted layer with only these adapters, as `forward_with_adapters`."""
    inputs = [x]
    for adapter in reversed(adapters):
        inputs.append(adapter.changed_input(inputs[-1]))
    kind: Any = kind_of(module)
    x = inputs.pop()
    y = adapters[0].fused_output(x) if adapters and x is inputs[-1] else None
    if y is None:
        y = kind.forward(module, x)
    else:
        y, adapters = adapters[0].with_bias(y), adapters[1:]
        inputs.pop()
    for adapter in adapters:
        y = adapter.changed(y, inputs.pop())
    return y


def over_channels(values: Tensor, like: Tensor, module: nn.Module) -> Tensor:
    """Reshape `values` [C] so that they broadcast over the layer's output `like`, and cast them to its dtype and device.

    Returns [C] for a Linear ([..., C]) and [C, 1, 1] for a Conv2d ([B, C, H, W]).
    """
    return values.to(like).view(-1, 1, 1) if isinstance(module, nn.Conv2d) else values.to(like).view(-1)


def as_weight(value: Any) -> Tensor:
    """Return the same tensor, typed for type checkers."""
    assert isinstance(value, torch.Tensor)
    return value


def fitted(tensor: Tensor, shape: Sequence[int], module: nn.Module) -> Tensor:
    """Return a float32 copy of a file's tensor, reshaped to `shape`, on the layer's device."""
    device = as_weight(module.weight).device
    return torch.empty(shape, device=device, dtype=torch.float32).copy_(tensor.reshape(shape))


# -- modules with a replaced forward pass: a subclass of their class. A `forward` assigned to each would work too, but
# torch.compile treats each as separate code: 70 equal blocks would be compiled 70 times instead of once.

_DERIVED: dict[type, type] = {}


def kind_of(module: nn.Module) -> Any:
    """Return the module's class before `adapt`."""
    return getattr(type(module), "adapts", type(module))


def adapt(module: nn.Module, forward: Callable[..., Any]) -> None:
    """Make the module compute `forward(module, ...)`; no effect on a module that is already adapted.
    forward: must be the same function for all modules of a class"""
    kind = kind_of(module)
    if kind not in _DERIVED:
        _DERIVED[kind] = type(f"Adapted{kind.__name__}", (kind,), {"forward": forward, "adapts": kind})
    module.__class__ = _DERIVED[kind]


def restore(module: nn.Module) -> None:
    """Undo `adapt`."""
    module.__class__ = kind_of(module)
