"""LoKr (Yeh et al. 2024, LyCORIS, arXiv:2309.14859; Edalati et al. 2022, KronA, arXiv:2212.10650) in LyCORIS' format.

The change is the Kronecker product of a small matrix and a low-rank or full one: scale * kron(w1, w2), w1 [a, c] or w1_a @ w1_b,
w2 [b, d, (kh, kw)] or w2_a @ w2_b or Tucker; out = a * b, in = c * d. scale = alpha / rank, and 1 if both are full.
"""

from __future__ import annotations

from math import prod
from typing import Any

from core.networks.kinds.lycoris import NOT_IN_PEFT, register_product
from core.networks.kinds.product import Factors, Form, Product, Start, tucker
from core.record.lazy_torch import Tensor, nn, torch
from core.settings.lycoris import LokrSettings
from core.settings.readers import UNREAD, Misread

W1, W1_A, W1_B = "lokr_w1", "lokr_w1_a", "lokr_w1_b"
W2, W2_A, W2_B, T2 = "lokr_w2", "lokr_w2_a", "lokr_w2_b", "lokr_t2"


def split(width: int, factor: int) -> tuple[int, int]:
    """Return two factors of `width`, the smaller first, as LyCORIS chooses them.

    `factor` is one of them if it divides the width; else the split is the most even one whose smaller factor is at most `factor` (-1: any).
    """
    if factor > 0 and width % factor == 0:
        return min(factor, width // factor), max(factor, width // factor)
    largest = width if factor < 0 else factor
    small = max(number for number in range(1, int(width**0.5) + 1) if width % number == 0 and number <= max(largest, 1))
    return small, width // small


def _tensor_inits(module: Any, rank: int, options: Any) -> dict[str, Start]:
    """Return {key: initialization}, as in LyCORIS: kaiming, but zero for w2 or w2_b unless there is a scalar.
    options: the kind's settings, which decide which factors are themselves products"""
    shape = module.weight.shape
    (a, b), (c, d), kernel = split(shape[0], options.factor), split(shape[1], options.factor), shape[2:]
    if options.unbalanced_factorization:
        a, b = b, a
    last: Any = "kaiming" if options.use_scalar else "zero"
    if options.decompose_both and rank < max(a, c) / 2 and not options.full_matrix:
        inits = {W1_A: Start((a, rank), "kaiming"), W1_B: Start((rank, c), "kaiming")}
    else:
        inits = {W1: Start((a, c), "kaiming")}
    if options.full_matrix or rank >= max(b, d) / 2:
        return inits | {W2: Start((b, d, *kernel), last)}
    if options.use_tucker and prod(kernel) > 1:
        core = Start((rank, rank, *kernel), "kaiming")
        return inits | {T2: core, W2_A: Start((rank, b), "kaiming"), W2_B: Start((rank, d), last)}
    return inits | {W2_A: Start((b, rank), "kaiming"), W2_B: Start((rank, d * prod(kernel)), last)}


def _w1(factors: Factors) -> Tensor:
    """Return w1, [a, c]."""
    return factors[W1] if W1 in factors else factors[W1_A] @ factors[W1_B]


def _w2(factors: Factors) -> Tensor:
    """Return w2, [b, d * kh * kw]."""
    if T2 in factors:
        return tucker(factors[T2], factors[W2_A], factors[W2_B]).flatten(1)
    return factors[W2].flatten(1) if W2 in factors else factors[W2_A] @ factors[W2_B]


def _change(factors: Factors, shape: tuple[int, ...]) -> Tensor:
    # The kernel's dimensions are the fastest of w2's rows: the product of the flat matrices is the flat change.
    """Return the Kronecker product in the weight's shape, without alpha / rank."""
    return torch.kron(_w1(factors), _w2(factors)).view(shape)


def _apply(factors: Factors, x: Tensor, module: nn.Module) -> Tensor:
    """Return kron(w1, w2) times x without building it: w2 on each of the c groups of d input channels, then w1 across the groups."""
    w1 = _w1(factors)
    c = w1.shape[1]
    w2 = _w2(factors)
    if not isinstance(module, nn.Conv2d):
        groups = nn.functional.linear(x.unflatten(-1, (c, -1)), w2)  # [..., c, b]
        return nn.functional.linear(groups.transpose(-1, -2), w1).transpose(-1, -2).flatten(-2)  # [..., a, b]
    w2 = w2.view(w2.shape[0], -1, *module.kernel_size)
    groups = nn.functional.conv2d(
        x.reshape(len(x) * c, -1, *x.shape[2:]), w2, None, module.stride, module.padding, module.dilation
    )
    across = w1 @ groups.reshape(len(x), c, -1)  # [B, a, b * h * w]
    return across.view(len(x), -1, *groups.shape[2:])


def _norm(factors: Factors) -> Tensor:
    """Return the Frobenius norm of the Kronecker product: the product of the factors' norms."""
    return _w1(factors).norm() * _w2(factors).norm()


SMALL = ({W1: "ac"}, {W1_A: "ar", W1_B: "rc"})
LARGE = (({W2: "bdhw"}, "cdhw"), ({W2_A: "br", W2_B: "rk"}, "ck"), ({T2: "rrHW", W2_A: "rb", W2_B: "rd"}, "cdHW"))
FORMS = tuple(Form({**small, **large}, outs="ab", ins=ins) for small in SMALL for large, ins in LARGE)
LOKR = Product(FORMS, _change, carrier=(W1, W1_A), starts=_tensor_inits, apply=_apply, norm=_norm, recomputes=True)
IN_TUCKER = Misread(
    {"ComfyUI": UNREAD, "Forge": UNREAD},
    "Tucker decomposition",
    lambda options, conv: options.use_tucker and conv and not options.full_matrix,
    lambda tensors: T2 in tensors,
)
register_product(
    "lokr",
    "LoKr",
    LOKR,
    settings=LokrSettings,
    misread=(NOT_IN_PEFT, IN_TUCKER),
    input_keys=(W1, W1_B, W2, W2_B),
    rank_keys=(W1_B, W2_B),
    telling_keys=(W1, W1_A, W2),
)
