"""LoRA (Hu et al. 2021, arXiv:2106.09685) in kohya's file format, which LoRA-FA and DyLoRA share.

On Linear layers and 1x1 convolutions (LoRA-LierLa), or on 3x3 convolutions too (LoRA-C3Lier, also called LoCon).

<name>.lora_down.weight [r, in(, kh, kw)]    <name>.lora_up.weight [out, r(, 1, 1)]    <name>.alpha, a number

    y = W x + multiplier * scale * up(down(x)),   scale = alpha / rank; a missing alpha means alpha = r

A convolution's down has the layer's stride and padding. Both are cast to the dtype that the layer computes in
(core/networks/low_rank.py).
"""

from __future__ import annotations

import json
import math
from collections.abc import Collection
from typing import TYPE_CHECKING, Any, Self

from core import extensions
from core.formats.lora.names import ALPHA, DOWN, UP, group_by_module
from core.networks.adapter import PLUS, ScaledAdapter, as_weight, fitted, kind_of
from core.networks.kinds import NetworkKind, Tensors, number_error, ranked, register
from core.record.bounded_json import json_or_none
from core.record.draws import generator
from core.record.lazy_torch import Tensor, nn, torch
from core.settings.base import Settings
from core.settings.blocks import LISTS, SIDES, BlockSize
from core.settings.optimization.optimizer import LORA_PLUS

if TYPE_CHECKING:
    from core.families.targets import Target
    from core.networks.low_rank import CastCache
    from core.settings.job import TrainJob

MODULE = "networks.lora"


class LoraAdapter(ScaledAdapter):
    """A LoRA of one layer; `down` [rank, in(, kh, kw)] and `up` [out, rank(, 1, 1)] are float32 parameters in the file's shapes.

    Subclasses may store them otherwise: forward passes use `_weights`.
    """

    def __init__(self, name: str, module: nn.Module, down: Tensor, up: Tensor, alpha: float):
        super().__init__(name, module, down.shape[0], alpha)
        self._store(down, up)
        self._cast: tuple[Tensor, Tensor] | None = None

    def _store(self, down: Tensor, up: Tensor) -> None:
        """Store the matrices as parameters."""
        self._down, self._up = nn.Parameter(down), nn.Parameter(up)

    @property
    def down(self) -> Tensor:
        """The parameter [rank, in(, kh, kw)]."""
        return self._down

    @property
    def up(self) -> Tensor:
        """The parameter [out, rank(, 1, 1)]."""
        return self._up

    @classmethod
    def fresh(cls, name: str, module: nn.Module, rank: int, alpha: float, seed: int) -> Self:
        """Create a LoRA without effect: down uniform in +-1 / sqrt(fan in) (kaiming, a = sqrt 5), up zero.

        The draw is addressed by seed and layer name, so it does not depend on which other layers train.
        """
        weight = as_weight(module.weight)
        device = torch.device("meta" if weight.is_meta else "cpu")
        down = torch.empty((rank, *weight.shape[1:]), dtype=torch.float32, device=device)
        if not weight.is_meta:
            nn.init.kaiming_uniform_(down, a=math.sqrt(5), generator=generator(seed, "network_init", name))
        up = torch.zeros((weight.shape[0], rank, *(1 for _ in weight.shape[2:])), dtype=torch.float32, device=device)
        return cls(name, module, down.to(weight.device), up.to(weight.device), alpha)

    def parameters(self) -> list[tuple[nn.Parameter, str]]:
        return [(self._down, "plain"), (self._up, PLUS)]

    def add_to(self, y: Tensor, x: Tensor) -> Tensor:
        """Return y + strength * up(down(x)), with dropout in training."""
        if self.dropout is not None and self.dropout.drops_values:
            return self._add_with_dropout(y, x.to(y.dtype))
        down, up = self._weights(y.dtype)
        if isinstance(self.module, nn.Conv2d):
            return add_low_rank_conv(y, x.to(y.dtype), down, up, self.strength, self.module, self.casts)
        down, up = self.cast(down, y.dtype), self.cast(up, y.dtype)
        return add_low_rank_linear(y, x.to(y.dtype), down, up, self.strength)

    def _add_with_dropout(self, y: Tensor, x: Tensor) -> Tensor:
        """Return y + strength * up(dropout(down(x)))."""
        return add_dropped_product(self, y, x, *self._weights(y.dtype), self.name)

    def fused_output(self, x: Tensor) -> Tensor | None:
        """Return the Linear's output with this change as one autograd node; None for other layers, dtypes or with dropout."""
        has_dropout = self.dropout is not None and self.dropout.drops_values
        module = self.module
        if has_dropout or kind_of(module) is not nn.Linear or not isinstance(module, nn.Linear):
            return None
        if x.dtype != module.weight.dtype:
            return None
        return linear_with_low_rank(x, module, *self._weights(x.dtype), self.strength, self.casts)

    def _weights(self, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Return (down, up): the parameters in training, else a cached copy in `dtype`."""
        if self.down.requires_grad or self.up.requires_grad or self.down.dtype == dtype:
            return self.down, self.up
        if self._cast is None or (self._cast[0].dtype, self._cast[0].device) != (dtype, self.down.device):
            self._cast = (self.down.detach().to(dtype), self.up.detach().to(dtype))
        return self._cast

    def factors(self) -> tuple[Tensor, Tensor] | None:
        return self.up.detach().float().flatten(1), self.down.detach().float().flatten(1)

    def delta(self) -> Tensor:
        """Return alpha / rank * up @ down in the weight's shape, float32."""
        up, down = self.up.detach().float().flatten(1), self.down.detach().float().flatten(1)
        return (up @ down * self.scale).view(len(up), *self.down.shape[1:])

    def merged(self, weight: Tensor) -> Tensor:
        """Return `weight` with the change added by one matrix product, which need not build the change."""
        up, down = self.up.detach().float().flatten(1), self.down.detach().float().flatten(1)
        return torch.addmm(weight.flatten(1), up, down, alpha=self.multiplier * self.scale).view(weight.shape)

    def tensors(self) -> dict[str, Tensor]:
        return {DOWN: self.down.detach(), UP: self.up.detach(), ALPHA: self.alpha_in_file()}

    def misfit(self, tensors: Tensors) -> str:
        shaped = fit_shapes(tensors[DOWN], tensors[UP], self.module) if {DOWN, UP} <= tensors.keys() else None
        if shaped is None:
            return "has a different shape"
        return "" if shaped[0].shape == self.down.shape else f"has rank {shaped[0].shape[0]}, not {self.rank}"

    def take(self, tensors: Tensors) -> None:
        shaped = fit_shapes(tensors[DOWN], tensors[UP], self.module)
        assert shaped is not None
        self.put(*shaped)
        self.take_alpha(size(tensors).alpha)
        self._cast = None

    def put(self, down: Tensor, up: Tensor) -> None:
        """Overwrite the parameters' values, in their shapes."""
        with torch.no_grad():
            self._down.copy_(down)
            self._up.copy_(up)

    def shorten(self, ratio: Tensor) -> None:
        """Multiply each parameter by the square root of `ratio`, and so their product by `ratio`."""
        root = ratio.sqrt()
        for parameter, _ in self.parameters():
            parameter.mul_(root.to(parameter.dtype))

    def norm(self) -> Tensor:
        """Return the Frobenius norm of the change, 0-d float32, without building the change, which is as large as the layer's weight.

        It is the root of the sum over (up^T up) * (down down^T), two [rank, rank] matrices, in float64 where available.
        """
        wide = torch.float32 if self.down.device.type == "mps" else torch.float64  # not available on Apple devices
        down, up = self.down.detach().flatten(1).to(wide), self.up.detach().flatten(1).to(wide)
        square = ((up.t() @ up) * (down @ down.t())).sum()
        return (square.clamp(min=0).sqrt() * abs(self.scale)).float()


def fit_shapes(down: Tensor, up: Tensor, module: nn.Module) -> tuple[Tensor, Tensor] | None:
    """Return float32 copies of down and up in the shapes for this layer, on its device; None if they do not fit.

    Weights of a 1x1 convolution fit a Linear and vice versa.
    """
    weight = as_weight(module.weight)
    rank = down.shape[0]
    down_shape = (rank, *weight.shape[1:])
    up_shape = (weight.shape[0], rank, *(1 for _ in weight.shape[2:]))
    if down.numel() != math.prod(down_shape) or up.numel() != math.prod(up_shape) or up.shape[1] != rank:
        return None
    if down.dim() > 2 and weight.dim() > 2 and down.shape != down_shape:
        return None
    return fitted(down, down_shape, module), fitted(up, up_shape, module)


# -- frozen modules plus `strength * up(down(x))`


def add_dropped_product(adapter: ScaledAdapter, y: Tensor, x: Tensor, down: Tensor, up: Tensor, name: str) -> Tensor:
    """Return y + strength * up(dropout(down(x))), with dropout and rank dropout of the hidden activations.
    name: addresses the random draw"""
    down, up, module = adapter.cast(down, x.dtype), adapter.cast(up, x.dtype), adapter.module
    if isinstance(module, nn.Conv2d):
        hidden, factor = adapter.drop_hidden(hidden_conv(x, down, module), name)
        return torch.add(y, up_conv(hidden, up), alpha=adapter.strength * factor)
    hidden, factor = adapter.drop_hidden(hidden_linear(x, down), name)
    return torch.add(y, up_linear(hidden, up), alpha=adapter.strength * factor)


def linear_with_low_rank(
    x: Tensor, module: nn.Linear, down: Tensor, up: Tensor, strength: float, casts: CastCache | None = None
) -> Tensor:
    """Return W x + b + strength * up(down(x)) for a frozen Linear.

    x      [..., in], of the weight's dtype
    down   [rank, in], any floating dtype
    up     [out, rank], as down
    """
    if torch.compiler.is_compiling():  # torch.compile generates a backward pass itself
        return add_low_rank_linear(nn.functional.linear(x, module.weight, module.bias), x, down, up, strength)
    from core.networks.low_rank import LinearWithLowRank

    y: Tensor = LinearWithLowRank.apply(x, module.weight, module.bias, down, up, strength, casts)
    return y


def add_low_rank_linear(y: Tensor, x: Tensor, down: Tensor, up: Tensor, strength: float) -> Tensor:
    """Return y + strength * up(down(x)) for a Linear's output y [..., out], in y's dtype.

    x: [..., in], down: [rank, in], up: [out, rank].
    """
    return torch.add(y, up_linear(hidden_linear(x, down), up), alpha=strength)


def add_low_rank_conv(
    y: Tensor,
    x: Tensor,
    down: Tensor,
    up: Tensor,
    strength: float,
    conv: nn.Conv2d,
    casts: CastCache | None = None,
) -> Tensor:
    """Return y + strength * up(down(x)) for the output y [B, out, h, w] of the convolution `conv`, with x [B, in, H, W].

    down [rank, in, kh, kw] has `conv`'s stride, padding and dilation, up [out, rank, 1, 1] is a 1x1 convolution.
    """
    compiling = torch.compiler.is_compiling()
    if (
        not compiling
        and conv.kernel_size == conv.stride == (1, 1)
        and y.is_contiguous(memory_format=torch.channels_last)
    ):
        from core.networks.low_rank import AddLowRankOverChannels

        sum_: Tensor = AddLowRankOverChannels.apply(y, x, down, up, strength, casts)
        return sum_
    from core.networks.low_rank import cast_weight

    down, up = cast_weight(down, x.dtype, casts), cast_weight(up, x.dtype, casts)
    return torch.add(y, up_conv(hidden_conv(x, down, conv), up), alpha=strength)


def hidden_linear(x: Tensor, down: Tensor) -> Tensor:
    """Return down(x): [..., in] -> [..., rank], in x's dtype."""
    return nn.functional.linear(x, down.to(x.dtype))


def up_linear(hidden: Tensor, up: Tensor) -> Tensor:
    """Return up(hidden): [..., rank] -> [..., out], in hidden's dtype."""
    return nn.functional.linear(hidden, up.to(hidden.dtype))


def hidden_conv(x: Tensor, down: Tensor, conv: nn.Conv2d) -> Tensor:
    """Return down(x): [B, in, H, W] -> [B, rank, h, w], in x's dtype, with `conv`'s stride, padding and dilation."""
    return nn.functional.conv2d(x, down.to(x.dtype), None, conv.stride, conv.padding, conv.dilation)


def up_conv(hidden: Tensor, up: Tensor) -> Tensor:
    """Return up(hidden), a 1x1 convolution: [B, rank, h, w] -> [B, out, h, w], in hidden's dtype."""
    return nn.functional.conv2d(hidden, up.to(hidden.dtype))


# -- files


def size(tensors: Tensors) -> BlockSize:
    """Return rank and alpha of a layer in a file."""
    return ranked(tensors[DOWN].shape[0], tensors)


def flaw(name: str, tensors: Tensors) -> str:
    if wrong := number_error(name, tensors):
        return wrong
    for key, counterpart in ((DOWN, UP), (UP, DOWN)):
        if key not in tensors:
            continue
        value = tensors[key]
        if counterpart not in tensors:
            return f"{name} has {key} but no {counterpart}"
        if value.ndim not in (2, 4) or not value.is_floating_point() or not value.numel():
            return f"{name}.{key} has an invalid shape"
    if DOWN in tensors and tensors[UP].shape[1] != tensors[DOWN].shape[0]:
        return f"{name} has a {DOWN} of rank {tensors[DOWN].shape[0]} but a {UP} of another rank"
    return ""


def to_peft(tensors: Tensors, dtype: Any) -> dict[str, Tensor]:
    """Return {"lora_A.weight": down, "lora_B.weight": up}, with alpha / rank multiplied into up, so that alpha = rank in PEFT.
    dtype: a torch dtype"""
    block_size = size(tensors)
    up = (tensors[UP].double() * (block_size.alpha / block_size.rank)).to(dtype).contiguous()
    return {"lora_A.weight": tensors[DOWN].to(dtype).contiguous(), "lora_B.weight": up}


def network_args(job: TrainJob) -> dict[str, str]:
    """Return sd-scripts' network_args that differ from its defaults, {name: value as text}, such as "conv_dim", "conv_alpha",
    "rank_dropout"; {} without any. "dropout" is only added to others, as in sd-scripts."""
    network, optimizer = job.network, job.optimizer
    values: dict[str, Any] = {}
    if network.conv_rank is not None:
        alpha = network.conv_rank if network.conv_alpha is None else network.conv_alpha
        values |= {"conv_dim": network.conv_rank, "conv_alpha": alpha}
    for name in (*LISTS, *SIDES):
        values[name] = getattr(network, name) or None
    if network.has_block_rates:
        values["block_lr_zero_threshold"] = network.block_lr_zero_threshold or None
    for name in ("rank_dropout", "module_dropout"):
        values[name] = getattr(network, name) or None
    values["rs_lora"] = network.rs_lora or None
    values["train_norm"] = network.train_norm or None
    if network.initialization != "kaiming" and "initialization" in network.traits.uses:
        values["initialization"] = network.initialization
    for name in LORA_PLUS:
        values[name] = getattr(optimizer, name) if network.traits.loraplus else None
    arguments = {name: str(value) for name, value in values.items() if value is not None}
    return arguments | ({"dropout": str(network.network_dropout)} if arguments and network.network_dropout else {})


def sizes_as_metadata(tensors: Tensors, args: str = "") -> dict[str, str]:
    """Return ss_network_module, ss_network_dim, ss_network_alpha and ss_network_args of LoRA tensors by kohya's key.

    args   ss_network_args of the file so far, whose other entries are kept; "" for none
    Rank and alpha are "Dynamic" if layers differ; those of 3x3 convolutions are conv_dim and conv_alpha in ss_network_args.
    """
    plain, conv = set[tuple[int, float]](), set[tuple[int, float]]()
    for layer in group_by_module(tensors).values():
        if DOWN in layer:  # not a norm layer
            sizes = conv if math.prod(layer[DOWN].shape[2:]) > 1 else plain
            sizes.add((len(layer[DOWN]), float(layer[ALPHA])))
    previous = json_or_none(args)
    previous = previous if isinstance(previous, dict) else {}
    arguments = {key: value for key, value in previous.items() if key not in ("algo", "conv_dim", "conv_alpha")}
    if conv:
        arguments["conv_dim"] = one_or_dynamic({rank for rank, _ in conv})
        arguments["conv_alpha"] = one_or_dynamic({alpha for _, alpha in conv})
    sizes = plain or conv  # a file may have convolutions only
    metadata = network_sizes(MODULE, {rank for rank, _ in sizes}, {alpha for _, alpha in sizes})
    return metadata | ({"ss_network_args": json.dumps(arguments)} if arguments else {})


def network_sizes(module: str, ranks: Collection[int], alphas: Collection[float]) -> dict[str, str]:
    """Return ss_network_module, ss_network_dim and ss_network_alpha of a file whose layers have these ranks and alphas."""
    sizes = {"ss_network_dim": one_or_dynamic(ranks), "ss_network_alpha": one_or_dynamic(alphas)}
    return {"ss_network_module": module} | sizes


def one_or_dynamic(values: Collection[Any]) -> str:
    """Return the single value as text, or "Dynamic" for several, as sd-scripts' tools write."""
    return str(*values) if len(values) == 1 else "Dynamic"


def register_lora(adapter: type[LoraAdapter], **fields: Any) -> None:
    """Register a kind with LoRA's file format.

    adapter   class of its layers
    fields    further fields of NetworkKind, which replace LoRA's
    """

    def fresh(target: Target, size: BlockSize, options: Settings | None, seed: int) -> LoraAdapter:
        """Create an adapter of class `adapter` without effect."""
        return adapter.fresh(target.name, target.module, size.rank, size.alpha, seed)

    def from_tensors(target: Target, tensors: Tensors) -> LoraAdapter | None:
        shaped = fit_shapes(tensors[DOWN], tensors[UP], target.module)
        return adapter(target.name, target.module, *shaped, size(tensors).alpha) if shaped is not None else None

    common: dict[str, Any] = {
        "forms": ((DOWN, UP),),
        "optional": (ALPHA,),
        "input_keys": (DOWN,),
        "rank_keys": (DOWN,),
        "telling_keys": (DOWN, UP),
        "fresh": fresh,
        "from_tensors": from_tensors,
        "size": size,
        "flaw": flaw,
        "weight_shape": lambda tensors: (tensors[UP].shape[0], *tensors[DOWN].shape[1:]),
        "idle": lambda tensors: not tensors[UP].any(),
        "to_peft": to_peft,
        "misread": (),
        "network_args": network_args,
    }
    register(NetworkKind(**common | fields))


register_lora(
    LoraAdapter,
    name="lora",
    title="LoRA",
    module_name=MODULE,
    loraplus=True,
    initialize=extensions.later("core.networks.kinds.initialization", "initialized"),
)
