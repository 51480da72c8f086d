"""Full difference (LyCORIS' algo=full): a change of each weight, and of its layer's bias, in full size."""

from typing import Any

from core.formats.lora.names import BIAS
from core.networks.kinds.lycoris import NOT_IN_PEFT, register_product
from core.networks.kinds.product import Factors, Form, Product, Start
from core.record.lazy_torch import Tensor
from core.settings.network import OWN, SIZES

WEIGHT = "diff"


def _change(factors: Factors, shape: tuple[int, ...]) -> Tensor:
    """Return the change in the weight's shape."""
    return factors[WEIGHT].view(shape)


def _tensor_inits(module: Any, rank: int, options: Any) -> dict[str, Start]:
    """Return {key: initialization}: zero for the weight, and for the bias if the layer has one. rank, options: not used"""
    bias = {BIAS: Start(tuple(module.bias.shape))} if module.bias is not None else {}
    return {WEIGHT: Start(tuple(module.weight.shape)), **bias}


ALONE = Form({WEIGHT: "oihw"}, outs="o", ins="ihw")
WITH_BIAS = Form({WEIGHT: "oihw", BIAS: "o"}, outs="o", ins="ihw")
FULL = Product((ALONE, WITH_BIAS), _change, carrier=(WEIGHT,), starts=_tensor_inits, bias=BIAS, recomputes=True)
register_product(
    "full",
    "Full difference",
    FULL,
    optional=(),
    uses=OWN - SIZES,
    misread=(NOT_IN_PEFT,),
    rates=0.05,  # those of fine-tuning
    input_keys=(WEIGHT,),
    telling_keys=(WEIGHT,),
)
