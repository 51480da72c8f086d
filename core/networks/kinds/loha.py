"""LoHa (Hyeon-Woo et al. 2022, FedPara, arXiv:2108.06098) in LyCORIS' format: the elementwise product of two low-rank matrices.

change = alpha / rank * (w1_a @ w1_b) * (w2_a @ w2_b), kernels flattened, of rank up to rank^2. With Tucker each factor of a 3x3
convolution is a core [rank, rank, kh, kw] with two matrices instead.
"""

from math import prod
from typing import Any

from core.networks.kinds.lycoris import NOT_IN_PEFT, register_product
from core.networks.kinds.product import Factors, Form, Product, Start, tucker
from core.record.lazy_torch import Tensor
from core.settings.lycoris import LohaSettings

W1_A, W1_B, T1 = "hada_w1_a", "hada_w1_b", "hada_t1"
W2_A, W2_B, T2 = "hada_w2_a", "hada_w2_b", "hada_t2"


def _change(factors: Factors, shape: tuple[int, ...]) -> Tensor:
    """Return the change in the weight's shape, without alpha / rank."""
    if T1 in factors:
        first = tucker(factors[T1], factors[W1_A], factors[W1_B])
        second = tucker(factors[T2], factors[W2_A], factors[W2_B])
    else:
        first, second = factors[W1_A] @ factors[W1_B], factors[W2_A] @ factors[W2_B]
    return (first * second).view(shape)


def _tensor_inits(module: Any, rank: int, options: Any) -> dict[str, Start]:
    """Return {key: initialization}, as in LyCORIS: b matrices normal, a matrices and cores normal with a standard deviation of 0.1.

    w2_a is zero unless there is a scalar. Cores exist only with Tucker form.
    options: the kind's settings
    """
    shape = module.weight.shape
    core = options.use_tucker and prod(shape[2:]) > 1
    outs = (rank, shape[0]) if core else (shape[0], rank)
    ins = (rank, shape[1] if core else prod(shape[1:]))
    inits = {
        W1_A: Start(outs, "normal", 0.1),
        W1_B: Start(ins, "normal"),
        W2_A: Start(outs, "normal" if options.use_scalar else "zero", 0.1),
        W2_B: Start(ins, "normal"),
    }
    return inits | ({key: Start((rank, rank, *shape[2:]), "normal", 0.1) for key in (T1, T2)} if core else {})


PLAIN = Form({W1_A: "or", W1_B: "ri", W2_A: "or", W2_B: "ri"}, outs="o", ins="i")
TUCKER = Form({T1: "rrHW", W1_A: "ro", W1_B: "ri", T2: "rrHW", W2_A: "ro", W2_B: "ri"}, outs="o", ins="iHW")
LOHA = Product((PLAIN, TUCKER), _change, carrier=(W1_A,), starts=_tensor_inits, recomputes=True)
register_product(
    "loha",
    "LoHa",
    LOHA,
    settings=LohaSettings,
    misread=(NOT_IN_PEFT,),
    input_keys=(W1_B,),
    rank_keys=(W1_B,),
    telling_keys=(W1_A,),
)
