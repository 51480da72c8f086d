"""DoRA (Liu et al. 2024, arXiv:2402.09353): a kind's change gives the weight its direction, a vector next to it its length, in
LyCORIS' format: the kind's own keys and <name>.dora_scale, [out, 1(, 1, 1)], or [1, in(, 1, 1)] for lengths of input channels.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from core.networks.kinds import NetworkKind, Tensors, kind_named, kind_of_keys, register
from core.networks.kinds.keys import DORA_SCALE, without_scale
from core.networks.kinds.lycoris import MODULE, lycoris_args
from core.record.problems import ProblemsError
from core.settings.base import Settings
from core.settings.blocks import BlockSize
from core.settings.readers import NAMES_OF_KOHYA, OTHER, RENAMED, UNREAD, Misread
from core.settings.turning import DoraLohaSettings, DoraLokrSettings, DoraSettings

if TYPE_CHECKING:
    from torch import Tensor

    from core.families.targets import Target
    from core.networks.kinds.dora_adapter import DoraAdapter
    from core.settings.job import TrainJob


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
        from core.networks.kinds.dora_adapter import DoraAdapter

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
        )
    )


def _from_tensors(target: Target, tensors: Tensors) -> DoraAdapter | None:
    from core.networks.kinds.dora_adapter import DoraAdapter, lengths

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
    return {**kind.to_peft(rest, dtype), "lora_magnitude_vector": to_magnitude(scale).to(dtype)}


def to_magnitude(scale: Tensor) -> Tensor:
    """dora_scale [out, 1(, 1, 1)] in PEFT's shape: [out] of a Linear, [1, out, 1, 1] of a convolution."""
    return scale.reshape(1, -1, 1, 1).contiguous() if scale.ndim == 4 else scale.reshape(-1).contiguous()


register_decomposed("locon", "dora", "DoRA", DoraSettings)
register_decomposed("loha", "dora_loha", "DoRA over LoHa", DoraLohaSettings)
register_decomposed("lokr", "dora_lokr", "DoRA over LoKr", DoraLokrSettings)
