"""DoRA (Liu et al. 2024, arXiv:2402.09353): a kind's change gives the weight its direction, a vector next to it its length, in
LyCORIS' format: the kind's own keys and <name>.dora_scale, [out, 1(, 1, 1)], or [1, in(, 1, 1)] for lengths of input channels.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from weakref import ref

from core.formats.lora.names import DORA_SCALE
from core.networks.adapter import Adapter, as_weight, fitted, over_channels
from core.networks.kinds import NetworkKind, Tensors, kind_named, kind_of_keys, register
from core.networks.kinds.lycoris import MODULE, lycoris_args
from core.record.lazy_torch import Tensor, nn, torch
from core.record.problems import ProblemsError
from core.settings.base import Settings
from core.settings.blocks import BlockSize
from core.settings.readers import NAMES_OF_KOHYA, OTHER, RENAMED, UNREAD, Misread
from core.settings.turning import DoraLohaSettings, DoraLokrSettings, DoraSettings

if TYPE_CHECKING:
    from core.families.targets import Target
    from core.settings.job import TrainJob

MAGNITUDE = "lora_magnitude_vector"  # PEFT's key of the lengths
EPSILON = 2.0**-23  # of float32, which LyCORIS adds to the norms


class DoraAdapter(Adapter):
    """W' = length * (W + change) / |W + change|, norms of rows or columns.

    `inner` is the change of the direction; `length` a float32 parameter [out, 1(, 1, 1)] or [1, in(, 1, 1)]. The multiplier m
    interpolates the weight, W + m * (W' - W), as A1111 and ComfyUI use such files; at 1 this is what LyCORIS computes, whose
    module would keep the whole change at any m. In training the norm is a constant for the gradient (section 4.3 of the paper,
    and PEFT), which saves a copy of each weight.
    """

    def __init__(self, inner: Adapter, length: Tensor):
        super().__init__(inner.name, inner.module, inner.rank, inner.alpha)
        self.inner, self.length = inner, nn.Parameter(length)
        self._known: tuple[object, Tensor] | None = None

    @classmethod
    def fresh(cls, inner: Adapter, per_output: bool) -> DoraAdapter:
        """With the lengths that the weight has."""
        from core.networks.narrow import base_weight

        return cls(inner, _norm(base_weight(inner.module), per_output).clone())

    @property
    def per_output(self) -> bool:
        return self.length.shape[0] == self.length.numel()

    def parameters(self) -> list[tuple[nn.Parameter, str]]:
        return [*self.inner.parameters(), (self.length, "plain")]

    def enters(self, x: Tensor) -> Tensor:
        if self.per_output:
            return x
        return x * (1 + self.multiplier * (self._scale(x) - 1))

    def add_to(self, y: Tensor, x: Tensor) -> Tensor:
        self.inner.dropout, scale = self.dropout, self._scale(y)
        if not self.per_output:
            change = self.inner.add_to(torch.zeros_like(y), x.to(y.dtype) * scale)
            return torch.add(y, change, alpha=self.multiplier)
        own = self.without_bias(y)
        whole = self.inner.add_to(own, x) * scale
        return torch.add(y, whole - own, alpha=self.multiplier)

    def _scale(self, like: Tensor) -> Tensor:
        """length / |W + change|, for the channels of an input or output, in its dtype."""
        scale = self.length.float() / (self._norm_now() + EPSILON)
        return over_channels(scale, like, self.module)

    def _norm_now(self) -> Tensor:
        """|W + change| with what acts on the module before. While nothing trains it is computed once."""
        below = list(self.below())
        trains = any(parameter.requires_grad for adapter in (self, *below) for parameter, _ in adapter.parameters())
        weight = as_weight(self.module.weight)
        now = (weight.data_ptr(), weight._version, [(ref(adapter), adapter.multiplier) for adapter in below])
        if trains or self._known is None or self._known[0] != now:
            from core.networks.narrow import base_weight

            with torch.no_grad():
                wide = base_weight(self.module)
                for adapter in below:
                    wide = adapter.merged(wide)
                self._known = (now, _norm(wide + self.inner.delta(), self.per_output))
        return self._known[1]

    def merged(self, weight: Tensor) -> Tensor:
        whole = weight + self.inner.delta()
        scale = self.length.detach().float() / (_norm(whole, self.per_output) + EPSILON)
        return weight + self.multiplier * (whole * scale - weight)

    def norm(self) -> Tensor:
        return self.inner.norm()

    def shorten(self, ratio: Tensor) -> None:
        self.inner.shorten(ratio)

    def tensors(self) -> dict[str, Tensor]:
        return {**self.inner.tensors(), DORA_SCALE: self.length.detach()}

    def saved(self) -> dict[str, Tensor]:
        return {**self.inner.saved(), DORA_SCALE: self.length.detach()}

    def misfit(self, tensors: Tensors) -> str:
        given = lengths(tensors[DORA_SCALE], self.module) if DORA_SCALE in tensors else None
        if given is None or given.shape != self.length.shape:
            return f"has no {DORA_SCALE} of the same shape"
        return self.inner.misfit(without_scale(tensors))

    def take(self, tensors: Tensors) -> None:
        given = lengths(tensors[DORA_SCALE], self.module)
        assert given is not None
        with torch.no_grad():
            self.length.copy_(given)
        self.inner.saved_alpha = self.saved_alpha
        self.inner.take(without_scale(tensors))
        self.alpha, self.saved_alpha = self.inner.alpha, self.inner.saved_alpha
        self._known = None


def lengths(scale: Tensor, module: nn.Module) -> Tensor | None:
    """dora_scale as float32 in the shape this module needs, on its device; None if it does not fit. Weights of a 1x1
    convolution fit a Linear and vice versa; a plain vector is of the outputs."""
    weight = as_weight(module.weight)
    ones = [1 for _ in weight.shape[2:]]
    shape = [1, weight.shape[1], *ones] if scale.ndim > 1 and scale.shape[0] == 1 else [weight.shape[0], 1, *ones]
    if scale.numel() != max(shape):
        return None
    return fitted(scale, shape, module)


def _norm(weight: Tensor, per_output: bool) -> Tensor:
    """Norms of the weight's rows, [out, 1(, 1, 1)], or of its columns, [1, in(, 1, 1)]."""
    dims = [dim for dim in range(weight.dim()) if dim != (0 if per_output else 1)]
    return torch.linalg.vector_norm(weight, dim=dims, keepdim=True)


# -- the kinds


def without_scale(tensors: Tensors) -> dict[str, Tensor]:
    """The tensors of the kind that DoRA decomposes."""
    return {key: value for key, value in tensors.items() if key != DORA_SCALE}


def _per_output(diffusers: str) -> Misread:
    """ComfyUI and Forge divide by the norms of the unchanged weight, A1111 by those of the columns."""
    return Misread(
        {**dict.fromkeys(NAMES_OF_KOHYA, OTHER), "diffusers": diffusers},
        "a magnitude per output",
        lambda own, conv: own.wd_on_output,
        lambda tensors: not _per_input(tensors),
    )


def _per_input(tensors: Tensors) -> bool:
    scale = tensors[DORA_SCALE]
    return bool(scale.shape[0] != scale.numel())


def below(tensors: Tensors) -> tuple[NetworkKind | None, dict[str, Tensor]]:
    """The kind whose change gives the direction, by its keys, and its tensors."""
    rest = without_scale(tensors)
    return kind_of_keys(rest), rest


def register_decomposed(over: str, name: str, title: str, settings: type[Settings]) -> None:
    """Register DoRA over the change of another kind."""
    kind = kind_named(over)

    def fresh(target: Target, size: BlockSize, own: Settings | None, seed: int) -> DoraAdapter | None:
        inner = kind.fresh(target, size, own, seed)
        return DoraAdapter.fresh(inner, getattr(own, "wd_on_output", False)) if inner is not None else None

    def network_args(job: TrainJob) -> dict[str, str]:
        own = getattr(job, name)
        return lycoris_args(job, over, own) | {"dora_wd": "True", "wd_on_output": str(own.wd_on_output)}

    register(
        NetworkKind(
            name=name,
            title=title,
            forms=tuple((*form, DORA_SCALE) for form in kind.forms),
            optional=kind.optional,
            input_keys=kind.input_keys,
            rank_keys=kind.rank_keys,
            telling_keys=(*kind.telling_keys, DORA_SCALE),
            fresh=fresh,
            from_tensors=_from_tensors,
            size=_size,
            flaw=_flaw,
            module_name=MODULE,
            network_args=network_args,
            settings=settings,
            needs_base_weight=True,
            loraplus=over == "locon",
            idle=_idle,
            misread=(*kind.misread, _per_output(RENAMED if over == "locon" else UNREAD)),
            to_peft=_to_peft if over == "locon" else None,
            from_peft={MAGNITUDE: from_magnitude},
        )
    )


def _from_tensors(target: Target, tensors: Tensors) -> DoraAdapter | None:
    kind, rest = below(tensors)
    inner = kind.from_tensors(target, rest) if kind is not None else None
    given = lengths(tensors[DORA_SCALE], target.module)
    return DoraAdapter(inner, given) if inner is not None and given is not None else None


def _size(tensors: Tensors) -> BlockSize:
    kind, rest = below(tensors)
    assert kind is not None
    return kind.size(rest)


def _flaw(name: str, tensors: Tensors) -> str:
    scale, (kind, rest) = tensors.get(DORA_SCALE), below(tensors)
    if scale is None:
        return f"{name} has no {DORA_SCALE}"
    if kind is None:
        return f"{name} has {DORA_SCALE} but no complete change next to it"
    if not scale.is_floating_point() or max(scale.shape, default=0) != scale.numel():
        return f"{name}.{DORA_SCALE} has an invalid shape"
    return kind.flaw(name, rest)


def _idle(tensors: Tensors) -> bool:
    kind, rest = below(tensors)
    return kind is not None and kind.idle(rest)


def _to_peft(tensors: Tensors, dtype: Any) -> dict[str, Tensor]:
    scale, (kind, rest) = tensors[DORA_SCALE], below(tensors)
    if scale.shape[0] != scale.numel() or kind is None or kind.to_peft is None:
        what = "PEFT has DoRA's lengths for each output only, and no Tucker form"
        raise ProblemsError.one(what, DORA_SCALE, "make it a LoRA (convert_lora.network_type)", "lora.not-in-peft")
    return {**kind.to_peft(rest, dtype), MAGNITUDE: to_magnitude(scale).to(dtype)}


def to_magnitude(scale: Tensor) -> Tensor:
    """dora_scale [out, 1(, 1, 1)] in PEFT's shape: [out] of a Linear, [1, out, 1, 1] of a convolution."""
    return scale.reshape(1, -1, 1, 1).contiguous() if scale.ndim == 4 else scale.reshape(-1).contiguous()


def from_magnitude(value: Tensor) -> Tensor:
    """PEFT's lengths, [out] or [1, out, 1, 1], in LyCORIS' shape [out, 1(, 1, 1)]."""
    return value.reshape(-1, *(1 for _ in range(1 if value.ndim < 4 else 3)))


register_decomposed("locon", "dora", "DoRA", DoraSettings)
register_decomposed("loha", "dora_loha", "DoRA over LoHa", DoraLohaSettings)
register_decomposed("lokr", "dora_lokr", "DoRA over LoKr", DoraLokrSettings)
