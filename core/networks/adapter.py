"""`Adapter`: the change of one module; and the forward pass of a module with any number of them."""

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

    Parameters are float32 in the shapes of the kind's files; products run in the dtype of the module's output. The base
    weight must not be read unless the kind sets `needs_base_weight`: it may be packed or sharded.

    rank, alpha     its size, for kinds that have one
    saved_alpha     the alpha written to files, if not the one in use: sd-scripts' behavior with network_weights
    bias            a change of the layer's bias, stored next to it in the file (core/networks/bias_norm.py), without
                    alpha / rank
    multiplier      strength of its network
    casts           its network's parameters in the compute dtype
    moment          (step, micro-batch) in training; None: in use
    """

    def __init__(self, name: str, module: nn.Module, rank: int = 1, alpha: float = 1.0):
        self.name, self.module = name, module
        self.rank, self.alpha = rank, alpha
        self.saved_alpha: float | None = None
        self.bias: Tensor | None = None
        self.multiplier = 1.0
        self.dropout: Dropout | None = None
        self.casts: CastCache | None = None
        self.moment: tuple[int, int] | None = None

    # -- implemented by each kind

    @abstractmethod
    def parameters(self) -> list[tuple[nn.Parameter, str]]:
        """(parameter, role): the role `PLUS` gets LoRA+'s ratio, other roles do not."""

    @abstractmethod
    def add_to(self, y: Tensor, x: Tensor) -> Tensor:
        """The module's output y with this change, as a new tensor. x is the module's input before `enters`."""

    @abstractmethod
    def tensors(self) -> dict[str, Tensor]:
        """The tensors of a training state by key below the module's name; live, not copied. Files contain them too,
        unless `saved` differs, with floating-point ones cast to the file's dtype; read them in any dtype, since other
        programs cast all."""

    @abstractmethod
    def misfit(self, tensors: Mapping[str, Tensor]) -> str:
        """Why the tensors of a file cannot be loaded; "" if they can."""

    @abstractmethod
    def take(self, tensors: Mapping[str, Tensor]) -> None:
        """Load tensors that fit. Their alpha is used, unless `saved_alpha` is set."""

    @abstractmethod
    def shorten(self, ratio: Tensor) -> None:
        """Multiply the change by `ratio`, 0-d on the device (max weight norm)."""

    # -- defaults for most kinds

    def alpha_in_file(self) -> Tensor:
        return torch.tensor(self.alpha if self.saved_alpha is None else self.saved_alpha, dtype=torch.float32)

    def take_alpha(self, alpha: float) -> None:
        """Use a file's alpha, unless `saved_alpha` is set."""
        if self.saved_alpha is None:
            self.alpha = alpha
        else:
            self.saved_alpha = alpha

    def delta(self) -> Tensor:
        """The change of the weight in its shape, float32, without the multiplier, for kinds that add one. Kinds that
        rotate or scale the weight have only `merged`."""
        raise TypeError(f"the change of {self.name} depends on the weight")

    def merged(self, weight: Tensor) -> Tensor:
        """`weight` with this change at its multiplier. weight: float32, including the changes merged before"""
        return weight + self.delta() * self.multiplier

    def to(self, dtype: torch.dtype) -> None:
        """Cast the parameters to this dtype."""
        for parameter, _ in self.parameters():
            parameter.data = parameter.data.to(dtype)

    def cast(self, weight: Tensor, dtype: torch.dtype) -> Tensor:
        """A parameter in this dtype, differentiable."""
        from core.networks.low_rank import cast_weight

        return cast_weight(weight, dtype, self.casts)

    def enters(self, x: Tensor) -> Tensor:
        """The input x as this change alters it for the module and the adapters before it."""
        return x

    def below(self) -> Iterator[Adapter]:
        """The adapters that act on the module before this one."""
        for adapter in self.module.__dict__.get(STACK, ()):
            if self in (adapter, getattr(adapter, "limited", None)):  # limited: to a region
                return
            if not adapter.left_out:
                yield adapter

    def without_bias(self, y: Tensor) -> Tensor:
        """The output y below this change, minus the bias in it."""
        bias = self.module.bias
        biases = [bias] if isinstance(bias, torch.Tensor) else []
        for adapter in self.below():
            change = adapter.bias_delta()
            biases += [change * adapter.multiplier] if change is not None else []
        for each in biases:
            y = y - over_channels(each, y, self.module)
        return y

    def saved(self) -> dict[str, Tensor]:
        """The tensors for checkpoint files, if they differ from a training state's (`tensors`): other programs do not
        know `scalar`, for example."""
        return self.tensors()

    def bias_delta(self) -> Tensor | None:
        """The change of the layer's bias, like `delta`; None if it does not change."""
        return self.bias

    def changed(self, y: Tensor, x: Tensor) -> Tensor:
        """`add_to`, plus the change of the bias."""
        return self.with_bias(self.add_to(y, x))

    def with_bias(self, y: Tensor) -> Tensor:
        return y if self.bias is None else y + over_channels(self.bias * self.multiplier, y, self.module)

    def factors(self) -> tuple[Tensor, Tensor] | None:
        """up [out, rank] and down [rank, in * kernel] in float32, whose product times alpha / rank is the change; None
        if it is no such product."""
        return None

    def norm(self) -> Tensor:
        """Frobenius norm of the change, 0-d."""
        return self.delta().norm()

    def whole(self, x: Tensor) -> Tensor | None:
        """The module's output with this change in one product, if that is faster; None: compute a sum."""
        return None

    @property
    def file_name(self) -> str:
        """The layer's name in its file."""
        return self.name

    @property
    def strength(self) -> float:
        """The factor of the change in the module's output."""
        return self.multiplier

    @property
    def left_out(self) -> bool:
        """Whether module dropout currently drops this change."""
        return self.strength == 0.0 or (self.dropout is not None and self.dropout.leaves_out(self.name))


class ScaledAdapter(Adapter):
    """An adapter whose change is multiplied by alpha / rank."""

    @property
    def scale(self) -> float:
        return self.alpha / self.rank

    @property
    def strength(self) -> float:
        return self.multiplier * self.scale

    def thinned(self, hidden: Tensor, name: str) -> tuple[Tensor, float]:
        """Hidden activations after dropout, and the factor that compensates for it. name: of the random draw"""
        if self.dropout is None or not self.dropout.thins:
            return hidden, 1.0
        return self.dropout.thinned(hidden, name, 1 if isinstance(self.module, nn.Conv2d) else -1)


def forward_with_adapters(module: nn.Module, x: Tensor) -> Tensor:
    """The forward pass of an adapted module: its own, then the adapters in the order they were attached, each on the
    output of the ones before: f_n(x) = add_to(f_n-1(enters(x)), x)."""
    return forward_through(module, [adapter for adapter in module.__dict__[STACK] if not adapter.left_out], x)


def forward_through(module: nn.Module, adapters: list[Adapter], x: Tensor) -> Tensor:
    """`forward_with_adapters` with only these adapters."""
    inputs = [x]
    for adapter in reversed(adapters):
        inputs.append(adapter.enters(inputs[-1]))
    kind: Any = kind_of(module)
    x = inputs.pop()
    y = adapters[0].whole(x) if adapters and x is inputs[-1] else None
    if y is None:
        y = kind.forward(module, x)
    else:
        y, adapters = adapters[0].with_bias(y), adapters[1:]
        inputs.pop()
    for adapter in adapters:
        y = adapter.changed(y, inputs.pop())
    return y


def over_channels(values: Tensor, like: Tensor, module: nn.Module) -> Tensor:
    """One value for each channel, in the shape and dtype of an activation of the module: [..., C] or [B, C, H, W]."""
    return values.to(like).view(-1, 1, 1) if isinstance(module, nn.Conv2d) else values.to(like).view(-1)


def as_weight(value: Any) -> Tensor:
    """A module's weight, for type checkers."""
    assert isinstance(value, torch.Tensor)
    return value


def fitted(tensor: Tensor, shape: Sequence[int], module: nn.Module) -> Tensor:
    """A float32 copy of a file's tensor in this shape, on the module's device."""
    device = as_weight(module.weight).device
    return torch.empty(shape, device=device, dtype=torch.float32).copy_(tensor.reshape(shape))


# -- modules with a replaced forward pass: a subclass of their class. A `forward` assigned to each would work too, but
# torch.compile treats each as separate code: 70 equal blocks would be compiled 70 times instead of once.

_DERIVED: dict[type, type] = {}


def kind_of(module: nn.Module) -> Any:
    """The module's original class, adapted or not."""
    return getattr(type(module), "adapts", type(module))


def adapt(module: nn.Module, forward: Callable[..., Any]) -> None:
    """Make the module compute `forward(module, ...)`, the same function for every module. Adapting twice has no further effect."""
    kind = kind_of(module)
    if kind not in _DERIVED:
        _DERIVED[kind] = type(f"Adapted{kind.__name__}", (kind,), {"forward": forward, "adapts": kind})
    module.__class__ = _DERIVED[kind]


def restore(module: nn.Module) -> None:
    """Restore the module's original class."""
    module.__class__ = kind_of(module)
