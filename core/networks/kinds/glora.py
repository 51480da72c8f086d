"""GLoRA (Chavan et al. 2023, arXiv:2306.07967) in LyCORIS' format: W' = W + scale * (W A + B) with A and B of low rank, so that a
layer's input changes too.

<name>.a1.weight [in, r(, 1, 1)]    a2.weight [r, in(, 1, 1)]    A = a1 @ a2       scale = alpha / r, as LoRA's
<name>.b1.weight [out, r(, 1, 1)]   b2.weight [r, in(, kh, kw)]  B = b1 @ b2
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from core.networks.kinds import NetworkKind, Tensors, register
from core.networks.kinds.keys import A1, A2, ALPHA, B1, B2, GLORA, glora_size, is_number
from core.networks.kinds.lycoris import MODULE, lycoris_args
from core.settings.base import Settings
from core.settings.blocks import BlockSize
from core.settings.readers import REFUSED, UNREAD, Misread

if TYPE_CHECKING:
    from core.families.targets import Target
    from core.networks.kinds.glora_adapter import GloraAdapter


def _fresh(target: Target, size: BlockSize, own: Settings | None, seed: int) -> GloraAdapter:
    from core.networks.kinds.glora_adapter import GloraAdapter

    return GloraAdapter.fresh(target.name, target.module, size.rank, size.alpha, seed)


def _from_tensors(target: Target, tensors: Tensors) -> GloraAdapter | None:
    from core.networks.kinds.glora_adapter import GloraAdapter, fitted

    given = fitted(tensors, target.module)
    return GloraAdapter(target.name, target.module, given, glora_size(tensors).alpha) if given is not None else None


def _flaw(name: str, tensors: Tensors) -> str:
    for key in GLORA:
        if key not in tensors:
            return f"{name} has no {key}"
        if tensors[key].ndim not in (2, 4) or not tensors[key].is_floating_point() or not tensors[key].numel():
            return f"{name}.{key} has an invalid shape"
    if ALPHA in tensors and not is_number(tensors[ALPHA]):
        return f"{name}.{ALPHA} is not a number"
    ranks = {tensors[A1].shape[1], tensors[A2].shape[0], tensors[B1].shape[1], tensors[B2].shape[0]}
    return "" if len(ranks) == 1 else f"{name} has matrices of several ranks"


register(
    NetworkKind(
        name="glora",
        title="GLoRA",
        forms=(GLORA,),
        optional=(ALPHA,),
        input_keys=(A2,),
        fresh=_fresh,
        from_tensors=_from_tensors,
        size=glora_size,
        flaw=_flaw,
        module_name=MODULE,
        network_args=lambda job: lycoris_args(job, "glora", None),
        misread=(Misread({"A1111": REFUSED, "diffusers": UNREAD}),),
        idle=lambda tensors: (
            not (tensors[A1].any() and tensors[A2].any()) and not (tensors[B1].any() and tensors[B2].any())
        ),
    )
)
