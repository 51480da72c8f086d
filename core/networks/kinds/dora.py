"""DoRA (Liu et al. 2024, arXiv:2402.09353) over other kinds, in LyCORIS' format.

Another kind's change sets the weight's direction, a magnitude vector its norms. A file has the kind's keys and <name>.dora_scale,
[out, 1(, 1, 1)] for output or [1, in(, 1, 1)] for input channels.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from weakref import ref

from core.formats.lora.names import DORA_SCALE
from core.networks.adapter import Adapter, as_weight, fitted, over_channels
from core.networks.kinds import NetworkKind, Tensors, kind_named, kind_of_keys, register
from core.networks.kinds.lycoris import MODULE, lycoris_args
from core.record.lazy_torch import Tensor, nn, torch
from core.settings.base import Settings
from core.settings.blocks import BlockSize
from core.settings.dora_ia3_oft import DoraLohaSettings, DoraLokrSettings, DoraSettings
from core.settings.readers import NAMES_OF_KOHYA, OTHER, REFUSED, RENAMED, UNREAD, Misread

if TYPE_CHECKING:
    from core.families.targets import Target
    from core.settings.job import TrainJob

MAGNITUDE = "lora_magnitude_vector"  # PEFT's key of the magnitudes
EPSILON = 2.0**-23  # of float32, which LyCORIS adds to the norms


class DoraAdapter(Adapter):
    """W' = magnitude * (W + change) / |W + change|, with the norm of each output or input channel.

    inner      the adapter of the direction's change
    magnitude  float32 parameter [out, 1(, 1, 1)] or [1, in(, 1, 1)]
    The multiplier m interpolates the weight, W + m * (W' - W), as A1111 and ComfyUI do; LyCORIS, the same at 1, applies the whole change
    at any m. In training the norm is a constant for the gradient (section 4.3 of the paper, and PEFT), which saves a copy of each weight.
    """

    def __init__(self, inner: Adapter, magnitude: Tensor):
        super().__init__(inner.name, inner.module, inner.rank, inner.alpha)
        self.inner, self.magnitude = inner, nn.Parameter(magnitude)
        self._cached_norm: tuple[object, Tensor] | None = None

    @classmethod
    def fresh(cls, inner: Adapter, per_output: bool) -> DoraAdapter:
        """Create an adapter without effect over the new adapter `inner`: the magnitudes are the weight's norms.
        per_output: one magnitude per output channel; False: per input channel"""
        from core.networks.fp8 import base_weight

        return cls(inner, _norm(base_weight(inner.module), per_output).clone())

    @property
    def per_output(self) -> bool:
        """Whether there is a magnitude per output channel, not per input channel."""
        return self.magnitude.shape[0] == self.magnitude.numel()

    def parameters(self) -> list[tuple[nn.Parameter, str]]:
        return [*self.inner.parameters(), (self.magnitude, "plain")]

    def changed_input(self, x: Tensor) -> Tensor:
        """Scale the input's channels by the magnitudes, if those are per input channel."""
        if self.per_output:
            return x
        return x * (1 + self.multiplier * (self._scale(x) - 1))

    def add_to(self, y: Tensor, x: Tensor) -> Tensor:
        """Return y with the rescaled direction, interpolated by the multiplier."""
        self.inner.dropout, self.inner.casts, scale = self.dropout, self.casts, self._scale(y)
        if not self.per_output:
            change = self.inner.add_to(torch.zeros_like(y), x.to(y.dtype) * scale)
            return torch.add(y, change, alpha=self.multiplier)
        unbiased = self.without_bias(y)
        changed = self.inner.add_to(unbiased, x) * scale
        return torch.add(y, changed - unbiased, alpha=self.multiplier)

    def _scale(self, like: Tensor) -> Tensor:
        """Return magnitude / |W + change| in the dtype of `like`, an input or output of the layer, and broadcasting over its channels."""
        scale = self.magnitude.float() / (self._current_norm() + EPSILON)
        return over_channels(scale, like, self.module)

    def _current_norm(self) -> Tensor:
        """Return |W + change| in the magnitude's shape, W including the adapters attached before. Cached while nothing trains."""
        earlier = list(self.earlier_adapters())
        trains = any(parameter.requires_grad for adapter in (self, *earlier) for parameter, _ in adapter.parameters())
        weight = as_weight(self.module.weight)
        state = (weight.data_ptr(), weight._version, [(ref(adapter), adapter.multiplier) for adapter in earlier])
        if trains or self._cached_norm is None or self._cached_norm[0] != state:
            from core.networks.fp8 import base_weight

            with torch.no_grad():
                weights = base_weight(self.module)
                for adapter in earlier:
                    weights = adapter.merged(weights)
                self._cached_norm = (state, _norm(weights + self.inner.delta(), self.per_output))
        return self._cached_norm[1]

    def merged(self, weight: Tensor) -> Tensor:
        """Return weight + multiplier * (W' - weight)."""
        changed = weight + self.inner.delta()
        scale = self.magnitude.detach().float() / (_norm(changed, self.per_output) + EPSILON)
        return weight + self.multiplier * (changed * scale - weight)

    def norm(self) -> Tensor:
        return self.inner.norm()

    def shorten(self, ratio: Tensor) -> None:
        """Multiply the direction's change by `ratio`; the magnitudes stay."""
        self.inner.shorten(ratio)

    def tensors(self) -> dict[str, Tensor]:
        return {**self.inner.tensors(), DORA_SCALE: self.magnitude.detach()}

    def saved(self) -> dict[str, Tensor]:
        return {**self.inner.saved(), DORA_SCALE: self.magnitude.detach()}

    def misfit(self, tensors: Tensors) -> str:
        magnitude = magnitudes(tensors[DORA_SCALE], self.module) if DORA_SCALE in tensors else None
        if magnitude is None or magnitude.shape != self.magnitude.shape:
            return f"has no {DORA_SCALE} of the same shape"
        return self.inner.misfit(without_magnitude(tensors))

    def take(self, tensors: Tensors) -> None:
        magnitude = magnitudes(tensors[DORA_SCALE], self.module)
        assert magnitude is not None
        with torch.no_grad():
            self.magnitude.copy_(magnitude)
        self.inner.saved_alpha = self.saved_alpha
        self.inner.take(without_magnitude(tensors))
        self.alpha, self.saved_alpha = self.inner.alpha, self.inner.saved_alpha
        self._cached_norm = None


def magnitudes(scale: Tensor, module: nn.Module) -> Tensor | None:
    """Return a file's dora_scale as float32 in the shape for this layer, on its device; None if it does not fit.

    That of a 1x1 convolution fits a Linear and vice versa; a plain vector is per output channel.
    """
    weight = as_weight(module.weight)
    ones = [1 for _ in weight.shape[2:]]
    shape = [1, weight.shape[1], *ones] if scale.ndim > 1 and scale.shape[0] == 1 else [weight.shape[0], 1, *ones]
    if scale.numel() != max(shape):
        return None
    return fitted(scale, shape, module)


def _norm(weight: Tensor, per_output: bool) -> Tensor:
    """Return the weight's norms per output channel, [out, 1(, 1, 1)], or per input channel, [1, in(, 1, 1)]."""
    dims = [dim for dim in range(weight.dim()) if dim != (0 if per_output else 1)]
    return torch.linalg.vector_norm(weight, dim=dims, keepdim=True)


# -- the kinds


def without_magnitude(tensors: Tensors) -> dict[str, Tensor]:
    """Return a layer's tensors without dora_scale: those of the kind under DoRA."""
    return {key: value for key, value in tensors.items() if key != DORA_SCALE}


def _misreads(over_lora: bool) -> tuple[Misread, ...]:
    """Return which programs misread DoRA over LoRA and LoCon (`over_lora`) or over other kinds, and how.

    Of magnitudes per output channel, ComfyUI and Forge divide by the norms of the unchanged weight, A1111 and InvokeAI by those of the
    input channels. InvokeAI looks for LoRA's two matrices.
    """
    by = {**dict.fromkeys(NAMES_OF_KOHYA, OTHER), "diffusers": RENAMED if over_lora else UNREAD}
    per_output = Misread(
        by | ({"InvokeAI": OTHER} if over_lora else {}),
        "a magnitude per output",
        lambda options, conv: options.wd_on_output,
        lambda tensors: not _per_input(tensors),
    )
    if not over_lora:
        return Misread({"InvokeAI": REFUSED}), per_output
    return per_output, Misread(
        {"InvokeAI": UNREAD},
        "Tucker decomposition",
        lambda options, conv: options.use_tucker and conv,
        lambda tensors: "lora_mid.weight" in tensors,
    )


def _per_input(tensors: Tensors) -> bool:
    """Return whether a layer's dora_scale is per input channel."""
    scale = tensors[DORA_SCALE]
    return bool(scale.shape[0] != scale.numel())


def inner_kind_and_tensors(tensors: Tensors) -> tuple[NetworkKind | None, dict[str, Tensor]]:
    """Return (the kind under DoRA by the layer's keys, or None if unknown; the tensors without dora_scale)."""
    inner_tensors = without_magnitude(tensors)
    return kind_of_keys(inner_tensors), inner_tensors


def register_decomposed(inner_name: str, name: str, title: str, settings: type[Settings]) -> None:
    """Register DoRA over the kind `inner_name` as the kind `name`."""
    kind = kind_named(inner_name)

    def fresh(target: Target, size: BlockSize, options: Settings | None, seed: int) -> DoraAdapter | None:
        """Create a DoRA adapter without effect; None if the inner kind skips the layer."""
        inner = kind.fresh(target, size, options, seed)
        return DoraAdapter.fresh(inner, getattr(options, "wd_on_output", False)) if inner is not None else None

    def network_args(job: TrainJob) -> dict[str, str]:
        """Return LyCORIS' network_args of the inner kind with its DoRA options."""
        options = getattr(job, name)
        return lycoris_args(job, inner_name, options) | {"dora_wd": "True", "wd_on_output": str(options.wd_on_output)}

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
            loraplus=inner_name == "locon",
            idle=_idle,
            misread=(*kind.misread, *_misreads(inner_name == "locon")),
            to_peft=_to_peft if inner_name == "locon" else None,
            in_peft=_in_peft,
            from_peft={MAGNITUDE: from_magnitude},
        )
    )


def _from_tensors(target: Target, tensors: Tensors) -> DoraAdapter | None:
    kind, inner_tensors = inner_kind_and_tensors(tensors)
    inner = kind.from_tensors(target, inner_tensors) if kind is not None else None
    magnitude = magnitudes(tensors[DORA_SCALE], target.module)
    return DoraAdapter(inner, magnitude) if inner is not None and magnitude is not None else None


def _size(tensors: Tensors) -> BlockSize:
    """Return rank and alpha of the kind under DoRA."""
    kind, inner_tensors = inner_kind_and_tensors(tensors)
    assert kind is not None
    return kind.size(inner_tensors)


def _flaw(name: str, tensors: Tensors) -> str:
    scale, (kind, inner_tensors) = tensors.get(DORA_SCALE), inner_kind_and_tensors(tensors)
    if scale is None:
        return f"{name} has no {DORA_SCALE}"
    if kind is None:
        return f"{name} has {DORA_SCALE} but no complete change next to it"
    if not scale.is_floating_point() or max(scale.shape, default=0) != scale.numel():
        return f"{name}.{DORA_SCALE} has an invalid shape"
    return kind.flaw(name, inner_tensors)


def _idle(tensors: Tensors) -> bool:
    """Return whether the direction's change has no effect."""
    kind, inner_tensors = inner_kind_and_tensors(tensors)
    return kind is not None and kind.idle(inner_tensors)


def _in_peft(tensors: Tensors) -> bool:
    """Return whether PEFT has the tensors' form: it has no magnitudes per input channel and no Tucker form."""
    scale, (kind, _) = tensors[DORA_SCALE], inner_kind_and_tensors(tensors)
    return scale.shape[0] == scale.numel() and kind is not None and kind.to_peft is not None


def _to_peft(tensors: Tensors, dtype: Any) -> dict[str, Tensor]:
    """Return the tensors of a form that PEFT has in its format, {PEFT's key: tensor of `dtype`}."""
    kind, inner_tensors = inner_kind_and_tensors(tensors)
    assert kind is not None and kind.to_peft is not None
    return {**kind.to_peft(inner_tensors, dtype), MAGNITUDE: to_magnitude(tensors[DORA_SCALE]).to(dtype)}


def to_magnitude(scale: Tensor) -> Tensor:
    """Reshape dora_scale [out, 1(, 1, 1)] to PEFT's magnitudes: [out] for a Linear, [1, out, 1, 1] for a convolution."""
    return scale.reshape(1, -1, 1, 1).contiguous() if scale.ndim == 4 else scale.reshape(-1).contiguous()


def from_magnitude(value: Tensor) -> Tensor:
    """Reshape PEFT's magnitudes, [out] or [1, out, 1, 1], to LyCORIS' dora_scale [out, 1(, 1, 1)]."""
    return value.reshape(-1, *(1 for _ in range(1 if value.ndim < 4 else 3)))


register_decomposed("locon", "dora", "DoRA", DoraSettings)
register_decomposed("loha", "dora_loha", "DoRA over LoHa", DoraLohaSettings)
register_decomposed("lokr", "dora_lokr", "DoRA over LoKr", DoraLokrSettings)
