"""LoCon in LyCORIS' format: LoRA on Linear layers and convolutions, 3x3 ones optionally in Tucker form.

Tucker form: a 1x1 convolution down to the rank, a core [rank, rank, kh, kw], and a 1x1 convolution up. Layers without Tucker form and
scalar are plain LoRA.
"""

from __future__ import annotations

from math import prod
from typing import TYPE_CHECKING, Any

from core.formats.lora.names import DOWN, UP
from core.networks.kinds.lora import LoraAdapter
from core.networks.kinds.lycoris import NOT_IN_PEFT, register_product
from core.networks.kinds.product import SCALAR, Factors, Form, Product, ProductAdapter, Start
from core.record.lazy_torch import Tensor, nn, torch
from core.settings.lycoris import LoconSettings

if TYPE_CHECKING:
    from core.families.targets import Target
    from core.networks.adapter import Adapter
    from core.settings.base import Settings
    from core.settings.blocks import BlockSize

MID = "lora_mid.weight"


def _change(factors: Factors, shape: tuple[int, ...]) -> Tensor:
    """Return the change in the weight's shape, without alpha / rank."""
    up, down = factors[UP].flatten(1), factors[DOWN].flatten(1)
    if MID not in factors:
        return (up @ down).view(shape)
    return torch.einsum("rqhw,or,qi->oihw", factors[MID], up, down)


def _apply(factors: Factors, x: Tensor, module: nn.Module) -> Tensor:
    """Return up(core(down(x))) without building the change; a layer without Tucker form has no core."""
    up, down = factors[UP].flatten(1), factors[DOWN].flatten(1)
    if not isinstance(module, nn.Conv2d):
        return nn.functional.linear(nn.functional.linear(x, down), up)
    wide = nn.functional.conv2d(x, down[..., None, None]) if MID in factors else x
    core = factors[MID] if MID in factors else down.view(len(down), -1, *module.kernel_size)
    hidden = nn.functional.conv2d(wide, core, None, module.stride, module.padding, module.dilation)
    return nn.functional.conv2d(hidden, up[..., None, None])


def _tensor_inits(module: Any, rank: int, options: Any) -> dict[str, Start]:
    """Return {key: initialization} of down, up and the Tucker core, as in LyCORIS: kaiming, but zero for up unless there is a scalar.
    options: the kind's settings"""
    (out, width, *kernel), ones = module.weight.shape, tuple(1 for _ in module.weight.shape[2:])
    last: Any = "kaiming" if options.use_scalar else "zero"
    if options.use_tucker and prod(kernel) > 1:
        inits = {DOWN: Start((rank, width, *ones), "kaiming"), MID: Start((rank, rank, *kernel), "kaiming")}
    else:
        inits = {DOWN: Start((rank, width, *kernel), "kaiming")}
    return inits | {UP: Start((out, rank, *ones), last)}


def _fresh(target: Target, size: BlockSize, options: Settings | None, seed: int) -> Adapter:
    """Create an adapter without effect; a plain LoRA for a layer without Tucker form and scalar."""
    adapter = ProductAdapter.fresh(LOCON, target, size, options, seed)
    if SCALAR in adapter.weights or MID in adapter.weights:
        return adapter
    return LoraAdapter.fresh(target.name, target.module, size.rank, size.alpha, seed)


PLAIN = Form({DOWN: "rihw", UP: "or11"}, outs="o", ins="ihw")
TUCKER = Form({DOWN: "ri11", MID: "rrHW", UP: "or11"}, outs="o", ins="iHW")
LOCON = Product((TUCKER, PLAIN), _change, carrier=(UP,), starts=_tensor_inits, apply=_apply)
register_product(
    "locon",
    "LoCon",
    LOCON,
    fresh=_fresh,
    settings=LoconSettings,
    misread=(NOT_IN_PEFT,),
    loraplus=True,
    input_keys=(DOWN,),
    rank_keys=(DOWN,),
    telling_keys=(DOWN, UP),
)
